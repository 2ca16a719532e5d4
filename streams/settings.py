"""Settings of the stream worker."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class StreamSettings(BaseSettings):
    """Environment: `SMSPULSE_STREAM_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_STREAM_", frozen=True, extra="forbid")

    state: Path = Field(
        description="Folder of the local state, of one worker alone. It can be deleted: Kafka has it all."
    )
    group: str = Field("smspulse-stream", description="Kafka's consumer group and the prefix of transactional ids.")
    zone: str = Field("UTC", description="IANA zone of payload times that name none.")
    status_meanings: str = Field(
        "", description="What undocumented status ids mean, such as `13=not_sent,102=not_permitted`."
    )
    max_batch: int = Field(4000, ge=1, description="Records of all partitions taken up at once.")
    cache_messages: int = Field(20_000, ge=0, description="Messages a partition keeps decoded in memory.")
    session_timeout_s: float = Field(10, gt=0, description="Seconds after which a silent worker's partitions move on.")
    transaction_timeout_s: float = Field(30, gt=0, description="Seconds after which Kafka aborts an open transaction.")
