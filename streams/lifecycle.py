"""The lifecycle of one outgoing message: a pure function of the reports received about it, in whatever order.

Facts about a message are *observations*. Reports that agree in status, device, channel and `senttime` are one
observation, however often they arrive; it keeps when the first and when the last of them was received. Adding a report
takes the smaller first and the larger last, so adding and merging are commutative, associative and idempotent: order,
duplicates, replays and two workers that read the same report cannot change the result.

What follows from the facts:

Attempts
    A step (1, 3, 2, 6) that had been reported before a failure and is reported anew after it, as another observation,
    begins another attempt. A report delivered again is the same observation and begins none. The price: a gateway that
    resends a message and repeats device, channel and `senttime` to the letter shows one attempt.
Outcome
    An end holds until another end is reported: among several, the one whose first report came last decides (at the
    same millisecond, the larger id). Without an end, the furthest step in the documented order decides.
Contradiction
    Two ends of different outcome within one attempt.
Latencies
    Observed report latencies: differences of the times at which reports were *received*, for the payload carries no
    event time. They are of the attempt that decides, `total_s` of the message as a whole. A step whose report is
    missing although a later one came, or that runs backwards, is null and flagged, never negative.
Device and channel
    Those of the newest observation that names one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypedDict

from gateway.payloads import StatusReport
from gateway.statuses import ACCEPTED, DELIVERED, INCOMING, PENDING, SENT, Outcome, Status

Identity = tuple[int, int | None, int | None, int | None]
"""What makes reports one observation: status_id, device_id, channel_id, sent_at."""

_UNDELIVERED: Final = 8

FLAG_DUPLICATED: Final = "duplicated"
FLAG_REORDERED: Final = "reordered"
FLAG_UNKNOWN_STATUS: Final = "unknown_status"
FLAGS: Final = (
    FLAG_DUPLICATED,
    FLAG_REORDERED,
    FLAG_UNKNOWN_STATUS,
    *(f"{latency}_{fault}" for latency in ("queue", "device", "network") for fault in ("missing", "backwards")),
)
"""Every flag a message can carry."""


class Version(TypedDict):
    """One version of a message's lifecycle: the value of a record on `sms.messages`.

    Times are milliseconds since 1970 UTC, latencies seconds. `version` counts the facts: it only grows, and a larger
    version of a message contains the smaller one. Each observation is status_id, device_id, channel_id, sent_at, first
    received, last received.
    """

    source: str
    sms_id: int
    outcome: str
    failure_class: str | None
    last_status_id: int
    is_ended: bool
    device_id: int | None
    channel_id: int | None
    recipient: str | None
    first_seen_at: int
    last_seen_at: int
    ended_at: int | None
    delivered_at: int | None
    attempts: int
    contradicted: bool
    flags: list[str]
    queue_s: float | None
    device_s: float | None
    network_s: float | None
    total_s: float | None
    version: int
    observations: list[list[int | None]]


@dataclass(slots=True)
class Facts:
    """All that is known of one message.

    Args:
        source: The gateway account.
        sms_id: The gateway's id of the message.
        recipient: The smallest in text order of those reported; in practice there is one.
        observations: First and last received, in milliseconds, by identity.
    """

    source: str
    sms_id: int
    recipient: str | None = None
    observations: dict[Identity, tuple[int, int]] = field(default_factory=dict)

    def add(self, report: StatusReport, received_at: int) -> bool:
        """Add one report; return whether it told anything new."""
        status_id, device_id, channel_id, sent_at, recipient = report[1:6]
        changed = False
        if recipient is not None and (self.recipient is None or recipient < self.recipient):
            self.recipient = recipient
            changed = True
        return self._extend((status_id, device_id, channel_id, sent_at), received_at, received_at) or changed

    def merge(self, other: "Facts") -> None:
        """Add everything that the other knows of the same message."""
        if other.recipient is not None and (self.recipient is None or other.recipient < self.recipient):
            self.recipient = other.recipient
        for identity, (first, last) in other.observations.items():
            self._extend(identity, first, last)

    def _extend(self, identity: Identity, first: int, last: int) -> bool:
        known = self.observations.get(identity)
        if known is None:
            self.observations[identity] = (first, last)
            return True
        if known[0] <= first and last <= known[1]:
            return False
        self.observations[identity] = (min(first, known[0]), max(last, known[1]))
        return True

    @classmethod
    def of(cls, version: Mapping[str, Any]) -> "Facts":
        """Take the facts back out of a version."""
        return cls(
            version["source"],
            version["sms_id"],
            version["recipient"],
            {
                (s, device, channel, sent): (first, last)
                for s, device, channel, sent, first, last in version["observations"]
            },
        )


class Lifecycle:
    """Derives versions from facts, for one table of statuses.

    Args:
        table: What each status id means; ids that it lacks move nothing.
    """

    def __init__(self, table: Mapping[int, Status]) -> None:
        self._outcomes = {id_: status.outcome.value for id_, status in table.items()}
        self._failure_classes = {id_: status.failure_class for id_, status in table.items()}
        self._ranks = {id_: status.rank for id_, status in table.items() if status.is_step or status.is_end}
        self._ends = frozenset(id_ for id_, status in table.items() if status.is_end)
        self._failures = frozenset(id_ for id_, status in table.items() if status.is_failure)

    # One pass over the observations: a call for each would cost a third of the time of the whole.
    def derive(self, facts: Facts) -> Version:  # noqa: PLR0912, PLR0915
        """Return the version that follows from the facts.

        Raises:
            ValueError: There are no observations.
        """
        ranks, ends, failures = self._ranks, self._ends, self._failures
        ordered = sorted(facts.observations.items(), key=self._order)
        device_id = channel_id = winner = None
        attempts, contradicted, reordered, unknown = 1, False, False, False
        facts_known, last_seen_at = len(ordered), 0
        attempt: dict[int, int] = {}  # first received by status, of the attempt under way
        decisive = attempt
        reported: set[int] = set()
        before_failure: frozenset[int] = frozenset()
        furthest = -1
        for (status_id, device, channel, _), (first, last) in ordered:
            if device is not None:
                device_id = device
            if channel is not None:
                channel_id = channel
            if last > first:
                facts_known += 1
            last_seen_at = max(last_seen_at, last)
            rank = ranks.get(status_id)
            if rank is None:
                unknown = unknown or status_id != INCOMING
                continue
            if status_id in before_failure and status_id not in ends:
                attempts += 1
                attempt, before_failure, furthest = {}, frozenset(), -1
            if status_id not in attempt:
                attempt[status_id] = first
                if status_id in ends:
                    contradicted = contradicted or (
                        decisive is attempt
                        and winner is not None
                        and self._outcomes[winner] != self._outcomes[status_id]
                    )
                    winner, decisive = status_id, attempt
            if rank < furthest:
                reordered = True
            else:
                furthest = rank
            reported.add(status_id)
            if status_id in failures:
                before_failure = frozenset(reported)

        first_seen_at = ordered[0][1][0]
        flags = [FLAG_DUPLICATED] if facts_known > len(ordered) else []
        if reordered:
            flags.append(FLAG_REORDERED)
        if unknown:
            flags.append(FLAG_UNKNOWN_STATUS)
        pending, accepted = decisive.get(PENDING), decisive.get(ACCEPTED)
        sent, delivered = decisive.get(SENT), decisive.get(DELIVERED)
        beyond_sent = delivered is not None or _UNDELIVERED in decisive
        beyond_accepted = beyond_sent or sent is not None
        queue_s = _step("queue", pending, accepted, beyond_accepted or accepted is not None, flags)
        device_s = _step("device", accepted, sent, beyond_accepted, flags)
        network_s = _step("network", sent, delivered, delivered is not None, flags)

        if winner is not None:
            ended_at: int | None = decisive[winner]
            status, outcome = winner, self._outcomes[winner]
            failure_class = self._failure_classes[winner]
        else:
            ended_at = failure_class = None
            status, outcome = self._open([identity[0] for identity, _ in ordered], attempt)
        return {
            "source": facts.source,
            "sms_id": facts.sms_id,
            "outcome": outcome,
            "failure_class": failure_class,
            "last_status_id": status,
            "is_ended": winner is not None,
            "device_id": device_id,
            "channel_id": channel_id,
            "recipient": facts.recipient,
            "first_seen_at": first_seen_at,
            "last_seen_at": last_seen_at,
            "ended_at": ended_at,
            "delivered_at": ended_at if outcome == "delivered" else None,
            "attempts": attempts,
            "contradicted": contradicted,
            "flags": flags,
            "queue_s": queue_s,
            "device_s": device_s,
            "network_s": network_s,
            "total_s": None if ended_at is None else (ended_at - first_seen_at) / 1000,
            "version": facts_known + (facts.recipient is not None),
            "observations": [[*identity, *times] for identity, times in ordered],
        }

    def _order(self, observation: tuple[Identity, tuple[int, int]]) -> tuple[int, ...]:
        """Sort by the first report; reports of one millisecond in the documented order, the rest by their fields."""
        (status_id, *fields), (first, _) = observation
        rank = self._ranks.get(status_id, -1)
        return first, rank, status_id, *[-1 if part is None else part for part in fields]

    def _open(self, reported: list[int], steps: Mapping[int, int]) -> tuple[int, str]:
        """Return status and outcome of a message without an end, from all reported ids, the newest last."""
        if steps:
            status = max(steps, key=self._ranks.__getitem__)
            return status, self._outcomes[status]
        if INCOMING in reported:
            return INCOMING, Outcome.INCOMING.value
        return reported[-1], Outcome.UNKNOWN.value


def _step(name: str, start: int | None, end: int | None, reached: bool, flags: list[str]) -> float | None:
    """Return the seconds between two reports, or None with the flag that says why, if there is something to say."""
    if start is None or end is None:
        if reached:
            flags.append(f"{name}_missing")
        return None
    if end < start:
        flags.append(f"{name}_backwards")
        return None
    return (end - start) / 1000
