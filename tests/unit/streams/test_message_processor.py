"""The processor of reports: versions and outcomes, with a simulated clock."""

import json
from collections import Counter
from datetime import UTC
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.records import MAX_OBSERVATIONS, message_key
from core.topics import DEADLETTERS, OUTCOMES, RAW
from gateway import payloads
from gateway.statuses import STATUSES
from streams.device_processor import DeviceProcessor
from streams.failure_baseline import DetectorPolicy
from streams.lifecycle import AttemptDetails, LifecycleRules
from streams.message_processor import MessageProcessor
from streams.processor import ProcessorOutput

T0 = 1_760_000_000_000
HOUR = 3_600_000
EXPIRE, FORGET = 24 * HOUR, 168 * HOUR


def record(status_id: int, at: int = 0, sms_id: int = 17, **fields: Any) -> Any:
    body = {"sms_id": sms_id, "status_id": status_id, "device_id": 8001, "channel_id": 1} | fields
    headers = [("source", b"gw"), ("received_at", b"%d" % (T0 + at))]
    return SimpleNamespace(
        topic=RAW, partition=2, offset=5, timestamp=T0 + at, key=message_key("gw", sms_id),
        value=json.dumps(body).encode(), headers=headers,
    )  # fmt: skip


class Stream:
    """A processor with a store and its outcomes. After `reopen`, it has only the store."""

    def __init__(self) -> None:
        self.store: dict[bytes, bytes] = {}
        self.outcomes: list[Any] = []
        self.dead: list[Any] = []
        self.devices: dict[bytes, bytes] = {}
        self.reopen()

    def reopen(self) -> None:
        self._processor = MessageProcessor(LifecycleRules(STATUSES, EXPIRE), self.store.get, UTC, 100, FORGET)

    def run(self, *records: Any) -> ProcessorOutput:
        return self._take(self._processor.process(records))

    def on_timer(self, now: int) -> ProcessorOutput:
        return self._take(self._processor.on_timer(list(self.store), T0 + now))

    def _take(self, outputs: ProcessorOutput) -> ProcessorOutput:
        for key, value, _ in outputs.states:
            self.store[key] = value or b""
        for key in outputs.expired:
            del self.store[key]
        outcomes: list[Any] = [
            SimpleNamespace(value=other.value, partition=0) for other in outputs.records if other.topic == OUTCOMES
        ]
        states = DeviceProcessor(self.devices.get, DetectorPolicy()).process(outcomes).states
        self.devices |= {key: value or b"" for key, value, _ in states}
        self.outcomes += [json.loads(each.value or b"") for each in outputs.records if each.topic == OUTCOMES]
        self.dead += [each for each in outputs.records if each.topic == DEADLETTERS]
        return outputs

    @property
    def version(self) -> Any:
        return json.loads(self.store[message_key("gw", 17)])

    def summary(self) -> list[tuple[str, bool, str | None]]:
        return [(each["outcome"], each["correction"], each["previous"]) for each in self.outcomes]

    def observed(self, key: bytes = b"gw:*:*") -> int:
        """Return the number of outcomes that the detector of a channel or source has observed."""
        detector = json.loads(self.devices[key])["watch"]["detector"] if key in self.devices else {}
        return round(detector.get("known", 0) + detector.get("count", 0))


def later(at: int) -> ProcessorOutput:
    return ProcessorOutput(rescheduled=[(message_key("gw", 17), T0 + at)])


@pytest.fixture
def stream() -> Stream:
    return Stream()


def test_a_message_has_one_first_outcome(stream: Stream) -> None:
    for status_id in (1, 3, 2, 6, 7, 7, 6):
        stream.run(record(status_id, status_id))
        stream.reopen()
    (outcome,) = stream.outcomes
    assert (outcome["outcome"], outcome["correction"], outcome["device_id"], outcome["is_ended"]) == (
        "delivered",
        False,
        8001,
        True,
    )
    assert stream.observed() == 1


def test_another_outcome_is_a_correction(stream: Stream) -> None:
    stream.run(record(7, 1))
    stream.run(record(8, 2))
    assert stream.summary() == [("delivered", False, None), ("undelivered", True, "delivered")]
    assert stream.observed() == 1


