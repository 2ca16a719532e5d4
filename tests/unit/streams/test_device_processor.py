"""The processor of outcomes: which ends reach the detectors of channels, devices and sources."""

import json
from typing import Any

import pytest
from outcome_records import DELIVERED, EXPIRED, T0, outcome_record

from core.topics import ALERTS, DEADLETTERS
from streams.device_processor import DeviceProcessor
from streams.failure_baseline import DetectorPolicy
from streams.processor import ProcessorOutput


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
