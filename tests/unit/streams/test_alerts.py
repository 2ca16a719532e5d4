"""What the fold of devices tells on `sms.alerts`."""

# ruff: noqa: S311 - traffic, not secrets

import json
import random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.alerts import Alert, decode
from gateway.topics import ACTIVITY, ALERTS
from streams.devices import DeviceFold
from streams.fold import Outputs

T0 = 1_760_000_000_000
MINUTE = 60_000
NOTHING = {"first_at": None, "last_at": None, "reports": 0, "incoming": 0, "counts": {}}
DELIVERED, UNDELIVERED, NO_SERVICE, DENIED = (
    (7, "delivered"),
    (8, "undelivered"),
    (10, "not_sent"),
    (100, "not_permitted"),
)
EXPIRED = (6, "expired")


class Devices:
    """A fold with its store, and all that it told; its clock goes on a minute with each message."""

    def __init__(self) -> None:
        self.store: dict[bytes, bytes] = {}
        self.told: list[Alert] = []
        self.alerts: dict[bytes | None, bytes | None] = {}
        self._sms_id = 0

    def record(self, *ends: tuple[int, str], device: int | None = 8001, channel: int = 1, again: bool = False) -> Any:
        listed = []
        for status_id, outcome in ends:
            self._sms_id += 1
            listed.append([self._sms_id, status_id, outcome, T0 + self._sms_id * MINUTE, again])
        value = NOTHING | {"source": "gw", "device_id": device, "channel_id": channel, "ends": listed}
        return SimpleNamespace(
            topic=ACTIVITY, partition=0, offset=0, key=b"", value=json.dumps(value).encode(), headers=[]
        )

    def run(self, *records: Any) -> Outputs:
        outputs = DeviceFold(self.store.get, 30).run(records)
        self.store |= {key: value or b"" for key, value, _ in outputs.states}
        for each in outputs.others:
            assert each.topic == ALERTS
            alert = decode(each.value or b"")
            assert each.key == alert.id.encode()
            self.told.append(alert)
            self.alerts[each.key] = each.value
        return outputs

    def end(self, *ends: tuple[int, str], **of: Any) -> None:
        self.run(self.record(*ends, **of))

    def live(self, messages: int, ratio: float = 0.03, seed: int = 1, **of: Any) -> None:
        chance = random.Random(seed)
        for _ in range(messages // 50):
            self.end(*(UNDELIVERED if chance.random() < ratio else DELIVERED for _ in range(50)), **of)

    def changes(self, kind: str = "failure_ratio") -> list[tuple[str, str]]:
        return [(alert.scope, alert.phase) for alert in self.told if alert.kind == kind and alert.fired_at]


@pytest.fixture
def devices() -> Devices:
    """A source with five devices that have been well for a while."""
    made = Devices()
    for device in range(8001, 8006):
        made.live(600, device=device, seed=device)
    made.told.clear()
    return made


def test_a_device_that_fails_is_told_once_with_its_evidence_and_once_when_it_is_well(devices: Devices) -> None:
    began = T0 + (devices._sms_id + 1) * MINUTE
    for _ in range(30):
        devices.end(NO_SERVICE)
        for other in range(8002, 8006):
            devices.end(DELIVERED, device=other)
    assert devices.changes() == [("channel", "firing")]
    (alert,) = (each for each in devices.told if each.phase == "firing")
    assert (alert.id, alert.device_id, alert.channel_id) == ("failure_ratio:gw:8001:1", 8001, 1)
    assert alert.failures == alert.count == alert.errors["10"] <= 6
    assert alert.since == began
    assert alert.fired_at == alert.changed_at
    assert alert.baseline is not None
    assert alert.bound is not None
    assert 0.01 < alert.baseline < alert.bound < 0.06 < alert.interval[0]
    assert len(alert.samples) == min(alert.count, 5)
    assert all(sample.startswith("gw:") for sample in alert.samples)
    assert 0 < alert.share <= 1
    for _ in range(100):
        devices.end(DELIVERED)
    assert devices.changes() == [("channel", "firing"), ("channel", "resolved")]
    assert (devices.told[-1].fired_at, devices.told[-1].resolved_at) == (alert.fired_at, devices.told[-1].changed_at)


def test_a_source_that_fails_is_told_before_its_devices(devices: Devices) -> None:
    for _ in range(10):
        for device in range(8001, 8006):
            devices.end(UNDELIVERED, device=device)
    assert devices.changes()[0] == ("source", "firing")
    assert devices.told[-1].share <= 1


def test_a_device_that_fails_for_ever_is_not_the_sources_alert(devices: Devices) -> None:
    for _ in range(2_000):
        devices.end(UNDELIVERED)
        devices.end(DELIVERED, device=8002)
    assert devices.changes() == [("channel", "firing")]


def test_a_device_with_two_channels_has_an_alert_of_its_own() -> None:
    devices = Devices()
    devices.live(1_000, device=8002)
    for _ in range(20):
        devices.live(50, channel=1)
        devices.live(50, channel=2, seed=3)
    for _ in range(20):
        devices.end(NO_SERVICE, channel=1)
        devices.end(NO_SERVICE, channel=2)
    assert ("device", "firing") in devices.changes()
    assert "failure_ratio:gw:8001:*" in {alert.id for alert in devices.told}


def test_a_message_counts_once(devices: Devices) -> None:
    for _ in range(100):
        devices.end(UNDELIVERED, again=True)
        devices.end(EXPIRED)
    assert devices.told == []


def test_one_message_that_is_not_permitted_is_enough(devices: Devices) -> None:
    devices.end(DENIED)
    devices.end(DENIED)
    assert devices.changes("not_permitted") == [("channel", "firing")]
    assert devices.told[0].errors == {"100": 1}
    devices.end(DELIVERED)
    assert devices.changes("not_permitted") == [("channel", "firing"), ("channel", "resolved")]
    assert devices.told[-1].errors == {"100": 2}


def test_what_no_report_names_has_an_alert_too() -> None:
    devices = Devices()
    devices.end(DENIED, device=None)
    assert devices.told[0].id == "not_permitted:gw:-:1"


ENDS = st.lists(
    st.tuples(
        st.sampled_from([DELIVERED, DELIVERED, UNDELIVERED, DENIED, EXPIRED]),
        st.integers(8001, 8002),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=40,
)


@settings(max_examples=50, deadline=None)
@given(ENDS, st.lists(st.integers(1, 8), min_size=40, max_size=40))
def test_how_records_are_spread_over_runs_does_not_matter(
    ends: list[tuple[tuple[int, str], int, int]], sizes: list[int]
) -> None:
    one, many = Devices(), Devices()
    one.run(*(one.record(end, device=device, channel=channel) for end, device, channel in ends))
    records = [many.record(end, device=device, channel=channel) for end, device, channel in ends]
    for size in sizes:
        many.run(*records[:size])
        records = records[size:]
    assert one.told == many.told
    assert one.store == many.store


def test_a_run_that_is_repeated_tells_the_same(devices: Devices) -> None:
    """As after a transaction that was not committed: nothing is kept but what is stored."""
    record = devices.record(*[UNDELIVERED] * 10)
    first, second = (DeviceFold(devices.store.get, 30).run([record]) for _ in range(2))
    assert first == second
    assert first.others
