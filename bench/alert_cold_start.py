"""Alerts of new units, after a permanent rise, and of the demo. Simulated in event time, with seeds.

Everything goes through the shipped code: detectors alone, or both folds of the stream.
"""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC
from itertools import islice
from types import SimpleNamespace
from typing import Any

import numpy as np

from core import records
from core.alerts import FAILURE_RATIO, Alert, decode_alert
from core.topics import ALERTS, OUTCOMES, RAW
from gateway.errors import UnreadablePayload
from gateway.payloads import parse_payload
from gateway.statuses import STATUSES
from smspulse.simulator.options import (
    DEMO_BEHAVIOUR,
    DEMO_LONGEST_DELAY_S,
    DEMO_RATE,
    DEMO_TIME_SCALE,
    GatewayBehaviour,
)
from smspulse.simulator.scenarios import generate_scenarios
from streams.change_detector import ChangeDetector
from streams.device_processor import DeviceProcessor, update_detectors
from streams.failure_baseline import DetectorPolicy
from streams.lifecycle import LifecycleRules
from streams.message_processor import MessageProcessor
from streams.monitored_entity import AttemptEnd, DetectorState, MonitoredEntity
from streams.processor import OutputRecord

_SOURCE = "demo"
DAY_MS = 86_400_000
_START_MS = 1_767_600_000_000
_CHUNK = 20_000  # messages drawn at once
_HOUR_MS = 3_600_000
_LEAST_DELAY_S = 0.003  # as between two requests of the simulator


@dataclass(frozen=True, slots=True)
class NewUnit:
    """A unit without history.

    Args:
        ratio: Of failures.
        rate: Messages a second, Poisson.
        days: How long.
        seed: Of the traffic.
        rises_after: Days after which the ratio changes; never if None.
        risen: The ratio from then on.
        device_ids: The ratio of a fleet that is known well; None if nothing is known of any.
    """

    ratio: float
    rate: float
    days: float
    seed: int
    rises_after: float | None = None
    risen: float = 0.0
    device_ids: float | None = None


@dataclass(frozen=True, slots=True)
class Episodes:
    """Changes of a unit's alert.

    Args:
        fired: Days after the start at which it fired.
        ended: Days at which it ended, each with the reason.
        firing: Part of the time in which it fired.
    """

    fired: list[float]
    update_detectors: list[tuple[float, str]]
    firing: float


def _ends(unit: NewUnit) -> Iterator[tuple[bool, int]]:
    """Yield whether each message failed and when it ended, in milliseconds."""
    chance = np.random.default_rng(unit.seed)
    at, until = float(_START_MS), _START_MS + unit.days * DAY_MS
    change = np.inf if unit.rises_after is None else _START_MS + unit.rises_after * DAY_MS
    while at < until:
        times = at + np.cumsum(chance.exponential(1000 / unit.rate, _CHUNK))
        failed = chance.random(_CHUNK) < np.where(times < change, unit.ratio, unit.risen)
        at = times[-1]
        times = times[times < until]
        yield from zip(failed[: len(times)].tolist(), times.astype(np.int64).tolist(), strict=True)


def episodes(unit: NewUnit, policy: DetectorPolicy) -> Episodes:
    """Return the alerts of a new unit."""
    detector, was_firing, fired_at = ChangeDetector(), False, 0
    fleet = None if unit.device_ids is None else known_fleet(unit.device_ids)
    fires: list[float] = []
    ends: list[tuple[float, str]] = []
    firing_ms = 0.0
    take = detector.observe_outcome
    for failed, at in _ends(unit):
        is_firing = take(failed, at, policy, fleet) == "firing"
        if is_firing == was_firing:
            continue
        was_firing = is_firing
        if is_firing:
            fired_at = at
            fires.append((at - _START_MS) / DAY_MS)
        else:
            firing_ms += at - fired_at
            ends.append(((at - _START_MS) / DAY_MS, detector.resolution))
    if was_firing:
        firing_ms += _START_MS + unit.days * DAY_MS - fired_at
    return Episodes(fires, ends, firing_ms / (unit.days * DAY_MS))


def known_fleet(ratio: float, messages: int = 1_000_000) -> ChangeDetector:
    """Return the detector of a fleet with a long history."""
    return ChangeDetector(known=float(messages), failed=ratio * messages)


