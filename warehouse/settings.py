"""Settings of the lander."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class LanderSettings(BaseSettings):
    """Environment: `SMSPULSE_LANDER_` and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="SMSPULSE_LANDER_", frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )

    data: Path = Field(
        description="The data folder, or s3://bucket/prefix: a folder a dataset is made in it, and `smspulse.duckdb`."
    )
    group: str = Field(
        "smspulse-lander", description="Kafka's consumer group. All landers of one data folder share it."
    )
    instance: str = Field(
        "",
        description="Static member name, of one lander alone: started anew under it, a lander has its partitions back "
        "at once, not after the session's time-out. Unset with the in-memory broker, which knows no static members.",
    )
    zone: str = Field(
        "UTC",
        validation_alias="SMSPULSE_ZONE",
        description="IANA zone of payload times that name none, the same for stream and lander.",
    )
    flush_interval_s: float = Field(
        5, gt=0, description="Seconds between landings; a record waits half of it on average."
    )
    max_rows: int = Field(100_000, ge=1, description="Records of one partition after which it is landed before time.")
    max_bytes: int = Field(128 << 20, ge=1, description="Bytes held of all partitions, about, before all are landed.")
    session_timeout_s: float = Field(10, gt=0, description="Seconds after which a silent lander's partitions move on.")
    retry_s: float = Field(0.5, gt=0, description="First pause after a failure; it doubles up to 10 seconds.")
