"""The stored state of a monitored entity: its detector, and its alerts that fire; and the ends that it observes."""

from typing import Final

import msgspec

from streams.change_detector import ChangeDetector

_DAY_MS: Final = 86_400_000


class MessageEnd(msgspec.Struct, array_like=True, gc=False):
    """The end of a message, or another end of it.

    Attributes:
        sms_id: The message.
        status_id: Status that decided it.
        outcome: What became of it.
        at: When, in milliseconds.
        again: Whether it had ended before, otherwise than by expiring.
    """

    sms_id: int
    status_id: int
    outcome: str
    at: int
    again: bool = False


class DeniedStreak(msgspec.Struct, gc=False):
    """Messages that were not permitted since the last one that was: how many, since when, and some of their ids."""

    since: int
    count: int
    errors: dict[str, int]
    samples: list[int]


class DetectorState(msgspec.Struct, gc=False):
    """What is known of one unit.

    Attributes:
        detector: Of its ratio of failures.
        fired_at: When its alert fired, in milliseconds; None if none is on.
        accepted_at: When a rise became the new normal last, in milliseconds; 0 if none did.
        recent: Messages that ended: those of a day ago count half.
        recent_at: When that was, in milliseconds.
        failures: sms_id and status id of the latest of the detector's failures.
        origins: Device, channel and the channel's share of the source's messages, for each of the latest failures.
            A channel keeps none. States of earlier releases have none, so there can be fewer than failures.
        errors: How many failures of the alert that fires had which status id.
        denied: None if the last message was permitted.
    """

    detector: ChangeDetector = msgspec.field(default_factory=ChangeDetector)
    fired_at: int | None = None
    accepted_at: int = 0
    recent: float = 0.0
    recent_at: int = 0
    failures: list[tuple[int, int]] = msgspec.field(default_factory=list)
    origins: list[tuple[int | None, int | None, float]] = msgspec.field(default_factory=list)
    errors: dict[str, int] = msgspec.field(default_factory=dict)
    denied: DeniedStreak | None = None

    def add_recent(self, at: int, count: int) -> None:
        """Count messages, the last of which ended at a time in milliseconds."""
        if at > self.recent_at:
            self.recent *= 0.5 ** ((at - self.recent_at) / _DAY_MS)
            self.recent_at = at
        self.recent += count
