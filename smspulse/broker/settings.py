"""Settings of the embedded broker. The text below each field is its description."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class CacheSettings(BaseSettings):
    """The folder of this user's caches."""

    model_config = SettingsConfigDict(frozen=True, use_attribute_docstrings=True)

    home: str = Field("", validation_alias="XDG_CACHE_HOME")
    """Kafka's jars are in it; in `~/.cache` by default."""


class BrokerSettings(BaseSettings):
    """The embedded broker. Environment: `SMSPULSE_BROKER_` and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="SMSPULSE_BROKER_", frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    port: int = Field(19092, ge=0, le=65535)
    """Preferred port for clients; another if taken, any with 0."""
    controller_port: int = Field(19093, ge=0, le=65535)
    """Preferred port of Kafka's controller, likewise."""
    heap_mb: int = Field(512, ge=256)
    """Memory for the JVM's heap, in MiB."""
    flush_messages: int = Field(1, ge=1)
    """Records a partition takes between two fsyncs. 1: each batch is on disk before it is acknowledged. More is faster,
    and a power loss can then cost acknowledged records; the death of a process never does."""
    login: bool = True
    """Whether clients must log in, with the login in `kafka/login.json` in the data folder. `false`: every user of this
    machine reads and writes all records."""
