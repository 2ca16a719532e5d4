"""Backtest: runs the detectors over past messages of the warehouse, next to a threshold on the ratio."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from core.alerts import Alert, decode_alert
from gateway.statuses import FAILURES
from streams.device_processor import update_detectors
from streams.failure_baseline import DetectorPolicy
from streams.monitored_entity import AttemptEnd, DetectorState, MonitoredEntity
from warehouse.reader import open_warehouse, retry_after_merge

_FAILURE_OUTCOMES: Final = frozenset(outcome.value for outcome in FAILURES)
# Rows that are in memory at once.
_BATCH: Final = 10_000
# A common rule for comparison: the ratio of 15 minutes, from ten messages on.
_WINDOW_MS: Final = 15 * 60_000
_MIN_MESSAGES: Final = 10

# Source, device, channel and end of a message.
EndedMessage = tuple[str, int | None, int | None, AttemptEnd]


@dataclass(frozen=True, slots=True)
class BacktestResult:
    """The result of a backtest.

    Args:
        messages: Number of ended messages.
        first_at, last_at: Time of the first and the last end, in milliseconds; 0 without any.
        changes: Every change of an alert, in order.
        threshold: Channel and time of each time that a ratio of 15 minutes, of at least ten messages, exceeded the
            threshold.
    """

    messages: int
    first_at: int
    last_at: int
    changes: list[Alert]
    threshold: list[tuple[str, int]]

    def alert_episodes(self) -> list[tuple[Alert, Alert | None]]:
        """Return each alert as it fired, with its resolution, or None while it fires."""
        resolved = {(alert.id, alert.fired_at): alert for alert in self.changes if alert.phase == "resolved"}
        fired: dict[tuple[str, int | None], Alert] = {}
        for alert in self.changes:
            if alert.phase == "firing":
                # Later records of the same alert repeat it with newer evidence.
                fired.setdefault((alert.id, alert.fired_at), alert)
        return [(alert, resolved.get(key)) for key, alert in fired.items()]


def read_message_ends(data: Path, since: datetime | None) -> Iterator[EndedMessage]:
    """Yield the ends of messages in order of time; for each message its last end.

    Raises:
        NoWarehouseError: Nothing has landed yet.
    """
    sql = """
        SELECT source, device_id, channel_id, sms_id, last_status_id, outcome, epoch_ms(ended_at) FROM messages
        WHERE is_ended AND outcome <> 'expired' AND ended_at >= coalesce(?::TIMESTAMPTZ, '-infinity')
        ORDER BY ended_at, message_key
    """
    with open_warehouse(data) as connection:
        # The rows are sorted, so the first batch comes after every file was read.
        rows = retry_after_merge(lambda: connection.execute(sql, [since]).fetchmany(_BATCH))
        while rows:
            for source, device_id, channel_id, *end in rows:
                yield source, device_id, channel_id, AttemptEnd(*end)
            rows = connection.fetchmany(_BATCH)


def run_backtest(messages: Iterable[EndedMessage], policy: DetectorPolicy, threshold: float) -> BacktestResult:
    """Run the detectors as the stream does, except for the order of messages that end at the same time.

    Args:
        messages: The ends of messages.
        policy: Settings of the detectors. Each monitored entity begins to learn with its first message here.
        threshold: Failure ratio of the rule on fifteen minutes.
    """
    detector_states: dict[tuple[str | int | None, ...], DetectorState] = defaultdict(DetectorState)
    channels: dict[tuple[str, int | None], set[int | None]] = defaultdict(set)
    windows: dict[tuple[str | int | None, ...], _RatioThresholdRule]
    windows = defaultdict(lambda: _RatioThresholdRule(threshold))
    count = first_at = last_at = 0
    changes: list[Alert] = []
    threshold_crossings: list[tuple[str, int]] = []

    def monitored_entity(source: str, *of: int | None, fleet: MonitoredEntity | None = None) -> MonitoredEntity:
        return MonitoredEntity(detector_states[source, *of], policy, source, of, fleet)

    for source, device_id, channel_id, end in messages:
        count, first_at, last_at = count + 1, first_at or end.at, end.at
        known = channels[source, device_id]
        known.add(channel_id)
        fleet = monitored_entity(source)
        device = monitored_entity(source, device_id, fleet=fleet) if len(known) > 1 else None
        channel = monitored_entity(source, device_id, channel_id, fleet=fleet)
        outputs = update_detectors(end, channel, device, fleet)
        changes += [decode_alert(output.value or b"") for output in outputs]
        if windows[source, device_id, channel_id].add_message_end(end.outcome in _FAILURE_OUTCOMES, end.at):
            threshold_crossings.append((f"{source}:{device_id}:{channel_id}", end.at))
    return BacktestResult(count, first_at, last_at, changes, threshold_crossings)


class _RatioThresholdRule:
    """The common simple rule: the failure ratio of fifteen minutes."""

    def __init__(self, threshold: float) -> None:
        self._threshold, self._failed, self._is_over = threshold, 0, False
        self._ends: deque[tuple[bool, int]] = deque()

    def add_message_end(self, failed: bool, at: int) -> bool:
        """Add the end of a message; return whether the ratio exceeds the threshold with it, and did not before."""
        self._ends.append((failed, at))
        self._failed += failed
        while self._ends[0][1] <= at - _WINDOW_MS:
            self._failed -= self._ends.popleft()[0]
        was_over = self._is_over
        self._is_over = len(self._ends) >= _MIN_MESSAGES and self._failed > self._threshold * len(self._ends)
        return self._is_over and not was_over
