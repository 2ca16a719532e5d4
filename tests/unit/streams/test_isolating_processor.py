"""No record can stop a processor. An error costs only the record that raises it."""

import json
from collections.abc import Callable
from datetime import UTC
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.records import message_key
from core.topics import DEADLETTERS, OUTCOMES, RAW
from gateway.errors import Reason
from gateway.statuses import STATUSES
from streams import metrics, processor
from streams.device_processor import DeviceProcessor
from streams.errors import StateError
from streams.failure_baseline import DetectorPolicy
from streams.lifecycle import LifecycleRules
from streams.message_processor import MessageProcessor
from streams.processor import IsolatingProcessor, ProcessorOutput, StateLoader

T0 = 1_760_000_000_000
HOUR = 3_600_000
EXPIRE, FORGET = 24 * HOUR, 168 * HOUR
POISON = 66
"""A status id on which the processor of these tests fails."""


def record(offset: int, sms_id: int, status_id: int, *, at: int | None = None, **fields: Any) -> Any:
    body = {"sms_id": sms_id, "status_id": status_id, "device_id": 8001, "channel_id": 1} | fields
    received_at = T0 + (offset * 1000 if at is None else at)
    return SimpleNamespace(
        topic=RAW, partition=2, offset=offset, timestamp=received_at, key=message_key("gw", sms_id),
        value=json.dumps(body).encode(), headers=[("source", b"gw"), ("received_at", b"%d" % received_at)],
    )  # fmt: skip


class FailingProcessor(MessageProcessor):
    """Fails as a parser or a bug might: before any change, or between two changes."""

    error: BaseException = RecursionError("maximum recursion depth exceeded")
    fails_late = False

    def _process_record(self, record: Any, *given: Any) -> None:
        is_poison = json.loads(record.value)["status_id"] == POISON
        if is_poison and not self.fails_late:
            raise self.error
        super()._process_record(record, *given)
        if is_poison:
            raise self.error


def make(load: StateLoader, kind: type[MessageProcessor] = FailingProcessor) -> MessageProcessor:
    return kind(LifecycleRules(STATUSES, EXPIRE), load, UTC, 100, FORGET)


class Owner:
    """Commits the output of an isolated processor, as a partition does."""

    def __init__(self, making: Callable[[StateLoader], Any] = make) -> None:
        self.store: dict[bytes, bytes] = {}
        self.due: dict[bytes, int] = {}
        self.processor = IsolatingProcessor(making, self.store.get)

    def run(self, *records: Any) -> ProcessorOutput:
        outputs = self.processor.process(records)
        assert len({key for key, _, _ in outputs.states}) == len(outputs.states), "a key has one state a transaction"
        for key, value, due in outputs.states:
            self.store[key] = value or b""
            if due is not None:
                self.due[key] = min(due, self.due.get(key, due))
        return outputs


def assert_reminded_in_time(owner: Owner, spared: Owner) -> None:
    """Each state is evaluated at its time or earlier. An early evaluation sets the next time."""
    assert owner.due.keys() == spared.due.keys()
    assert all(owner.due[key] <= due for key, due in spared.due.items())


def records_of(outputs: ProcessorOutput, topic: str) -> list[Any]:
    return [each for each in outputs.records if each.topic == topic]


def as_read(outputs: list[Any]) -> list[Any]:
    """Return records as the next stage reads them."""
    return [SimpleNamespace(value=each.value, partition=0) for each in outputs]


def observed_ends(outputs: ProcessorOutput) -> int:
    """Return the number of outcomes that the detector of the source observes."""
    states = DeviceProcessor({}.get, DetectorPolicy()).process(as_read(records_of(outputs, OUTCOMES))).states
    detectors = [json.loads(value)["watch"]["detector"] for key, value, _ in states if value and key == b"gw:*:*"]
    return sum(round(each["known"] + each["count"]) for each in detectors)


@pytest.mark.parametrize("error", [RecursionError(), MemoryError(), ZeroDivisionError(), KeyError("+4915712345")])
@pytest.mark.parametrize("fails_late", [False, True])
def test_an_error_costs_only_the_record_that_raises_it(
    error: Exception, fails_late: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FailingProcessor, "error", error)
    monkeypatch.setattr(FailingProcessor, "fails_late", fails_late)
    owner, spared = Owner(), Owner()
    poison = record(3, 17, POISON)
    others = [record(1, 17, 1), record(2, 18, 6), record(4, 17, 7), record(5, 18, 7)]
    outputs = owner.run(*others[:2], poison, *others[2:])
    spared.run(*others)
    assert owner.store == spared.store
    assert_reminded_in_time(owner, spared)
    (letter,) = records_of(outputs, DEADLETTERS)
    headers = dict(letter.headers)
    assert (letter.key, letter.value, letter.partition) == (poison.key, poison.value, 2)
    assert headers["reason"] == Reason.FAULT.encode()
    assert headers["detail"] == f"{type(error).__name__} while it was processed".encode()
    assert headers["origin"] == b"sms.raw:2:3"
    assert outputs.faults == 1
    assert "+4915712345" not in caplog.text + str(headers)
    assert len(caplog.text) < 1_000


