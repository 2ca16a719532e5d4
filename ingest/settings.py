"""Settings of the receiver."""

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class IngestSettings(BaseSettings):
    """How webhooks are received. Environment: `SMSPULSE_INGEST_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_INGEST_", frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="Address to listen on; `0.0.0.0` for every one.")
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
