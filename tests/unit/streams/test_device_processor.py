"""The fold of activity into states of devices."""

import json
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from core.topics import ACTIVITY, DEADLETTERS
from streams.detector_policy import DetectorPolicy
from streams.device_processor import DeviceProcessor

NOTHING = {"first_at": None, "last_at": None, "reports": 0, "incoming": 0, "counts": {}, "ends": []}
WHO = {"source": "gw", "device_id": 8001, "channel_id": 1}


def record(**fields: Any) -> Any:
    value = json.dumps(WHO | NOTHING | fields).encode()
    return SimpleNamespace(topic=ACTIVITY, partition=0, offset=3, key=b"gw:8001", value=value, headers=[])


def fold(*runs: list[Any]) -> dict[bytes, Any]:
    store: dict[bytes, bytes] = {}
    for run in runs:
        store |= {
            key: value or b"" for key, value, _ in DeviceProcessor(store.get, DetectorPolicy()).process(run).states
        }
    return {key: json.loads(value) for key, value in store.items()}


def test_a_device_has_its_counts_times_and_last_end() -> None:
    seen = fold(
        [record(first_at=1_000, last_at=2_000, reports=3, counts={"open": 2, "delivered": 1})],
        [
            record(first_at=7_500, last_at=8_000, reports=1, incoming=1, counts={"open": -1, "not_sent": 1},
                   ends=[[17, 9, "not_sent", 8_000], [18, 7, "delivered", 7_900]]),
        ],
    )[b"gw:8001:1"]  # fmt: skip
    assert (seen["open"], seen["delivered"], seen["not_sent"], seen["reports"], seen["incoming"]) == (1, 1, 1, 4, 1)
    assert (seen["first_seen_at"], seen["last_seen_at"]) == (1_000, 8_000)
    assert (seen["last_outcome"], seen["last_status_id"], seen["last_ended_at"]) == ("not_sent", 9, 8_000)
    assert seen["errors"] == {"9": 1}
    assert [bucket for bucket, count in enumerate(seen["gaps"]) if count] == [3]  # 5.5 s are within 4 to 8


def test_channels_of_a_device_are_apart() -> None:
    assert set(fold([record(), record(channel_id=None), record(device_id=None)])) == {
        b"gw:8001:1",
        b"gw:8001:-",
        b"gw:-:1",
    }


def test_what_is_no_activity_is_a_dead_letter_and_the_rest_goes_on() -> None:
    broken = [record(), record(), record(), record(reports="1"), record(counts={"sent": 1}), record(first_at=1)]
    broken[0].value, broken[1].value, broken[2].value = b"{", b'{"source": "gw"}', None
    outputs = DeviceProcessor({}.get, DetectorPolicy()).process([*broken, record(reports=1)])
    assert [(each.topic, dict(each.headers or [])["reason"]) for each in outputs.records] == [
        (DEADLETTERS, b"not_activity")
    ] * 6
    assert [(key, json.loads(value or b"")["reports"]) for key, value, _ in outputs.states] == [(b"gw:8001:1", 1)]


@given(st.lists(st.integers(0, 10**8), min_size=1, max_size=12), st.integers(1, 11))
def test_runs_do_not_matter(times: list[int], cut: int) -> None:
    told = [record(first_at=at, last_at=at, reports=1, counts={"open": 1}) for at in times]
    assert fold(told) == fold(told[:cut], told[cut:])