@settings(max_examples=150)
@given(
    st.lists(
        st.tuples(st.integers(1, 3), st.sampled_from([1, 3, 2, 6, 7, 9, 5, POISON]), st.integers(0, 40 * HOUR)),
        max_size=14,
    ),
    st.integers(0, 14),
)
def test_records_next_to_a_failing_one_have_the_same_output_as_without_it(
    reports: list[tuple[int, int, int]], at_once: int
) -> None:
    records = [record(n, sms_id, status_id, at=at) for n, (sms_id, status_id, at) in enumerate(reports)]
    owner, spared = Owner(), Owner(partial(make, kind=MessageProcessor))
    poison = record(99, 2, POISON)
    made, due = ProcessorOutput(), ProcessorOutput()
    for part in (records[:at_once], records[at_once:]):
        guarded = owner.run(*part, poison)
        alone = spared.run(*[each for each in part if json.loads(each.value)["status_id"] != POISON])
        made.records, made.ends = made.records + guarded.records, made.ends + guarded.ends
        due.records, due.ends = due.records + alone.records, due.ends + alone.ends
    assert owner.store == spared.store
    assert_reminded_in_time(owner, spared)
    # A message may have an intermediate outcome that a whole batch never writes; the last outcome is the same.
    failing = [each.value for each in records if json.loads(each.value)["status_id"] == POISON]
    assert sorted(each.value for each in records_of(made, DEADLETTERS)) == sorted(
        [*failing, poison.value, poison.value]
    )
    outcomes: list[dict[int, str]] = [{}, {}]
    for found, outputs in zip(outcomes, (made, due), strict=True):
        for each in records_of(outputs, OUTCOMES):
            value = json.loads(each.value)
            found[value["sms_id"]] = value["outcome"]
    assert outcomes[0] == outcomes[1]
    assert observed_ends(made) == observed_ends(due) == len(outcomes[0])


def test_many_failing_records_cost_linear_time() -> None:
    calls = 0

    class Counting(FailingProcessor):
        def _process_record(self, record: Any, *given: Any) -> None:
            nonlocal calls
            calls += 1
            super()._process_record(record, *given)

    owner = Owner(partial(make, kind=Counting))
    outputs = owner.run(*(record(n, n, POISON) for n in range(500)))
    assert len(records_of(outputs, DEADLETTERS)) == outputs.faults == 500
    assert calls <= 2 * 500


def test_a_state_that_is_too_large_for_kafka_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    owner = Owner()
    owner.run(record(1, 17, 6))
    limit = len(owner.store[b"gw:17"]) + 200
    monkeypatch.setattr(processor, "MAX_RECORD_BYTES", limit)
    reports = [record(2 + n, 17, 6, senttime=f"2026-07-11 12:00:{n:02}") for n in range(20)]
    outputs = owner.run(*reports, record(30, 18, 7))
    letters = records_of(outputs, DEADLETTERS)
    assert 0 < len(letters) < len(reports)
    assert all(b"OversizedRecordError" in dict(letter.headers)["detail"] for letter in letters)
    assert len(json.loads(owner.store[b"gw:17"])["observations"]) == 1 + len(reports) - len(letters)
    assert len(owner.store[b"gw:17"]) <= limit
    assert json.loads(owner.store[b"gw:18"])["outcome"] == "delivered"


def test_a_failing_timer_is_postponed_and_the_others_run() -> None:
    class Stuck(FailingProcessor):
        def _write_version(self, key: bytes, message: Any, *given: Any) -> None:
            if key == b"gw:17" and message.expired_at:
                raise RecursionError
            super()._write_version(key, message, *given)

    owner = Owner(partial(make, kind=Stuck))
    owner.run(record(1, 17, 6), record(2, 18, 6))
    now = T0 + EXPIRE + HOUR
    outputs = owner.processor.on_timer([b"gw:17", b"gw:18"], now)
    assert [key for key, _, _ in outputs.states] == [b"gw:18"]
    assert outputs.rescheduled == [(b"gw:17", now + HOUR)]
    assert outputs.faults == 1


def test_an_error_of_the_disk_is_not_one_of_a_record() -> None:
    def load(_: bytes) -> bytes:
        msg = "cannot read the state"
        raise StateError(msg)

    fold = IsolatingProcessor(make, load)
    with pytest.raises(StateError):
        fold.process([record(1, 17, 6)])
    with pytest.raises(StateError):
        fold.on_timer([b"gw:17"], T0)


def test_isolated_records_are_counted_once_they_are_committed() -> None:
    faults, dead = metrics.FAULTS.labels(RAW)._value, metrics.DEAD._value
    before = faults.get(), dead.get()
    metrics.count_commit(RAW, 2, Owner().run(record(1, 17, POISON), record(2, 18, 7)))
    assert (faults.get(), dead.get()) == (before[0] + 1, before[1] + 1)


def test_a_device_with_ever_more_channels_has_a_small_state() -> None:
    messages, devices = (
        Owner(partial(make, kind=MessageProcessor)),
        Owner(lambda load: DeviceProcessor(load, DetectorPolicy())),
    )
    for start in range(0, 2_000, 500):
        made = messages.run(*(record(n, n, 7, channel_id=n) for n in range(start, start + 500)))
        devices.run(*as_read(records_of(made, OUTCOMES)))
    assert len(json.loads(devices.store[b"gw:8001:*"])["channels"]) == 64
