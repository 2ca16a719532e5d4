"""Settings of the receiver."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BeforeValidator, Field, IPvAnyNetwork, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_MIN_KEY: Final = 16


def _as_whole_number(value: object) -> object:
    """Return the number that a text of digits is; an environment variable has no numbers."""
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else value


Networks = Annotated[
    tuple[IPvAnyNetwork, ...],
    NoDecode,
    BeforeValidator(lambda value: value.replace(",", " ").split() if isinstance(value, str) else value),
]
"""`192.0.2.0/24,2001:db8::/32`"""


class IngestSettings(BaseSettings):
    """How webhooks are received. Environment: `SMSPULSE_INGEST_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_INGEST_", frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field(
        "127.0.0.1", description="Address to listen on; `0.0.0.0` for every one of IPv4, `::` for every one."
    )
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    sources: SecretStr = Field(
        SecretStr(""), description="Sources beside those of `sources.json`: `name=token`, several separated by commas."
    )
    # Kafka takes records of up to 1 MiB unless a topic says otherwise, key and headers included.
    max_body_bytes: int = Field(
        262_144, ge=1, le=917_504, description="Largest body of a webhook; a larger one is answered 413."
    )
    body_timeout_s: float = Field(
        10.0,
        gt=0,
        description="Seconds that a body may take to arrive once its headers are there, or it is answered 408.",
    )
    max_in_flight: int = Field(
        1_000, ge=1, description="Webhooks being received or awaiting Kafka at once; one more is answered 503."
    )
    ack_timeout_s: float = Field(
        2.0, gt=0, description="Seconds that Kafka has to acknowledge a webhook before it goes to the spool."
    )
    spool_max_bytes: int = Field(
        1 << 30, ge=0, description="Size of the spool from which webhooks are answered 503 while Kafka is away."
    )
    spool_max_age_s: float = Field(
        259_200.0, gt=0, description="Age of its oldest webhook from which the spool takes no more; none is deleted."
    )
    spool_reserve_bytes: int = Field(
        67_108_864, ge=0, description="Free space that the spool leaves on its disk, for itself and others to go on."
    )
    success_status: Annotated[Literal[200, 202], BeforeValidator(_as_whole_number)] = Field(
        202, description="HTTP status for a webhook that is stored: 202, or 200 for senders that take no other."
    )
    retry_after_s: int = Field(5, ge=1, description="Seconds after which a sender is asked to retry, with a 503.")
    share_port: bool = Field(
        default=False, description="Let other processes listen on the port too. Set by `smspulse ingest --processes`."
    )
    stop_timeout_s: float = Field(
        4.0, gt=0, description="Seconds that requests in flight have to finish when ingest is stopped."
    )
    store_remote: bool = Field(
        default=False, description="Store the sender's IP address with each webhook; it is personal data."
    )
    header_timeout_s: float = Field(
        10.0, gt=0, description="Seconds that a connection has for the headers of its first request, or it is closed."
    )
    # Longer than proxies keep theirs: one that sends as we close has a webhook refused that it may not send again.
    idle_timeout_s: float = Field(
        135.0, gt=0, description="Seconds from an answer to the headers of the next request, or it is closed."
    )
    max_connections: int = Field(
        256,
        ge=1,
        description="Connections that one address may have, of IPv6 one /64. One more takes the place of an idle one, "
        "or is closed at once. Those of `trusted_proxies` are not counted.",
    )
    max_connections_total: int = Field(
        2_048,
        ge=1,
        description="Connections of all addresses; at most half of the files that the process may open.",
    )
    rate_per_s: float | None = Field(
        None, gt=0, description="Webhooks a second that a source may send for long; more are answered 429. Unset: any."
    )
    rate_burst: int = Field(1_000, ge=1, description="Webhooks that a source may send at once, with `rate_per_s`.")
    # Twice what 5,000 phones can send. A phone sends a message in 3 s at best: 5 reports of 250 bytes each, 2.1 MB/s of
    # all. An image in a body of the largest size, from each of them every 15 minutes, is 1.5 MB/s more.
    rate_bytes_per_s: int = Field(
        8_000_000, ge=1, description="Bytes of bodies a second that a source may send for long; more are answered 429."
    )
    # 128 bodies of the largest size at once, of whatever size the rate is.
    rate_burst_bytes: int = Field(
        33_554_432, ge=1, description="Bytes of bodies that a source may send at once, with `rate_bytes_per_s`."
    )
    allow: Networks = Field((), description="Networks that may send webhooks, separated by commas; empty: all.")
    trusted_proxies: Networks = Field(
        (), description="Networks of proxies whose `X-Forwarded-For` says who the sender is; nobody else's does."
    )
    tls_cert: Path | None = Field(None, description="PEM file of a certificate, its chain after it: answers HTTPS.")
    tls_key: Path | None = Field(None, description="PEM file of its key, unless that is in `tls_cert`.")
    tls_renewal_s: float = Field(60, gt=0, description="Seconds between two looks whether they were renewed.")
    privacy: Literal["keep", "mask", "hmac"] = Field(
        "keep", description="What is kept of phone numbers: all, the last four digits, or a keyed hash."
    )
    bodies: Literal["keep", "drop"] = Field("keep", description="Whether texts and images of messages are kept.")
    privacy_key: SecretStr = Field(
        SecretStr(""), description=f"Key of `hmac`, {_MIN_KEY} signs at least; with another one nothing joins any more."
    )

    @field_validator("privacy_key")
    @classmethod
    def _check_key_length(cls, key: SecretStr, info: ValidationInfo) -> SecretStr:
        if info.data.get("privacy") == "hmac" and len(key.get_secret_value()) < _MIN_KEY:
            msg = f"hmac needs one of {_MIN_KEY} signs or more, such as `openssl rand -hex 32` prints"
            raise ValueError(msg)
        return key
