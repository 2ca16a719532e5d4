"""Settings of ingest."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, IPvAnyNetwork, SecretStr, ValidationInfo, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from core.settings import EnvironmentSettings

METRICS_FOLDER_VARIABLE: Final = "PROMETHEUS_MULTIPROC_DIR"
_MIN_KEY: Final = 16


def _as_whole_number(value: object) -> object:
    """Return the number of a text of digits, because environment variables are texts."""
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


Networks = Annotated[
    tuple[IPvAnyNetwork, ...],
    NoDecode,
    BeforeValidator(lambda value: value.replace(",", " ").split() if isinstance(value, str) else value),
]
"""`192.0.2.0/24,2001:db8::/32`"""


class IngestSettings(EnvironmentSettings):
    """Settings of ingest. Environment: `SMSPULSE_INGEST_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_INGEST_")

    host: str = "127.0.0.1"
    """Address to listen on: `0.0.0.0` is every IPv4 address, `::` is every address."""
    port: int = Field(8080, ge=0, le=65535)
    """Port to listen on; 0 chooses a free one."""
    sources: SecretStr = SecretStr("")
    """Sources in addition to `sources.json`: `name=token`, several separated by commas."""
    # Kafka takes records of up to 1 MiB unless a topic says otherwise, key and headers included.
    max_body_bytes: int = Field(262_144, ge=1, le=917_504)
    """Largest body of a webhook in bytes; a larger one is answered 413."""
    body_timeout_s: float = Field(10.0, gt=0)
    """Seconds from the headers to the end of the body; a later one is answered 408."""
    max_in_flight: int = Field(1_000, ge=1)
    """Webhooks that are received or wait for Kafka at once; one more is answered 503."""
    ack_timeout_s: float = Field(2.0, gt=0)
    """Seconds for Kafka's acknowledgement of a webhook, before it goes to the spool."""
    spool_max_bytes: int = Field(1 << 30, ge=0)
    """Largest size of the spool in bytes. When it is full, webhooks are answered 503."""
    spool_max_age_s: float = Field(259_200.0, gt=0)
    """Age of the oldest webhook from which the spool accepts no more; none is deleted."""
    spool_reserve_bytes: int = Field(67_108_864, ge=0)
    """Free bytes that the spool leaves on its disk, for itself and other programs."""
    success_status: Annotated[Literal[200, 202], BeforeValidator(_as_whole_number)] = 202
    """HTTP status for a stored webhook: 202, or 200 for senders that accept no other."""
    retry_after_s: int = Field(5, ge=1)
    """Seconds in `Retry-After` of an answer 503."""
    share_port: bool = False
    """Allow other processes to listen on the port. Set by `smspulse ingest --processes`."""
    # The variable is that of prometheus_client, which also reads it.
    metrics_folder: Path | None = Field(None, validation_alias=METRICS_FOLDER_VARIABLE)
    """Folder in which the processes of one port count together. Set by `smspulse ingest --processes`."""
    stop_timeout_s: float = Field(4.0, gt=0)
    """Seconds for requests in flight to finish when ingest stops."""
    store_remote: bool = False
    """Store the sender's IP address with each webhook. It is personal data."""
    header_timeout_s: float = Field(10.0, gt=0)
    """Seconds from a connection to the headers of its first request, or it is closed."""
    # Longer than the time-outs of proxies. If ingest closes while a proxy sends, the proxy may not repeat the webhook.
    idle_timeout_s: float = Field(135.0, gt=0)
    """Seconds from an answer to the headers of the next request, or it is closed."""
    max_connections: int = Field(256, ge=1)
    """Connections of one address; in IPv6, of one /64. One more replaces an idle one, or is closed at once. Those of
    `trusted_proxies` are not counted."""
    max_connections_total: int = Field(2_048, ge=1)
    """Connections of all addresses; at most half of the files that the process can open."""
    rate_per_s: float | None = Field(None, gt=0)
    """Sustained webhooks per second of a source; more are answered 429. Unset: no limit."""
    rate_burst: int = Field(1_000, ge=1)
    """Webhooks that a source can send at once, with `rate_per_s`."""
    # Twice the rate of 5,000 phones. A phone sends a message in 3 s at best: 5 reports of 250 bytes each, 2.1 MB/s of
    # all phones. An image in a body of the largest size, from each phone every 15 minutes, adds 1.5 MB/s.
    rate_bytes_per_s: int = Field(8_000_000, ge=1)
    """Sustained bytes of bodies per second of a source; more are answered 429."""
    # 128 bodies of the largest size at once, independent of the rate.
    rate_burst_bytes: int = Field(33_554_432, ge=1)
    """Bytes of bodies that a source can send at once, with `rate_bytes_per_s`."""
    allow: Networks = ()
    """Networks that may send webhooks, separated by commas; empty: all."""
    trusted_proxies: Networks = ()
    """Networks of proxies whose `X-Forwarded-For` names the sender; that of others is ignored."""
    tls_cert: Path | None = None
    """PEM file of a certificate and its chain, for HTTPS."""
    tls_key: Path | None = None
    """PEM file of its key, unless the key is in `tls_cert`."""
    tls_renewal_s: float = Field(60, gt=0)
    """Seconds between two checks for renewed files."""
    privacy: Literal["keep", "mask", "hmac"] = "keep"
    """Stored part of phone numbers: all, the last four digits, or a keyed hash."""
    bodies: Literal["keep", "drop"] = "keep"
    """Whether texts and images of messages are kept."""
    privacy_key: SecretStr = SecretStr("")
    """HMAC key, at least 16 characters. A change breaks joins with existing data."""

    @field_validator("privacy_key")
    @classmethod
    def _check_key_length(cls, key: SecretStr, info: ValidationInfo) -> SecretStr:
        if info.data.get("privacy") == "hmac" and len(key.get_secret_value()) < _MIN_KEY:
            msg = f"hmac needs a key of at least {_MIN_KEY} characters, such as `openssl rand -hex 32` prints"
            raise ValueError(msg)
        return key
