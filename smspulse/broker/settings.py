"""Settings of the embedded broker. The text below each field is its description."""

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from core.settings import EnvironmentSettings


class CacheSettings(EnvironmentSettings):
    """The folder of this user's caches."""

    home: str = Field("", validation_alias="XDG_CACHE_HOME")
    """Kafka's jars are in it; in `~/.cache` by default."""


class BrokerSettings(EnvironmentSettings):
    """The embedded broker. Environment: `SMSPULSE_BROKER_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_BROKER_")

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