def test_an_open_message_expires_at_its_time_and_not_before(stream: Stream) -> None:
    stream.run(record(1), record(6, HOUR))
    assert stream.on_timer(HOUR + EXPIRE - 1) == later(HOUR + EXPIRE)
    stream.on_timer(HOUR + EXPIRE)
    seen = stream.version
    assert (seen["outcome"], seen["is_ended"], seen["ended_at"]) == ("expired", True, T0 + HOUR + EXPIRE)
    assert (seen["last_status_id"], seen["total_s"], seen["failure_class"]) == (6, None, None)
    assert stream.summary() == [("expired", False, None)]
    assert stream.observed() == 0
    assert stream.on_timer(HOUR + EXPIRE + 1) == later(HOUR + FORGET)


def test_an_ended_message_does_not_expire(stream: Stream) -> None:
    stream.run(record(9))
    assert stream.on_timer(FORGET - 1) == later(FORGET)


def test_an_expired_message_is_revived_by_an_outcome(stream: Stream) -> None:
    stream.run(record(6))
    stream.on_timer(EXPIRE)
    stream.run(record(7, EXPIRE + HOUR))
    assert (stream.version["outcome"], stream.version["version"]) == ("delivered", 3)
    assert stream.summary() == [("expired", False, None), ("delivered", True, "expired")]
    assert stream.observed() == 1


def test_an_expired_message_is_revived_by_a_step_and_expires_again(stream: Stream) -> None:
    stream.run(record(2))
    stream.on_timer(EXPIRE)
    stream.reopen()
    stream.run(record(6, 2 * EXPIRE))
    assert (stream.version["outcome"], stream.version["is_ended"]) == ("sent", False)
    stream.reopen()
    stream.on_timer(3 * EXPIRE)
    assert stream.version["ended_at"] == T0 + 3 * EXPIRE
    assert stream.summary() == [("expired", False, None), ("sent", True, "expired"), ("expired", True, "expired")]
    assert stream.observed() == 0


def test_a_report_from_before_the_expiry_that_is_read_after_it_revokes_the_expiry(stream: Stream) -> None:
    stream.run(record(2))
    stream.on_timer(EXPIRE)
    stream.run(record(6, EXPIRE - HOUR))
    assert stream.version["outcome"] == "sent"


def test_a_report_after_the_eviction_is_marked_as_late(stream: Stream) -> None:
    stream.run(record(7))
    assert stream.on_timer(FORGET).states == [(message_key("gw", 17), None, T0 + 2 * FORGET)]
    stream.reopen()
    stream.run(record(8, FORGET + HOUR))
    assert ("late_after_forgetting" in stream.version["flags"], stream.version["outcome"]) == (True, "undelivered")
    stream.reopen()
    stream.run(record(8, FORGET + 2 * HOUR))
    assert stream.version["flags"][:2] == ["duplicated", "late_after_forgetting"]
    assert stream.summary() == [("delivered", False, None), ("undelivered", True, None)]
    assert [each.get("late") for each in stream.outcomes] == [None, True]
    assert stream.observed() == 1


def test_no_state_of_a_message_is_left_after_a_second_such_period(stream: Stream) -> None:
    stream.run(record(7))
    stream.on_timer(FORGET)
    stream.on_timer(2 * FORGET)
    assert stream.store == {}


def test_the_timer_of_a_state_is_the_same_from_the_changelog(stream: Stream) -> None:
    processor = stream._processor
    for outputs in (stream.run(record(6)), stream.on_timer(EXPIRE), stream.on_timer(FORGET)):
        for _, value, due in outputs.states:
            assert processor.next_timer(value, T0 + FORGET) == due


def test_an_incoming_message_leaves_no_state(stream: Stream) -> None:
    texts = [record(5, at) for at in range(2)]
    for text in texts:
        text.value = json.dumps(
            {"sms_id": 17, "device_id": 8001, "channel_id": 1, "address": "1", "body": "x"}
        ).encode()
    assert stream.run(*texts) == ProcessorOutput()
    stream.run(record(7, 4))
    assert (stream.version["sms_id"], stream.version["version"]) == (17, 1)


def test_the_mark_of_an_incoming_message_of_an_earlier_release_is_removed_in_time(stream: Stream) -> None:
    stream.store[b"gw:incoming:17"] = b""
    stream.on_timer(FORGET)
    assert stream.store == {}


