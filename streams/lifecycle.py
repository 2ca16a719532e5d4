"""The lifecycle of one outgoing message: a pure function of the reports received about it, in whatever order.

Facts about a message are *observations*. Reports that agree in status, device, channel and `senttime` are one
observation, however often they arrive. It has the time of the first and of the last of them. Adding a report takes the
smaller first and the larger last time. So adding is commutative and idempotent: order, duplicates, replays and two
workers that read the same report cannot change the result.

Derived from the facts:

Attempts
    Two kinds of reports begin another attempt. The first is a step (1, 3, 2, 6) that was reported before a failure and
    again after it, as another observation. The second is a report that follows an end and names another device or
    channel than those known at that end. For example, phone 501 reports 1 and 9, then phone 777 reports 7: the first
    attempt failed, the second delivered. A report that is delivered again is the same observation and begins none. The
    limit: if a gateway resends a message with the same device, channel and `senttime`, the message has one attempt.
Outcome
    Of an attempt: the end whose first report came last decides (at the same millisecond, the larger id). Without an
    end, the furthest step in the documented order decides.
    Of a message: that of the attempt that decides, the last one with an end. So an end holds until another one is
    reported: a message that failed stays failed while it is tried again.
Contradiction
    Two ends of different outcome within one attempt.
Latencies
    Observed report latencies: differences of the times at which reports were *received*, because the payload has no
    event time. They belong to the attempt that decides; `total_s` belongs to the message as a whole. The latency of a
    step is null and flagged if its report is missing although a later one came, or if it would be negative.
Device and channel
    Of an attempt: from the report of its end, if that names one, or else from the newest observation of the attempt
    that does. So no phone is charged with the end that another one reported. Of a message: those of the attempt that
    decides.
Delivery
    `delivered_at` is the time when the attempt that decides was first reported as delivered. It is null if the outcome
    is not delivered, also if an earlier end was.
Expiry
    An open message expires if nothing was reported for `expire_after`. The expiry is a fact like any other, so every
    later reader has it. A later report reopens the message, and a later end replaces the expiry.
"""

from collections.abc import Mapping
from typing import Any, Final, Self

import msgspec

from gateway.events import MAX_NAME_LENGTH, StatusReport
from gateway.statuses import ACCEPTED, DELIVERED, INCOMING, PENDING, SENT, Outcome, StatusCode

EXPIRE_AFTER_MS: Final = 86_400_000

_UNDELIVERED: Final = 8
# Constants, because each access to a member's `value` is a look-up.
_DELIVERED, _EXPIRED = Outcome.DELIVERED.value, Outcome.EXPIRED.value
_INCOMING, _UNKNOWN = Outcome.INCOMING.value, Outcome.UNKNOWN.value

_FLAG_LATE: Final = "late_after_forgetting"


class MessageSummary(msgspec.Struct, gc=False):
    """The fields that versions and outcomes share. Times are milliseconds since 1970 UTC, latencies are seconds."""

    source: str
    sms_id: int
    outcome: str
    failure_class: str | None
    last_status_id: int
    is_ended: bool
    device_id: int | None
    channel_id: int | None
    first_seen_at: int
    ended_at: int | None
    attempts: int
    queue_s: float | None
    device_s: float | None
    network_s: float | None
    total_s: float | None


class AttemptDetails(msgspec.Struct, gc=False, array_like=True):
    """One of several attempts of a message. Times are milliseconds since 1970 UTC, latencies are seconds.

    Without an end, `ended_at` is None, and outcome and status are those of its furthest step.
    """

    device_id: int | None
    channel_id: int | None
    started_at: int
    last_seen_at: int
    ended_at: int | None
    outcome: str
    failure_class: str | None
    status_id: int
    queue_s: float | None
    device_s: float | None
    network_s: float | None


class MessageVersion(MessageSummary, gc=False, omit_defaults=True):
    """One version of a message's lifecycle: the value of a record on `sms.messages`.

    `version` is the number of facts: it only grows, and a larger version of a message contains the smaller one. An
    observation is status_id, device_id, channel_id, sent_at, first received, last received. `expired_at` is the time of
    the last expiry, also if the message was reopened since. `attempt_details` are those of each attempt, if there are
    several: nearly all messages have one, which the other fields describe.
    """

    recipient: str | None
    last_seen_at: int
    delivered_at: int | None
    expired_at: int | None
    contradicted: bool
    flags: list[str]
    version: int
    observations: list[list[int | None]]
    attempt_details: list[AttemptDetails] | None = None


