"""Stored state of a monitored entity, its detector and its alerts; and the ends of messages that it observes."""

from typing import Final, NamedTuple

import msgspec

from streams.change_detector import ChangeDetector

_DAY_MS: Final = 86_400_000


class MessageEnd(NamedTuple):
    """The first end of a message.

    Attributes:
        sms_id: Id of the message.
        status_id: The status that decided it.
        outcome: Outcome of the message.
        at: Time of the end, in milliseconds.
    """

    sms_id: int
    status_id: int
    outcome: str
    at: int


class DeniedStreak(msgspec.Struct, gc=False):
    """Denied messages since the last permitted one: time of the first, number, status ids and some ids of messages."""

    since: int
    count: int
    errors: dict[str, int]
    samples: list[int]


class DetectorState(msgspec.Struct, gc=False):
    """State of one monitored entity.

    Attributes:
        detector: Detector of its ratio of failures.
        fired_at: Time when its alert fired, in milliseconds; None if it does not fire.
        accepted_at: Time when a rise last became the new normal, in milliseconds; 0 if none did.
        recent: Messages that ended. Their weight halves each day.
        recent_at: Time to which `recent` refers, in milliseconds.
        failures: sms_id and status id of the latest failures that the detector counts.
        origins: Device, channel and the channel's share of the source's messages, for each of the latest failures.
            A channel has none. States of earlier releases have none, so there can be fewer than failures.
        errors: Number of failures by status id, of the alert that fires.
        denied: Streak of denied messages; None if the last message was permitted.
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

    def add_recent(self, at: int) -> None:
        """Count a message that ended at a time in milliseconds."""
        if at > self.recent_at:
            self.recent *= 0.5 ** ((at - self.recent_at) / _DAY_MS)
            self.recent_at = at
        self.recent += 1
