"""The processor of outcomes: which ends reach the detectors of channels, devices and sources."""

import json
from typing import Any

import pytest
from outcome_records import DELIVERED, DENIED, EXPIRED, T0, outcome_record

from core.topics import ALERTS, DEADLETTERS
from streams.device_processor import DeviceProcessor
from streams.failure_baseline import DetectorPolicy
from streams.processor import ProcessorOutput

HOUR = 3_600_000


class Devices:
    """A processor with its store."""

    def __init__(self) -> None:
        self.store: dict[bytes, bytes] = {}

    def run(self, *records: Any) -> ProcessorOutput:
        outputs = DeviceProcessor(self.store.get, DetectorPolicy()).process(records)
        self.store |= {key: value or b"" for key, value, _ in outputs.states}
        return outputs

    def observed(self, key: bytes = b"gw:8001:1") -> int:
        """Return the number of outcomes that the detector of a channel, device or source has observed."""
        detector = json.loads(self.store[key])["watch"]["detector"] if key in self.store else {"known": 0, "count": 0}
        return round(detector["known"] + detector["count"])


def test_each_end_is_observed_by_its_channel_and_source_and_by_a_device_with_several_channels() -> None:
    devices = Devices()
    devices.run(*(outcome_record(DELIVERED, n, T0 + n) for n in range(3)))
    devices.run(*(outcome_record(DELIVERED, n, T0 + n, channel_id=None) for n in range(3, 5)))
    devices.run(outcome_record(DELIVERED, 5, T0 + 5, device_id=None))
    assert {key: devices.observed(key) for key in sorted(devices.store)} == {
        b"gw:*:*": 6, b"gw:-:*": 0, b"gw:-:1": 1, b"gw:8001:*": 2, b"gw:8001:-": 2, b"gw:8001:1": 3,
    }  # fmt: skip


def test_a_state_has_its_entity_and_its_detector() -> None:
    devices = Devices()
    devices.run(outcome_record(DELIVERED, 1, T0))
    states = {key: json.loads(value) for key, value in devices.store.items()}
    assert {key: {name: state[name] for name in state if name != "watch"} for key, state in states.items()} == {
        b"gw:8001:1": {"source": "gw", "device_id": 8001, "channel_id": 1},
        b"gw:8001:*": {"source": "gw", "device_id": 8001, "channels": [1]},
        b"gw:*:*": {"source": "gw"},
    }


@pytest.mark.parametrize(
    ("record", "observed"),
    [
        (outcome_record(DELIVERED, 1, T0), 1),
        (outcome_record(DELIVERED, 1, T0, correction=True, previous="expired"), 1),
        (outcome_record(DELIVERED, 1, T0, correction=True, previous="undelivered"), 0),
        (outcome_record(DELIVERED, 1, T0, correction=True, late=True), 0),
        (outcome_record(DELIVERED, 1, T0, correction=True, late=True, previous="expired"), 0),
        (outcome_record(EXPIRED, 1, T0), 0),
        (outcome_record((6, "sent"), 1, None, correction=True, previous="expired"), 0),
    ],
    ids=["first end", "after an expiry", "another end", "evicted", "evicted and expired", "expiry", "reopened"],
)
def test_a_message_is_observed_only_at_its_first_outcome(record: Any, observed: int) -> None:
    devices = Devices()
    devices.run(record)
    assert devices.observed() == observed


def test_an_invalid_outcome_is_a_dead_letter_and_the_others_are_processed() -> None:
    broken = [outcome_record(DELIVERED, 1, T0) for _ in range(4)]
    for record, value in zip(broken, (b"{", b'{"source": "gw"}', None, b'{"source": 1}'), strict=True):
        record.value = value
    devices = Devices()
    outputs = devices.run(*broken, outcome_record(DELIVERED, 2, T0))
    letters = [each for each in outputs.records if each.topic != ALERTS]
    assert [(each.topic, dict(each.headers or [])["reason"]) for each in letters] == [(DEADLETTERS, b"not_outcome")] * 4
    assert devices.observed() == 1


EARLIER_STATES = {
    b"gw:8001:1": {
        "source": "gw", "device_id": 8001, "channel_id": 1, "first_seen_at": T0, "last_seen_at": T0 + HOUR,
        "last_outcome": "delivered", "last_status_id": 7, "last_ended_at": T0 + HOUR, "reports": 5, "incoming": 1,
        "open": 0, "delivered": 1, "expired": 0, "not_permitted": 1, "not_sent": 0, "undelivered": 0,
        "errors": {"100": 1}, "gaps": [0] * 24,
        "watch": {
            "detector": {"known": 300.0, "failed": 9.0, "phase": "quiet", "last_at": T0 + HOUR, "bound": 0.05},
            "denied": {"since": T0, "count": 1, "errors": {"100": 1}, "samples": [1]},
        },
    },
    b"gw:8001:*": {"source": "gw", "device_id": 8001, "channels": [1], "watch": {}},
    b"gw:*:*": {"source": "gw", "watch": {"detector": {"known": 300.0, "failed": 9.0, "bound": 0.05}}},
}  # fmt: skip
"""States of an earlier release, which counted the outcomes of another topic."""


def test_outcomes_that_an_earlier_release_counted_from_another_topic_are_not_counted_or_reported_again() -> None:
    devices = Devices()
    devices.store = {key: json.dumps(state).encode() for key, state in EARLIER_STATES.items()}
    # The first worker of this release reads the outcomes of thirty days.
    again = [outcome_record(DENIED, 1, T0), outcome_record(DELIVERED, 2, T0 + HOUR)]
    assert devices.run(*again).records == []
    assert (devices.observed(), devices.observed(b"gw:*:*")) == (300, 300)
    # The order of ends is not that of their times: messages of a device are in several partitions.
    outputs = devices.run(outcome_record(DENIED, 3, T0 + HOUR + 1), *again, outcome_record(DELIVERED, 4, T0 + 2 * HOUR))
    assert (devices.observed(), devices.observed(b"gw:*:*")) == (302, 302)
    alerts = [json.loads(each.value or b"") for each in outputs.records if each.topic == ALERTS]
    assert [(each["kind"], each["phase"], each["since"]) for each in alerts] == [("not_permitted", "resolved", T0)]
    state = json.loads(devices.store[b"gw:8001:1"])
    assert state.keys() == {"source", "device_id", "channel_id", "watch", "last_ended_at"}