class OutcomeRecord(MessageSummary, gc=False, omit_defaults=True):
    """The end of an attempt, or a change of its outcome: the value of a record on `sms.outcomes`.

    The times and latencies are of the attempt. `attempts` is the number of attempts of the message so far.

    Attributes:
        correction: Whether an outcome of the attempt was reported before.
        previous: That outcome; None if it is not known.
        late: Whether the message had been evicted before its first report in this state.
        attempt: Number of the attempt, from 1.
    """

    correction: bool
    previous: str | None
    # Written only if they differ from these: nearly no message is late, and most have one attempt.
    late: bool = False
    attempt: int = 1


class AttemptScan(msgspec.Struct, gc=False):
    """An attempt, as far as its observations were scanned.

    Attributes:
        begin: Position of its first observation.
        first_at: Time of the first report by status.
        end: The end that decides; None without an end.
        end_device_id, end_channel_id: Those that the report of that end named.
        newest_device_id, newest_channel_id: The newest ones that were named.
        furthest, step: The largest rank, and its status.
    """

    begin: int = 0
    first_at: dict[int, int] = {}
    end: int | None = None
    end_device_id: int | None = None
    end_channel_id: int | None = None
    newest_device_id: int | None = None
    newest_channel_id: int | None = None
    furthest: int = -1
    step: int | None = None

    @property
    def device_id(self) -> int | None:
        """The phone that is charged with it."""
        return self.newest_device_id if self.end_device_id is None else self.end_device_id

    @property
    def channel_id(self) -> int | None:
        """The channel that is charged with it."""
        return self.newest_channel_id if self.end_channel_id is None else self.end_channel_id


class ObservationScan(msgspec.Struct, gc=False):
    """Scan over observations in their order. It continues at its position when more observations follow.

    Attributes:
        done: Number of observations that were read.
        attempts: The attempts. Each but the last has an end.
        decisive: The attempt that decides: the last one with an end, or the first.
        device_id, channel_id: The newest ones that were named.
        ended_place: The newest device and channel that were known at the last end; None if no end was reported since
            the current attempt began.
        before_failure: Statuses before the last failure; none if the current attempt began after it.
        contradicted, reordered, unknown, incoming: Whether there was a contradiction, a step after a later one, a
            status that is not known, and status 5.
    """

    done: int = 0
    attempts: list[AttemptScan] = msgspec.field(default_factory=lambda: [AttemptScan()])
    decisive: AttemptScan = msgspec.UNSET  # type: ignore[assignment]
    device_id: int | None = None
    channel_id: int | None = None
    ended_place: tuple[int | None, int | None] | None = None
    before_failure: frozenset[int] = frozenset()
    contradicted: bool = False
    reordered: bool = False
    unknown: bool = False
    incoming: bool = False

    def __post_init__(self) -> None:
        # The first attempt decides until one has an end.
        self.decisive = self.attempts[0]

    def is_other_place(self, device_id: int | None, channel_id: int | None) -> bool:
        """Return whether a report names another device or channel than those known at the last end."""
        if self.ended_place is None:
            return False
        ended_device_id, ended_channel_id = self.ended_place
        return _are_different(device_id, ended_device_id) or _are_different(channel_id, ended_channel_id)


