"""Settings of the embedded broker."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CacheSettings(BaseSettings):
    """The folder of this user's caches."""

    model_config = SettingsConfigDict(frozen=True)

    home: str = Field(
        "", validation_alias="XDG_CACHE_HOME", description="Kafka's jars are in it; in `~/.cache` by default."
    )


class BrokerSettings(BaseSettings):
    """The embedded broker. Environment: `SMSPULSE_BROKER_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_BROKER_", frozen=True, extra="forbid", allow_inf_nan=False)

    port: int = Field(
        default=19092, ge=0, le=65535, description="Preferred port for clients; another if taken, any with 0."
    )
    controller_port: int = Field(
        default=19093, ge=0, le=65535, description="Preferred port of Kafka's controller, likewise."
    )
    heap_mb: int = Field(default=512, ge=256, description="Memory for the JVM's heap, in MiB.")
    flush_messages: int = Field(
        default=1,
        ge=1,
        description="Records a partition takes between two fsyncs. 1: each batch is on disk before it is acknowledged. "
        "More is faster, and a power loss can then cost acknowledged records; the death of a process never does.",
    )
    login: bool = Field(
        default=True,
        description="Whether clients must log in, with the login in `kafka/login.json` in the data folder. "
        "`false`: every user of this machine reads and writes all records.",
    )
