"""Alerts that the processor of devices writes to `sms.alerts`."""

# ruff: noqa: S311 - traffic, not secrets

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from outcome_records import DELIVERED, DENIED, EXPIRED, NO_SERVICE, T0, UNDELIVERED, outcome_record

from core.alerts import Alert, decode_alert
from core.intervals import wilson_interval
from core.topics import ALERTS
from streams.device_processor import DeviceProcessor
from streams.failure_baseline import DetectorPolicy
from streams.processor import ProcessorOutput

MINUTE = 60_000


class Devices:
    """A processor with its store and its alerts. Its clock advances a minute with each message."""

    def __init__(self) -> None:
        self.store: dict[bytes, bytes] = {}
        self.written: list[Alert] = []
        self.alerts: dict[bytes | None, bytes | None] = {}
        self._sms_id = 0

    def records(self, *ends: tuple[int, str], device: int | None = 8001, channel: int = 1, **fields: Any) -> list[Any]:
        made = []
        for end in ends:
            self._sms_id += 1
            at = T0 + self._sms_id * MINUTE
            made.append(outcome_record(end, self._sms_id, at, device_id=device, channel_id=channel, **fields))
        return made

    def run(self, *records: Any) -> ProcessorOutput:
        outputs = DeviceProcessor(self.store.get, DetectorPolicy()).process(records)
        self.store |= {key: value or b"" for key, value, _ in outputs.states}
        for each in outputs.records:
            assert each.topic == ALERTS
            alert = decode_alert(each.value or b"")
            assert each.key == alert.id.encode()
            self.written.append(alert)
            self.alerts[each.key] = each.value
        return outputs

    def end(self, *ends: tuple[int, str], **of: Any) -> None:
        self.run(*self.records(*ends, **of))

    def live(self, messages: int, ratio: float = 0.03, seed: int = 1, **of: Any) -> None:
        chance = random.Random(seed)
        for _ in range(messages // 50):
            self.end(*(UNDELIVERED if chance.random() < ratio else DELIVERED for _ in range(50)), **of)

    def changes(self, kind: str = "failure_ratio") -> list[tuple[str, str]]:
        return [(alert.scope, alert.phase) for alert in self.written if alert.kind == kind and alert.fired_at]


@pytest.fixture
def devices() -> Devices:
    """A source with five devices that have worked for some time."""
    made = Devices()
    for device in range(8001, 8006):
        made.live(600, device=device, seed=device)
    made.written.clear()
    return made


def test_a_failing_device_has_one_alert_with_its_evidence_and_one_resolution(devices: Devices) -> None:
    began = T0 + (devices._sms_id + 1) * MINUTE
    for _ in range(30):
        devices.end(NO_SERVICE)
        for other in range(8002, 8006):
            devices.end(DELIVERED, device=other)
    assert devices.changes() == [("channel", "firing")]
    (alert,) = (each for each in devices.written if each.phase == "firing")
    assert (alert.id, alert.device_id, alert.channel_id) == ("failure_ratio:gw:8001:1", 8001, 1)
    assert alert.failures == alert.count == alert.errors["10"] <= 6
    assert alert.since == began
    assert alert.fired_at == alert.changed_at
    assert alert.baseline is not None
    assert alert.bound is not None
    assert 0.01 < alert.baseline < alert.bound < 0.06 < wilson_interval(alert.count, alert.failures)[0]
    assert len(alert.samples) == min(alert.count, 5)
    assert all(sample.startswith("gw:") for sample in alert.samples)
    assert 0 < alert.share <= 1
    for _ in range(100):
        devices.end(DELIVERED)
    assert devices.changes() == [("channel", "firing"), ("channel", "resolved")]
    assert (devices.written[-1].fired_at, devices.written[-1].resolved_at) == (
        alert.fired_at,
        devices.written[-1].changed_at,
    )


def test_the_alert_of_a_failing_source_precedes_those_of_its_devices(devices: Devices) -> None:
    for _ in range(10):
        for device in range(8001, 8006):
            devices.end(UNDELIVERED, device=device)
    assert devices.changes()[0] == ("source", "firing")
    assert devices.written[-1].share <= 1


def test_a_permanently_failing_device_causes_no_alert_of_its_source(devices: Devices) -> None:
    for _ in range(2_000):
        devices.end(UNDELIVERED)
        devices.end(DELIVERED, device=8002)
    assert devices.changes() == [("channel", "firing")]


def test_a_device_with_two_channels_has_its_own_alert() -> None:
    devices = Devices()
    devices.live(1_000, device=8002)
    for _ in range(20):
        devices.live(50, channel=1)
        devices.live(50, channel=2, seed=3)
    for _ in range(20):
        devices.end(NO_SERVICE, channel=1)
        devices.end(NO_SERVICE, channel=2)
    assert ("device", "firing") in devices.changes()
    assert "failure_ratio:gw:8001:*" in {alert.id for alert in devices.written}


def test_a_message_counts_once(devices: Devices) -> None:
    for _ in range(100):
        devices.end(UNDELIVERED, correction=True, previous="delivered")
        devices.end(EXPIRED)
    assert devices.written == []


def test_one_message_that_is_not_permitted_causes_an_alert(devices: Devices) -> None:
    devices.end(DENIED)
    devices.end(DENIED)
    assert devices.changes("not_permitted") == [("channel", "firing")]
    assert devices.written[0].errors == {"100": 1}
    devices.end(DELIVERED)
    assert devices.changes("not_permitted") == [("channel", "firing"), ("channel", "resolved")]
    assert devices.written[-1].errors == {"100": 2}


def test_an_unnamed_device_has_an_alert_too() -> None:
    devices = Devices()
    devices.end(DENIED, device=None)
    assert devices.written[0].id == "not_permitted:gw:-:1"


ENDS = st.lists(
    st.tuples(
        st.sampled_from([DELIVERED, DELIVERED, UNDELIVERED, DENIED, EXPIRED]),
        st.integers(8001, 8002),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=50)
@given(ENDS, st.lists(st.integers(1, 8), min_size=40, max_size=40))
def test_the_division_of_records_into_batches_does_not_matter(
    ends: list[tuple[tuple[int, str], int, int]], sizes: list[int]
) -> None:
    one, many = Devices(), Devices()
    one.run(*(one.records(end, device=device, channel=channel)[0] for end, device, channel in ends))
    records = [many.records(end, device=device, channel=channel)[0] for end, device, channel in ends]
    for size in sizes:
        many.run(*records[:size])
        records = records[size:]
    assert one.written == many.written
    assert one.store == many.store


def test_a_repeated_batch_writes_the_same(devices: Devices) -> None:
    """As after a transaction that was not committed: only the stored state is kept."""
    run = devices.records(*[UNDELIVERED] * 10)
    first, second = (DeviceProcessor(devices.store.get, DetectorPolicy()).process(run) for _ in range(2))
    assert first == second
    assert first.records


def learning(devices: Devices) -> list[tuple[str, str]]:
    return [
        (alert.id, alert.phase) for alert in devices.written if alert.kind == "failure_ratio" and not alert.fired_at
    ]


def test_a_new_unit_reports_the_start_and_the_end_of_learning() -> None:
    devices = Devices()
    devices.end(DELIVERED)
    assert learning(devices) == [("failure_ratio:gw:8001:1", "learning"), ("failure_ratio:gw:*:*", "learning")]
    assert json.loads(devices.store[b"gw:8001:1"])["watch"]["detector"]["phase"] == "learning"
    devices.written.clear()
    devices.live(250)
    assert learning(devices) == [("failure_ratio:gw:8001:1", "resolved"), ("failure_ratio:gw:*:*", "resolved")]
    assert json.loads(devices.store[b"gw:8001:1"])["watch"]["detector"]["phase"] == "quiet"
    assert devices.changes() == []


def test_while_a_unit_learns_a_message_that_is_not_permitted_and_total_failure_still_fire() -> None:
    devices = Devices()
    devices.end(DENIED)
    assert devices.changes("not_permitted") == [("channel", "firing")]
    devices = Devices()
    devices.end(*[NO_SERVICE] * 30)
    assert devices.changes()[0] == ("channel", "firing")
    (alert,) = (each for each in devices.written if each.fired_at and each.scope == "channel")
    assert alert.baseline is None
    assert alert.errors == {"10": alert.count}


def test_a_phone_that_fails_from_its_start_fires_alone_with_the_ratio_of_the_others() -> None:
    devices, chance = Devices(), random.Random(7)
    for _ in range(400):
        for device in range(8001, 8006):
            ratio = 0.5 if device == 8003 else 0.12
            devices.end(UNDELIVERED if chance.random() < ratio else DELIVERED, device=device)
    assert {alert.id for alert in devices.written if alert.fired_at} == {"failure_ratio:gw:8003:1"}
    (alert,) = (each for each in devices.written if each.phase == "firing")
    assert alert.count == 200
    assert alert.since == T0 + 3 * MINUTE
    assert alert.baseline == pytest.approx(0.12, abs=0.04)
    assert alert.errors.keys() == {"8"}
    assert alert.samples


def test_a_permanent_rise_has_one_alert_and_its_source_does_not_detect_it_again() -> None:
    devices, chance = Devices(), random.Random(9)
    for device in (8001, 8002):
        devices.live(2_000, device=device, seed=device)
    devices.written.clear()
    for _ in range(9_000):
        devices.end(UNDELIVERED if chance.random() < 0.6 else DELIVERED)
        devices.end(UNDELIVERED if chance.random() < 0.03 else DELIVERED, device=8002)
    assert devices.changes() == [("channel", "firing"), ("channel", "resolved")]
    fired, resolved = (alert for alert in devices.written if alert.fired_at)
    assert (fired.resolution, resolved.resolution) == ("", "new_normal")
    assert resolved.resolved_at is not None
    assert resolved.resolved_at - (resolved.fired_at or 0) >= 7 * 24 * 60 * MINUTE
    assert resolved.failures / resolved.count == pytest.approx(0.6, abs=0.03)
    assert resolved.baseline == fired.baseline
    source = json.loads(devices.store[b"gw:*:*"])["watch"]["detector"]
    assert source["failed"] / source["known"] == pytest.approx(0.3, abs=0.06)


def test_a_new_normal_of_a_device_is_also_that_of_its_channels() -> None:
    devices, chance = Devices(), random.Random(11)
    for _ in range(20):
        devices.live(50, channel=1, seed=chance.randrange(1000))
        devices.live(50, channel=2, seed=chance.randrange(1000))
    devices.live(1_000, device=8002)
    devices.written.clear()
    for _ in range(9_000):
        devices.end(UNDELIVERED if chance.random() < 0.6 else DELIVERED, channel=chance.choice((1, 1, 1, 2)))
        devices.end(UNDELIVERED if chance.random() < 0.03 else DELIVERED, device=8002)
    written = [alert for alert in devices.written if alert.device_id == 8001 and alert.fired_at]
    # The alert of a firing device is written again with later evidence if one of its channels fires or ends.
    times = {(alert.id, alert.fired_at) for alert in written if alert.phase == "firing"}
    fired = [id_ for id_, _ in times]
    ended = {alert.id: alert for alert in written if alert.phase == "resolved"}
    ids = [f"failure_ratio:gw:8001:{name}" for name in "*12"]
    assert sorted(fired) == sorted(ended) == ids
    assert {alert.resolution for alert in ended.values()} == {"new_normal"}
    wider, *narrower = (ended[id_].changed_at for id_ in ids)
    assert all(at - wider < 60 * MINUTE for at in narrower)


OLD_DETECTOR = {
    "known": 300.0, "failed": 0.0, "repeated": 0.0, "fresh": 3, "parts": [75.0, 0.0] * 4, "block": 50,
    "block_at": T0 - 90_000 * MINUTE, "bound": 0.0107, "repeats": 0.0, "evidence": [0.0] * 6, "cusum": 2.0,
    "since": T0 - 20_000 * MINUTE, "count": 15_000, "failures": 3_000, "repetitions": 0, "steep": 1.0,
    "steep_since": 0, "steep_count": 0, "steep_failures": 0, "last_failed": False, "last_at": T0 - MINUTE,
    "phase": "firing", "level": 0.05, "recovery": 1.0,
}  # fmt: skip
"""A state of the version before learning: a permanent alert of a card that always had 20 %."""


def old_state(**detector: Any) -> bytes:
    watch = {"detector": OLD_DETECTOR | detector, "fired_at": T0 - 20_000 * MINUTE, "recent": 10.0, "recent_at": T0}
    watch |= {"failures": [[1, 8]], "errors": {"8": 3_000}, "denied": None}
    counts = dict.fromkeys(("open", "delivered", "undelivered", "not_sent", "not_permitted", "expired"), 0)
    return json.dumps(
        {"source": "gw", "device_id": 8001, "channel_id": 1, "first_seen_at": None, "last_seen_at": None, "reports": 0}
        | {"incoming": 0, "last_outcome": None, "last_status_id": None, "last_ended_at": None, "errors": {}}
        | {"gaps": [0] * 24, "watch": watch}
        | counts
    ).encode()


def test_a_state_of_an_earlier_version_keeps_its_baseline() -> None:
    devices = Devices()
    calm = {
        "phase": "quiet",
        "count": 0,
        "failures": 0,
        "cusum": 1.0,
        "known": 5_000.0,
        "failed": 150.0,
        "bound": 0.036,
    }
    devices.store[b"gw:8001:1"] = old_state(**calm).replace(
        b'"fired_at": %d' % (T0 - 20_000 * MINUTE), b'"fired_at": null'
    )
    devices.end(DELIVERED)
    assert ("failure_ratio:gw:8001:1", "learning") not in learning(devices)
    devices.end(*[UNDELIVERED] * 10)
    assert ("channel", "firing") in devices.changes()
