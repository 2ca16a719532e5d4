"""Settings of the lander, and of every process that reads a warehouse."""

from pathlib import Path

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from pydantic_settings import SettingsConfigDict

from core.settings import EnvironmentSettings


class WarehouseSettings(EnvironmentSettings):
    """Read by every process that opens a data folder or a bucket."""

    status_meanings: str | None = Field(None, validation_alias="SMSPULSE_STREAM_STATUS_MEANINGS")
    """As the stream has it. Unset: the meanings that the lander has recorded."""
    aws_endpoint_url: str = Field("", validation_alias="AWS_ENDPOINT_URL")
    """Address of an object store other than Amazon's. Without TLS only if it begins with http:."""


class LanderSettings(EnvironmentSettings):
    """Environment: `SMSPULSE_LANDER_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_LANDER_", populate_by_name=True)

    data: Path
    """The data folder, or s3://bucket/prefix. It gets a folder a dataset, and `smspulse.duckdb`."""
    group: str = "smspulse-lander"
    """Kafka's consumer group. All landers of one data folder share it."""
    instance: str = ""
    """Static member name of a single lander. A lander that is restarted under it has its partitions back at once, not
    after the session's time-out. Unused with the in-memory broker: it has no static members."""
    zone: str = Field("UTC", validation_alias="SMSPULSE_ZONE")
    """IANA zone of payload times that name none, the same for stream and lander."""
    flush_interval_s: PositiveFloat = 5
    """Seconds between landings. A record waits half of it on average."""
    merge_interval_s: NonNegativeFloat = 10
    """Seconds between merges of recent files; 0 for none. A query reads the files that were landed since the last one.
    """
    max_rows: PositiveInt = 100_000
    """Records of one partition after which it is landed early."""
    max_bytes: PositiveInt = 128 << 20
    """Approximate bytes of all partitions after which all are landed early."""
    session_timeout_s: PositiveFloat = 10
    """Seconds after which a silent lander's partitions move on."""
    retry_s: PositiveFloat = 0.5
    """First pause after a failure. It doubles up to 10 seconds."""


class RetentionSettings(EnvironmentSettings):
    """Environment: `SMSPULSE_RETAIN_` and the field's name in capitals. Unset: kept forever."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_RETAIN_")

    raw_days: int | None = Field(None, ge=1)
    """Days that raw webhooks are kept."""
    versions_days: int | None = Field(None, ge=1)
    """Days that the versions of messages are kept: how far back `messages_as_of` goes."""
    messages_days: int | None = Field(None, ge=1)
    """Days that messages are kept. Their counts are kept forever."""
    deadletters_days: int | None = Field(None, ge=1)
    """Days that dead letters are kept."""
    quality_days: int | None = Field(None, ge=1)
    """Days that results of `smspulse check` are kept."""