def new_fleet(task: tuple[float, float, int, float, int]) -> tuple[int, float]:
    """Return the alarms of a source with new channels, and the average share of time in which each of them fires.

    All begin with the first message, and nothing is wrong: ratio, messages a second of each channel, channels, days,
    seed.
    """
    ratio, rate, channels, days, seed = task
    policy = DetectorPolicy()
    source = MonitoredEntity(DetectorState(), policy, _SOURCE)
    units = [MonitoredEntity(DetectorState(), policy, _SOURCE, (number, 0), source) for number in range(channels)]
    chance = np.random.default_rng(seed)
    fired_at: dict[str, int] = {}
    alarms = firing_ms = 0
    whole = NewUnit(ratio, rate * channels, days, seed)
    for sms_id, (failed, at) in enumerate(_ends(whole)):
        if sms_id % _CHUNK == 0:
            places = chance.integers(channels, size=_CHUNK).tolist()
        end = AttemptEnd(sms_id, 8 if failed else 7, "undelivered" if failed else "delivered", at)
        for output in update_detectors(end, units[places[sms_id % _CHUNK]], None, source):
            alert = decode_alert(output.value or b"")
            if alert.phase == "firing":
                # A source that fires is written again when a channel of it fires or ends.
                alarms += alert.id not in fired_at
                fired_at.setdefault(alert.id, at)
            elif alert.fired_at:
                firing_ms += at - fired_at.pop(alert.id)
    until = _START_MS + days * DAY_MS
    firing_ms += sum(int(until - at) for at in fired_at.values())
    return alarms, firing_ms / (days * DAY_MS * (channels + 1))


def demo_alerts(seed: int, minutes: float, behaviour: GatewayBehaviour = DEMO_BEHAVIOUR) -> list[Alert]:
    """Return all changes of alerts in the demo's first minutes: its traffic through both processors of the stream."""
    alerts: list[Alert] = []
    messages: dict[bytes, bytes] = {}
    devices: dict[bytes, bytes] = {}
    message_fold = MessageProcessor(LifecycleRules(STATUSES), messages.get, UTC, 10_000, 168 * _HOUR_MS)
    device_fold = DeviceProcessor(devices.get, DetectorPolicy())
    for batch in _batches(seed, minutes, behaviour):
        outputs = message_fold.process(batch)
        messages |= {key: value or b"" for key, value, _ in outputs.states}
        outcomes = [_outcome(each) for each in outputs.records if each.topic == OUTCOMES]
        outputs = device_fold.process(outcomes)
        devices |= {key: value or b"" for key, value, _ in outputs.states}
        alerts += [decode_alert(each.value or b"") for each in outputs.records if each.topic == ALERTS]
    return alerts


def _outcome(output: OutputRecord) -> Any:
    return SimpleNamespace(topic=OUTCOMES, partition=0, offset=0, key=output.key, value=output.value, headers=[])


def _batches(seed: int, minutes: float, behaviour: GatewayBehaviour) -> Iterator[list[Any]]:
    """Yield the records of each second."""
    pending: list[tuple[float, int, bytes]] = []
    written = generate_scenarios(seed, None, behaviour)
    number = 0
    for second in range(int(minutes * 60)):
        for place, story in enumerate(islice(written, int(DEMO_RATE))):
            at = second + place / DEMO_RATE
            for webhook in story.webhooks:
                at += max(min(webhook.delay_s * DEMO_TIME_SCALE, DEMO_LONGEST_DELAY_S), _LEAST_DELAY_S)
                number += 1
                heapq.heappush(pending, (at, number, webhook.body))
        batch = []
        while pending and pending[0][0] < second + 1:
            at, _, body = heapq.heappop(pending)
            batch.append(_record(body, _START_MS + int(at * 1000)))
        yield batch


def _record(body: bytes, received_at: int) -> Any:
    """Return the record that ingest writes of a webhook."""
    try:
        key = records.message_key(_SOURCE, parse_payload(body).sms_id)
    except UnreadablePayload:
        key = None
    headers = [
        (records.HEADER_SOURCE, _SOURCE.encode()),
        (records.HEADER_RECEIVED_AT, b"%d" % received_at),
    ]
    return SimpleNamespace(
        topic=RAW, partition=0, offset=0, timestamp=received_at, key=key, value=body, headers=headers
    )


def fired(alerts: list[Alert], *, sick: int) -> tuple[bool, int]:
    """Return whether the alert of the failing phone fired, and the number of alerts that are not only about it."""
    firing = [alert for alert in alerts if alert.phase == "firing"]
    of_the_sick = [alert for alert in firing if alert.device_id == sick]
    return any(alert.kind == FAILURE_RATIO for alert in of_the_sick), len(firing) - len(of_the_sick)
