"""An alert of a source has the channels of its failures, and has them again when an alert of a phone fires or ends."""

import json

import pytest
from outcome_records import DELIVERED, T0, UNDELIVERED, outcome_record

from core.alerts import Alert, decode_alert
from core.topics import ALERTS
from streams.device_processor import DeviceProcessor
from streams.failure_baseline import DetectorPolicy

MINUTE, KEPT = 60_000, 20
PHONES = range(8001, 8006)


class Fleet:
    """Five phones of a source, each with one SIM card, and what is written of their alerts; a message a minute."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        self._store: dict[bytes, bytes] = {}
        self._sms_id = 0

    def end(self, phone: int, *, failed: bool) -> None:
        """End a message of a phone."""
        self._sms_id += 1
        at = T0 + self._sms_id * MINUTE
        record = outcome_record(UNDELIVERED if failed else DELIVERED, self._sms_id, at, device_id=phone)
        outputs = DeviceProcessor(self._store.get, DetectorPolicy(30)).process([record])
        self._store |= {key: state or b"" for key, state, _ in outputs.states}
        self.alerts += [decode_alert(each.value or b"") for each in outputs.records if each.topic == ALERTS]

    def of(self, scope: str) -> list[Alert]:
        return [each for each in self.alerts if each.scope == scope and each.phase == "firing"]


@pytest.fixture
def failing() -> Fleet:
    """A fleet of which every message fails after all were well for a while."""
    fleet = Fleet()
    for number in range(3_000):
        fleet.end(PHONES[number % 5], failed=number % 33 == 0)
    fleet.alerts.clear()
    for number in range(100):
        fleet.end(PHONES[number % 5], failed=True)
    return fleet


def test_a_source_s_alert_has_its_latest_failures_by_channel_with_their_shares_of_its_messages(failing: Fleet) -> None:
    fired = failing.of("source")[0]
    assert sum(each.failures for each in fired.by_channel) == min(fired.failures, KEPT)
    assert {each.channel_id for each in fired.by_channel} == {1}
    assert {each.device_id for each in fired.by_channel} <= set(PHONES)
    assert all(0.15 < each.share < 0.25 for each in fired.by_channel)
    assert fired.share == 1


def test_a_source_s_alert_is_written_again_with_later_evidence_when_a_phone_s_fires(failing: Fleet) -> None:
    first, *later = failing.of("source")
    fired_at = {each.changed_at for each in failing.of("channel") if each.changed_at > first.changed_at}
    assert fired_at
    assert {each.changed_at for each in later} == fired_at
    assert {each.fired_at for each in later} == {first.fired_at}
    assert later[-1].failures > first.failures
    assert sum(each.failures for each in later[-1].by_channel) == KEPT


def test_a_source_s_alert_is_written_again_when_a_phone_s_ends(failing: Fleet) -> None:
    failing.alerts.clear()
    while not (ended := [each for each in failing.alerts if each.scope == "channel" and each.phase == "resolved"]):
        failing.end(8001, failed=False)
        for phone in (8002, 8003, 8004, 8005):
            failing.end(phone, failed=True)
    assert [each.changed_at for each in failing.of("source")] == [ended[0].changed_at]


def test_a_state_of_a_release_that_kept_no_channels_is_read(failing: Fleet) -> None:
    key = next(key for key in failing._store if key.endswith(b":*:*"))
    state = json.loads(failing._store[key])
    del state["watch"]["origins"]
    failing._store[key] = json.dumps(state).encode()
    failing.alerts.clear()
    while not failing.of("source"):
        failing.end(8001, failed=False)
        failing.end(8002, failed=True)
    written = failing.of("source")[-1]
    assert {each.device_id for each in written.by_channel} == {8002}
