"""Settings of the stream worker."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class StreamSettings(BaseSettings):
    """Environment: `SMSPULSE_STREAM_` and the field's name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="SMSPULSE_STREAM_", frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False
    )

    state: Path = Field(
        description="Folder of the local state, of one worker alone. It can be deleted: Kafka has it all."
    )
    group: str = Field("smspulse-stream", description="Kafka's consumer group and the prefix of transactional ids.")
    instance: str = Field(
        "",
        description="Static member name, of one worker alone: started anew under it, a worker has its partitions back "
        "at once, not after the session's time-out. Unset with the in-memory broker, which knows no static members.",
    )
    zone: str = Field(
        "UTC",
        validation_alias="SMSPULSE_ZONE",
        description="IANA zone of payload times that name none, the same for stream and lander.",
    )
    status_meanings: str = Field(
        "", description="What undocumented status ids mean, such as `13=not_sent,102=not_permitted`."
    )
    expire_after_h: float = Field(
        24, gt=0, description="Hours without a report after which an open message has expired."
    )
    forget_after_h: float = Field(
        168, description="Hours after the last report when the state of a message is dropped; more than expire_after_h."
    )
    false_alarm_days: float = Field(
        30, gt=0, description="Days between two false alarms of a channel, a device or a source, on average."
    )
    clock_interval_s: float = Field(5, gt=0, description="Seconds between two looks at what is due.")
    max_batch: int = Field(12_000, ge=1, description="Records of all partitions taken up at once.")
    cache_messages: int = Field(10_000, ge=0, description="Messages a partition keeps decoded in memory.")
    session_timeout_s: float = Field(10, gt=0, description="Seconds after which a silent worker's partitions move on.")
    transaction_timeout_s: float = Field(30, gt=0, description="Seconds after which Kafka aborts an open transaction.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.forget_after_h <= self.expire_after_h:
            msg = "forget_after_h must be more than expire_after_h: what is forgotten cannot expire"
            raise ValueError(msg)
        return self