def test_a_message_that_changes_its_device_ends_there(stream: Stream) -> None:
    stream.run(record(1, 0, device_id=None))
    stream.run(record(7, 1))
    assert (stream.observed(b"gw:-:1"), stream.observed(b"gw:8001:1")) == (0, 1)


@pytest.mark.parametrize("header", [None, b"", b"soon", b"9" * 40])
def test_an_unreadable_time_of_receipt_is_replaced_by_that_of_kafka(stream: Stream, header: bytes | None) -> None:
    one = record(1, 5)
    one.headers = [("source", b"gw"), ("received_at", header)]
    stream.run(one)
    assert stream.version["first_seen_at"] == T0 + 5


def size(outputs: ProcessorOutput) -> int:
    return sum(len(value or b"") for _, value, _ in outputs.states) + sum(len(o.value or b"") for o in outputs.records)


def test_a_long_address_is_not_copied_into_each_version(stream: Stream) -> None:
    hostile = [record(1, n, n, sendto="+" + "4" * 253_000) for n in range(5)]
    small = [record(6, n, n % 5, device_id=n) for n in range(750)]
    written = sum(size(stream.run(each)) for each in (*hostile, *small))
    sent = sum(len(each.value) for each in (*hostile, *small))
    # Otherwise, 1.3 MB of reports become 186 MB of versions.
    assert written < 3 * sent
    assert all(json.loads(state)["recipient"] is None for state in stream.store.values())