class MessageState(msgspec.Struct, gc=False):
    """All facts about one message.

    Args:
        source: The gateway account.
        sms_id: The gateway's id of the message.
        late: Whether the message had been evicted before its first report.
        recipient: The smallest in text order of the reported ones; in practice there is one.
        expired_at: The latest deadline, in milliseconds, that passed without a report.
        last_seen_at: Time when the newest report was received, in milliseconds.
        observations: The observations, in the form of a version.
        repeated: Number of observations that were received more than once.
        scan: Covers the observations in their order. None while they are not sorted.
    """

    source: str
    sms_id: int
    late: bool = False
    recipient: str | None = None
    expired_at: int | None = None
    last_seen_at: int = 0
    observations: list[list[Any]] = []
    repeated: int = 0
    scan: ObservationScan | None = msgspec.field(default_factory=ObservationScan)

    def has_observation(self, report: StatusReport) -> bool:
        """Return whether the report belongs to an existing observation."""
        observed = [report.status_id, report.device_id, report.channel_id, report.sent_at]
        return any(row[:4] == observed for row in self.observations)

    def add_report(self, report: StatusReport, received_at: int) -> bool:
        """Add one report; return whether it changed a fact."""
        _, status_id, device_id, channel_id, sent_at, recipient, _, _ = report
        changed = self._add_observation(status_id, device_id, channel_id, sent_at, received_at)
        if recipient is not None and (self.recipient is None or recipient < self.recipient):
            self.recipient = recipient
            return True
        return changed

    def mark_expired(self, deadline: int) -> None:
        """Add the fact that a deadline, in milliseconds, passed without a report."""
        self.expired_at = max(deadline, self.expired_at or deadline)

    def _add_observation(
        self, status_id: int, device_id: int | None, channel_id: int | None, sent_at: int | None, at: int
    ) -> bool:
        rows = self.observations
        # A loop, because observations are few: a table would take more time, and twice the memory.
        for row in rows:
            if row[0] == status_id and row[1] == device_id and row[2] == channel_id and row[3] == sent_at:
                if row[4] <= at <= row[5]:
                    return False
                self.repeated += row[4] == row[5]
                if at < row[4]:
                    row[4] = at
                    self.scan = None
                row[5] = max(at, row[5])
                break
        else:
            if rows and at <= rows[-1][4]:
                self.scan = None
            rows.append([status_id, device_id, channel_id, sent_at, at, at])
        self.last_seen_at = max(self.last_seen_at, at)
        return True

    @classmethod
    def from_version(cls, version: MessageVersion) -> Self:
        """Return the facts of a version."""
        facts = cls(version.source, version.sms_id, late=_FLAG_LATE in version.flags)
        # An earlier release accepted an address of any length. Each further version would copy it.
        is_bounded = version.recipient is not None and len(version.recipient) <= MAX_NAME_LENGTH
        facts.recipient = version.recipient if is_bounded else None
        facts.expired_at = version.expired_at
        facts.last_seen_at = version.last_seen_at
        facts.observations = [row.copy() for row in version.observations]
        facts.repeated = sum(row[4] < row[5] for row in facts.observations)
        return facts


