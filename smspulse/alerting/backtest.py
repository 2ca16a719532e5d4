"""Runs the detectors over the messages of the warehouse, beside what a ratio threshold would have done."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from core.alerts import Alert, decode_alert
from gateway.statuses import FAILURES
from streams.detector_policy import DetectorPolicy
from streams.detector_state import DetectorState, MessageEnd
from streams.failure_alerts import update_detectors
from streams.monitored_entity import MonitoredEntity
from warehouse.reader import open_warehouse, retry_after_merge

_FAILURE_OUTCOMES: Final = frozenset(outcome.value for outcome in FAILURES)
_BATCH: Final = 10_000
_WINDOW_MS: Final = 15 * 60_000
_MIN_MESSAGES: Final = 10

EndedMessage = tuple[str, int | None, int | None, MessageEnd]
"""Source, device, channel and end of a message."""


@dataclass(frozen=True, slots=True)
class BacktestResult:
    """What was found.

    Args:
        messages: How many ended.
        first_at, last_at: When the first and the last did, in milliseconds; 0 if none did.
        changes: Every change of an alert, in its order.
        threshold: How often a channel's ratio of 15 minutes, of ten messages or more, went over the threshold.
    """

    messages: int
    first_at: int
    last_at: int
    changes: list[Alert]
    threshold: list[tuple[str, int]]

    def alert_episodes(self) -> list[tuple[Alert, Alert | None]]:
        """Return each alert as it fired, and as it was resolved if it was."""
        resolved = {(alert.id, alert.fired_at): alert for alert in self.changes if alert.phase == "resolved"}
        fired: dict[tuple[str, int | None], Alert] = {}
        for alert in self.changes:
            if alert.phase == "firing":
                fired.setdefault((alert.id, alert.fired_at), alert)  # repeated with later evidence
        return [(alert, resolved.get(key)) for key, alert in fired.items()]


def read_message_ends(data: Path, since: datetime | None) -> Iterator[EndedMessage]:
    """Yield how messages ended, in the order in which they did; of each its last end.

    Raises:
        NoWarehouseError: Nothing has landed yet.
    """
    sql = """
        SELECT source, device_id, channel_id, sms_id, last_status_id, outcome, epoch_ms(ended_at) FROM messages
        WHERE is_ended AND outcome <> 'expired' AND ended_at >= coalesce(?::TIMESTAMPTZ, '-infinity')
        ORDER BY ended_at, message_key
    """
    with open_warehouse(data) as connection:
        # Sorted, nothing comes before every file has been read.
        rows = retry_after_merge(lambda: connection.execute(sql, [since]).fetchmany(_BATCH))
        while rows:
            for source, device_id, channel_id, *end in rows:
                yield source, device_id, channel_id, MessageEnd(*end)
            rows = connection.fetchmany(_BATCH)


def run_backtest(messages: Iterable[EndedMessage], policy: DetectorPolicy, threshold: float) -> BacktestResult:
    """Run the detectors, as the stream does but for the order of messages that end at the same time.

    Args:
        messages: How they ended.
        policy: Settings of the detectors. Each unit begins to learn with its first message here.
        threshold: Ratio of failures that a rule on fifteen minutes would have.
    """
    detector_states: dict[tuple[str | int | None, ...], DetectorState] = {}
    channels: dict[tuple[str, int | None], set[int | None]] = {}
    windows: dict[tuple[str | int | None, ...], _RatioThresholdRule] = {}
    count = first_at = last_at = 0
    changes: list[Alert] = []
    threshold_crossings: list[tuple[str, int]] = []

    def monitored_entity(source: str, *of: int | None, fleet: MonitoredEntity | None = None) -> MonitoredEntity:
        state = detector_states.setdefault((source, *of), DetectorState())
        return MonitoredEntity(state, policy, source, *of, fleet=fleet)

    for source, device_id, channel_id, end in messages:
        count, first_at, last_at = count + 1, first_at or end.at, end.at
        known = channels.setdefault((source, device_id), set())
        known.add(channel_id)
        fleet = monitored_entity(source)
        device = monitored_entity(source, device_id, fleet=fleet) if len(known) > 1 else None
        channel = monitored_entity(source, device_id, channel_id, fleet=fleet)
        outputs = update_detectors([end], channel, device, fleet)
        changes += [decode_alert(output.value or b"") for output in outputs]
        window = windows.setdefault((source, device_id, channel_id), _RatioThresholdRule(threshold))
        if window.add_message_end(end.outcome in _FAILURE_OUTCOMES, end.at):
            threshold_crossings.append((f"{source}:{device_id}:{channel_id}", end.at))
    return BacktestResult(count, first_at, last_at, changes, threshold_crossings)


class _RatioThresholdRule:
    """The rule that most begin with: the ratio of fifteen minutes."""

    def __init__(self, threshold: float) -> None:
        self._threshold, self._failed, self._is_over = threshold, 0, False
        self._ends: deque[tuple[bool, int]] = deque()

    def add_message_end(self, failed: bool, at: int) -> bool:
        """Take the end of a message; return whether the ratio goes over the threshold with it."""
        self._ends.append((failed, at))
        self._failed += failed
        while self._ends[0][1] <= at - _WINDOW_MS:
            self._failed -= self._ends.popleft()[0]
        was, self._is_over = (
            self._is_over,
            (len(self._ends) >= _MIN_MESSAGES and self._failed > self._threshold * len(self._ends)),
        )
        return self._is_over and not was
