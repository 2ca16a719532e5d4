"""Settings of the stream worker."""

import re
from pathlib import Path
from typing import Final, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator
from pydantic_settings import SettingsConfigDict

from core.settings import EnvironmentSettings
from streams.failure_baseline import DetectorPolicy

_RELEARN_AFTER: Final = re.compile(r"([1-9]\d*)\s*,\s*(\d+(?:\.\d+)?)([dh])")
_UNITS_MS: Final = {"d": 86_400_000, "h": 3_600_000}


def parse_relearn_after(text: str) -> tuple[int | None, int]:
    """Return messages and milliseconds of a setting such as `500,7d`; None and 0 for `never`.

    Raises:
        ValueError: The text has neither form.
    """
    if text.strip() == "never":
        return None, 0
    found = _RELEARN_AFTER.fullmatch(text.strip())
    if found is None:
        msg = f"relearn_after is {text!r}: write messages and days or hours, such as 500,7d or 500,36h, or never"
        raise ValueError(msg)
    return int(found[1]), int(float(found[2]) * _UNITS_MS[found[3]])


class StreamSettings(EnvironmentSettings):
    """Settings of one worker. Environment: `SMSPULSE_STREAM_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_STREAM_", populate_by_name=True)

    state: Path
    """Folder of the local state of one worker. It can be deleted: Kafka has the same data."""
    group: str = "smspulse-stream"
    """Kafka's consumer group and the prefix of transactional ids."""
    instance: str = ""
    """Static member name of one worker. After a restart, the worker gets its partitions back at once, not after the
    session time-out. Not used with the in-memory broker, which has no static members."""
    zone: str = Field("UTC", validation_alias="SMSPULSE_ZONE")
    """IANA zone of payload times that name none, the same for stream and lander."""
    status_meanings: str = ""
    """Meanings of undocumented status ids, such as `13=not_sent,102=not_permitted`."""
    expire_after_h: PositiveFloat = 24
    """Hours without a report after which an open message has expired."""
    forget_after_h: float = 168
    """Hours after the last report when the state of a message is dropped; more than expire_after_h."""
    false_alarm_days: PositiveFloat = 30
    """Average number of days between two false alarms of a channel, a device or a source."""
    learn_messages: int = Field(200, ge=0, le=10_000)
    """Messages from which a new channel, device or source learns before its failures are judged. Until then, only
    near-total failure and messages that are not permitted fire."""
    relearn_after: str = "500,7d"
    """When a lasting rise of failures becomes the new normal: messages since it began, and days (d) or hours (h) since
    its alert fired, both. `never` keeps the alert until failures are normal again."""
    clock_interval_s: PositiveFloat = 5
    """Seconds between two checks for due timers."""
    max_batch: PositiveInt = 12_000
    """Most records of all partitions in one fetch."""
    cache_messages: NonNegativeInt = 2_500
    """Open messages that a partition keeps decoded in memory. Each takes some 1.3 KB. Others are read from the state on
    disk."""
    session_timeout_s: PositiveFloat = 10
    """Seconds until a silent worker loses its partitions."""
    transaction_timeout_s: PositiveFloat = 30
    """Seconds after which Kafka aborts an open transaction."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.forget_after_h <= self.expire_after_h:
            msg = "forget_after_h must be more than expire_after_h: what is forgotten cannot expire"
            raise ValueError(msg)
        parse_relearn_after(self.relearn_after)
        return self

    @property
    def detector_policy(self) -> DetectorPolicy:
        """The settings of all detectors."""
        return DetectorPolicy(self.false_alarm_days, self.learn_messages, *parse_relearn_after(self.relearn_after))