class LifecycleRules:
    """Derives versions from facts, for one table of statuses.

    Args:
        table: The meaning of each status id. Other ids have no effect.
        expire_after_ms: Milliseconds without a report after which an open message expires.
    """

    def __init__(self, table: Mapping[int, StatusCode], expire_after_ms: int = EXPIRE_AFTER_MS) -> None:
        self.expire_after_ms = expire_after_ms
        self._outcomes = {id_: status.outcome.value for id_, status in table.items()}
        self._failure_classes = {id_: status.failure_class for id_, status in table.items()}
        self._ranks = {id_: status.rank for id_, status in table.items() if status.rank is not None}
        self._ends = frozenset(id_ for id_, status in table.items() if status.is_end)
        self._failures = frozenset(id_ for id_, status in table.items() if status.is_failure)

    def derive_version(self, facts: MessageState) -> MessageVersion:
        """Return the version that follows from the facts. It shares its observations with the facts.

        Raises:
            IndexError: There are no observations.
        """
        scan, rows = self._scan_observations(facts), facts.observations
        attempt = scan.decisive
        first_seen_at: int = rows[0][4]
        ended_at: int | None
        status = attempt.end
        if status is not None:
            ended_at, outcome = attempt.first_at[status], self._outcomes[status]
            total_s = (ended_at - first_seen_at) / 1000
        else:
            ended_at = total_s = None
            status, outcome = self._find_open_outcome(scan, rows[-1][0])
            deadline = facts.last_seen_at + self.expire_after_ms
            if facts.expired_at is not None and facts.expired_at >= deadline and outcome != _INCOMING:
                ended_at, outcome = facts.expired_at, _EXPIRED
        flags: list[str] = []
        if facts.repeated:
            flags.append("duplicated")
        if scan.reordered:
            flags.append("reordered")
        if scan.unknown:
            flags.append("unknown_status")
        if facts.late:
            flags.append(_FLAG_LATE)
        queue_s, device_s, network_s = _step_latencies(attempt.first_at, flags)
        return MessageVersion(
            facts.source,
            facts.sms_id,
            outcome,
            None if attempt.end is None else self._failure_classes[attempt.end],
            status,
            ended_at is not None,
            attempt.device_id,
            attempt.channel_id,
            first_seen_at,
            ended_at,
            len(scan.attempts),
            queue_s,
            device_s,
            network_s,
            total_s,
            facts.recipient,
            facts.last_seen_at,
            ended_at if outcome == _DELIVERED else None,
            facts.expired_at,
            scan.contradicted,
            flags,
            len(rows) + facts.repeated + (facts.recipient is not None) + (facts.expired_at is not None) + facts.late,
            rows,
            self._describe_attempts(scan, rows) if len(scan.attempts) > 1 else None,
        )

    def _describe_attempts(self, scan: ObservationScan, rows: list[list[Any]]) -> list[AttemptDetails]:
        details = []
        ends = [attempt.begin for attempt in scan.attempts[1:]]
        for attempt, end in zip(scan.attempts, [*ends, len(rows)], strict=True):
            own_rows = rows[attempt.begin : end]
            # A report that begins an attempt has a known status.
            status: Any = attempt.step if attempt.end is None else attempt.end
            details.append(
                AttemptDetails(
                    attempt.device_id,
                    attempt.channel_id,
                    own_rows[0][4],
                    max(row[5] for row in own_rows),
                    None if attempt.end is None else attempt.first_at[status],
                    self._outcomes[status],
                    self._failure_classes[status],
                    status,
                    *_step_latencies(attempt.first_at, []),
                )
            )
        return details

    def _scan_observations(self, facts: MessageState) -> ObservationScan:
        """Sort the observations, if they are not sorted, and return the scan over all of them."""
        scan, rows = facts.scan, facts.observations
        if scan is None:
            rows.sort(key=self._observation_order)
            scan = facts.scan = ObservationScan()
        for row in rows[scan.done :] if scan.done else rows:
            self._scan_observation(scan, row, rows)
        return scan

    def _scan_observation(self, scan: ObservationScan, row: list[Any], rows: list[list[Any]]) -> None:
        """Add the next observation to the scan."""
        status_id, device_id, channel_id, _, first, _ = row
        attempt = scan.attempts[-1]
        rank = self._ranks.get(status_id)
        is_end = status_id in self._ends
        if rank is None:
            scan.incoming = scan.incoming or status_id == INCOMING
            scan.unknown = scan.unknown or status_id != INCOMING
        elif (status_id in scan.before_failure and not is_end) or scan.is_other_place(device_id, channel_id):
            attempt = AttemptScan(scan.done)
            scan.attempts.append(attempt)
            scan.ended_place, scan.before_failure = None, frozenset()
        scan.done += 1
        if device_id is not None:
            scan.device_id = attempt.newest_device_id = device_id
        if channel_id is not None:
            scan.channel_id = attempt.newest_channel_id = channel_id
        if rank is None:
            return
        if status_id not in attempt.first_at:
            attempt.first_at[status_id] = first
            if is_end:
                if attempt.end is not None:
                    scan.contradicted |= self._outcomes[attempt.end] != self._outcomes[status_id]
                attempt.end, attempt.end_device_id, attempt.end_channel_id = status_id, device_id, channel_id
                scan.decisive = attempt
        if rank < attempt.furthest:
            scan.reordered = True
        else:
            attempt.furthest, attempt.step = rank, status_id
        if is_end:
            scan.ended_place = scan.device_id, scan.channel_id
        if status_id in self._failures:
            scan.before_failure = frozenset(read[0] for read in rows[: scan.done])

    def _observation_order(self, row: list[Any]) -> tuple[int, ...]:
        """Return the sort key: the first report; in one millisecond the documented order; then the other fields."""
        status_id, *fields, first, _ = row
        rank = self._ranks.get(status_id, -1)
        return first, rank, status_id, *[-1 if part is None else part for part in fields]

    def _find_open_outcome(self, scan: ObservationScan, newest: int) -> tuple[int, str]:
        """Return status and outcome of a message without an end, whose newest observation has the status `newest`."""
        step = scan.decisive.step
        if step is not None:
            return step, self._outcomes[step]
        if scan.incoming:
            return INCOMING, _INCOMING
        return newest, _UNKNOWN


def _are_different(named: int | None, known: int | None) -> bool:
    return named is not None and known is not None and named != known


def _step_latencies(first_at: Mapping[int, int], flags: list[str]) -> tuple[float | None, float | None, float | None]:
    """Return the latencies queue, device and network, in seconds, of an attempt. Adds a flag for each faulty one.

    Args:
        first_at: Time of the first report by status.
        flags: The flags of the message.
    """
    at = first_at.get
    accepted, sent, delivered = at(ACCEPTED), at(SENT), at(DELIVERED)
    beyond_accepted = sent is not None or delivered is not None or at(_UNDELIVERED) is not None
    return (
        _step_latency("queue", at(PENDING), accepted, beyond_accepted or accepted is not None, flags),
        _step_latency("device", accepted, sent, beyond_accepted, flags),
        _step_latency("network", sent, delivered, delivered is not None, flags),
    )


def _step_latency(name: str, start: int | None, end: int | None, reached: bool, flags: list[str]) -> float | None:
    """Return the seconds between two reports, or None. Adds a flag if the latency should exist."""
    if start is None or end is None:
        if reached:
            flags.append(f"{name}_missing")
        return None
    if end < start:
        flags.append(f"{name}_backwards")
        return None
    return (end - start) / 1000