def test_a_long_address_of_an_earlier_release_is_dropped_with_the_next_report(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(payloads.events, "MAX_NAME_LENGTH", 10**6)
        stream.run(record(6, 1, sendto="+" + "4" * 253_000))
    assert len(stream.version["recipient"]) == 253_001
    stream.reopen()
    stream.run(record(7, 2))
    assert (stream.version["recipient"], stream.version["outcome"]) == (None, "delivered")


def test_a_dead_letter_has_the_beginning_of_its_record_and_names_it(stream: Stream) -> None:
    rubbish = record(6, 1)
    for value in (bytes(range(256)) * 977, b"{" * 4_096, b"", None):
        rubbish.value = value
        stream.run(rubbish)
    assert [letter.value for letter in stream.dead] == [(bytes(range(256)) * 16), b"{" * 4_096, b"", None]
    assert dict(stream.dead[0].headers)["origin"] == b"sms.raw:2:5"


def test_a_record_without_a_source_is_a_dead_letter(stream: Stream) -> None:
    one = record(1)
    one.headers = []
    stream.run(one, record(7, 1))
    ((_, _, _, partition, headers),) = stream.dead
    assert (partition, dict(headers)["reason"]) == (2, b"missing_header")
    assert stream.version["outcome"] == "delivered"


events = st.lists(
    st.tuples(
        st.sampled_from([1, 3, 2, 6, 7, 8, 9, 55, 101]),
        st.integers(0, 5),
        st.integers(1, 4),
        st.sampled_from([None, 8001, 8002]),
    ),
    max_size=25,
)


# Five times 30 hours, so that no message is evicted. Later reports would not be observed.
@given(events, st.lists(st.sampled_from(["cut", "reopen", "again", "expire"]), max_size=5), st.randoms())
def test_every_attempt_is_counted_once_for_any_reports(reports: Any, faults: list[str], random: Any) -> None:
    stream, batch, now = Stream(), [], 0
    arrived: dict[int, list[int]] = {}
    for status_id, at, sms_id, device_id in reports:
        arrived.setdefault(sms_id, []).append(now + at)
        batch.append(record(status_id, now + at, sms_id, device_id=device_id))
        if faults and random.random() < 0.5:
            fault = faults.pop()
            stream.run(*batch)
            if fault == "again":
                stream.run(*batch)
            elif fault == "reopen":
                stream.reopen()
            elif fault == "expire":
                now += 30 * HOUR
                stream.on_timer(now)
            batch = []
    stream.run(*batch)
    versions = [json.loads(value) for value in stream.store.values()]
    observed = [
        (each["sms_id"], each.get("attempt", 1))
        for each in stream.outcomes
        if each["is_ended"] and each["outcome"] != "expired" and each["previous"] in {None, "expired"}
    ]
    assert stream.observed() == len(observed)
    firsts = Counter((each["sms_id"], each.get("attempt", 1)) for each in stream.outcomes if not each["correction"])
    for sms_id, times in arrived.items():
        # A report that arrives after a later one can make one attempt of two, and a further one can part them again.
        if times == sorted(times):
            assert all(count == 1 for (id_, _), count in firsts.items() if id_ == sms_id)
            assert len(set(observed)) == len(observed) or sms_id not in dict(observed)
    for each in versions:
        details = [AttemptDetails(*values) for values in each.get("attempt_details", ())]
        ends = [attempt.outcome for attempt in details if attempt.ended_at is not None] or [each["outcome"]]
        if each["is_ended"]:
            written = {one.get("attempt", 1): one for one in stream.outcomes if one["sms_id"] == each["sms_id"]}
            assert [written[number]["outcome"] for number in range(1, len(ends) + 1)] == ends


def _many_reports(count: int) -> list[Any]:
    return [record(6, at, senttime=f"2026-07-11 12:{at // 60:02}:{at % 60:02}") for at in range(count)]


def test_a_message_with_endless_reports_has_a_maximum_size(stream: Stream) -> None:
    stream.run(*_many_reports(MAX_OBSERVATIONS))
    stream.run(record(7, 2000), record(7, 2000, sms_id=18))
    assert [dict(dead.headers)["reason"] for dead in stream.dead] == [b"too_many_reports"]
    assert (stream.version["outcome"], len(stream.version["observations"])) == ("sent", MAX_OBSERVATIONS)


def test_a_full_message_still_accepts_known_reports(stream: Stream) -> None:
    reports = _many_reports(MAX_OBSERVATIONS)
    stream.run(*reports)
    known = reports[3]
    headers = [
        ("received_at", str(T0 + 5000).encode()) if name == "received_at" else (name, value)
        for name, value in known.headers
    ]
    known.headers = headers
    stream.run(known, record(7, 6000))
    assert [dict(dead.headers)["reason"] for dead in stream.dead] == [b"too_many_reports"]
    assert (stream.version["last_seen_at"], stream.version["flags"][0]) == (T0 + 5000, "duplicated")


def test_messages_in_memory_are_also_limited_by_bytes() -> None:
    store: dict[bytes, bytes] = {}
    fold = MessageProcessor(LifecycleRules(STATUSES, EXPIRE), store.get, UTC, 50, FORGET, max_observations=1_000)

    def run(*records: Any) -> None:
        store.update({key: value or b"" for key, value, _ in fold.process(records).states})

    for sms_id in range(40):
        run(record(6, 0, sms_id=sms_id))
    assert len(fold._cache) == 40
    run(record(6, 1, sms_id=0, sendto="+" + "4" * 200_000))
    assert fold._cache.weight <= 50
    for sms_id in range(40):
        run(*(record(6, n, sms_id=sms_id, senttime=f"2026-07-11 12:{n // 60:02}:{n % 60:02}") for n in range(300)))
    assert 0 < len(fold._cache) < 5
    assert fold._cache.weight <= 50
    for sms_id in range(40):
        run(record(7, 2000, sms_id=sms_id))
    assert (len(fold._cache), fold._cache.weight) == (0, 0)
    versions = [json.loads(value) for value in store.values()]
    assert {(each["outcome"], len(each["observations"])) for each in versions} == {("delivered", 302)}


def test_messages_without_a_report_for_five_minutes_are_read_from_the_store_again() -> None:
    store: dict[bytes, bytes] = {}
    fold = MessageProcessor(LifecycleRules(STATUSES, EXPIRE), store.get, UTC, 50, FORGET)

    def run(*records: Any) -> None:
        store.update({key: value or b"" for key, value, _ in fold.process(records).states})

    for sms_id in range(10):
        run(record(2, 30_000 * sms_id, sms_id=sms_id))
    assert len(fold._cache) == 10
    run(record(2, 400_000, sms_id=10))
    assert sorted(fold._cache._messages) == sorted(message_key("gw", sms_id) for sms_id in range(4, 11))
    run(record(7, 400_001, sms_id=0), record(6, 390_000, sms_id=1))
    first, second = (json.loads(store[message_key("gw", sms_id)]) for sms_id in (0, 1))
    assert (first["outcome"], len(first["observations"])) == ("delivered", 2)
    assert (second["outcome"], second["device_s"]) == ("sent", 360.0)
