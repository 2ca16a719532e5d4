"""Records become rows, whatever is in them."""

import logging
from datetime import UTC, datetime, tzinfo
from math import isfinite

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landing import partition_records
from warehouse_records import MadeRecord, at, deadletter, moment, raw, status, tombstone, version

from core import topics
from warehouse import metrics
from warehouse.datasets import DATASET_BY_TOPIC, DATASET_NAMES
from warehouse.schemas import SCHEMAS
from warehouse.sink.partition_records import PartitionRecords
from warehouse.sink.record_conversion import CONVERTERS, DatasetColumns, build_table


def row(record: MadeRecord) -> dict[str, object]:
    (found,) = build_table(partition_records([record])).to_pylist()
    return found


def test_every_dataset_has_a_schema() -> None:
    assert set(DATASET_NAMES) == set(SCHEMAS)


def test_every_field_says_what_it_is() -> None:
    for dataset, schema in SCHEMAS.items():
        for field in schema:
            assert field.metadata[b"description"].endswith(b"."), (dataset, field.name)


def test_a_status_report_is_kept_to_the_byte_and_read() -> None:
    body = orjson.dumps(status(7, 6, senttime="2026-11-24 11:59:00", status_message="sent"))
    found = row(raw(41, body, seconds=3, partition=2))
    assert found["body"] == body
    assert (found["topic"], found["partition"], found["offset"]) == ("sms.raw", 2, 41)
    assert found["recorded_at"] == found["received_at"] == moment(3)
    assert (found["source"], found["ingest_id"], found["content_type"]) == ("acme", "id-41", "application/json")
    assert (found["kind"], found["sms_id"], found["status_id"]) == ("status", 7, 6)
    assert (found["device_id"], found["channel_id"], found["address"]) == (1, 2, "+4915700000001")
    assert found["sent_at"] == datetime(2026, 11, 24, 11, 59, tzinfo=UTC)
    assert (found["status_message"], found["flaws"], found["reason"], found["text"]) == ("sent", [], None, None)


def test_an_incoming_message_is_read() -> None:
    body = {
        "sms_id": 8,
        "type": "text",
        "address": "+49 157",
        "body": "Hi",
        "internal_id": 5,
        "device_name": "A",
        "sim": "x",
    }
    found = row(raw(0, body))
    assert (found["kind"], found["message_type"], found["text"], found["address"]) == (
        "incoming",
        "text",
        "Hi",
        "+49157",
    )
    assert (found["internal_id"], found["device_name"], found["flaws"]) == (5, "A", ["sim"])
    assert found["status_id"] is found["channel_id"] is None


def test_an_unreadable_body_is_kept_with_its_reason() -> None:
    found = row(raw(0, b"\xff{"))
    assert (found["kind"], found["reason"], found["body"], found["sms_id"]) == (
        "unreadable",
        "not_json",
        b"\xff{",
        None,
    )


def test_a_record_without_headers_has_nulls() -> None:
    for topic in (topics.RAW, topics.DEADLETTERS):
        found = row(MadeRecord(topic, 0, 5, -1, None, None, []))
        assert found["offset"] == 5
        assert found["source"] is found["received_at"] is found["recorded_at"] is found["body"] is None


def test_a_version_of_a_message_keeps_its_observations() -> None:
    record = version(
        3, 9, "delivered", total_s=1.5, flags=["reordered"],
        observations=[[6, 1, 2, at(-60), at(0), at(1)], [7, None, None, None, at(2), at(2)]],
    )  # fmt: skip
    found = row(record)
    assert (found["message_key"], found["source"], found["sms_id"], found["is_forgotten"]) == (
        "acme:9",
        "acme",
        9,
        False,
    )
    assert (found["outcome"], found["total_s"], found["flags"]) == ("delivered", 1.5, ["reordered"])
    assert found["observations"] == [
        {"status_id": 6, "device_id": 1, "channel_id": 2, "sent_at": moment(-60),
         "first_received_at": moment(0), "last_received_at": moment(1)},
        {"status_id": 7, "device_id": None, "channel_id": None, "sent_at": None,
         "first_received_at": moment(2), "last_received_at": moment(2)},
    ]  # fmt: skip


def test_a_tombstone_names_the_message_that_is_forgotten() -> None:
    found = row(tombstone(3, "a:b:9"))
    assert (found["is_forgotten"], found["source"], found["sms_id"], found["version"]) == (True, "a:b", 9, None)


def test_a_deadletter_names_its_origin() -> None:
    found = row(deadletter(0, b"{", "not_json", "sms.raw:3:77"))
    assert (found["reason"], found["detail"], found["body"]) == ("not_json", "why", b"{")
    assert (found["origin_topic"], found["origin_partition"], found["origin_offset"]) == ("sms.raw", 3, 77)


def test_a_value_of_the_wrong_type_costs_itself_alone(caplog: pytest.LogCaptureFixture) -> None:
    wrong = version(0, 1, version=2, attempts="many", flags=7, first_seen_at=10**17, observations=[[1, 2]])
    with caplog.at_level(logging.WARNING):
        rows = build_table(partition_records([wrong, version(1, 2)])).to_pylist()
    assert [rows[0][name] for name in ("attempts", "flags", "first_seen_at", "observations")] == [None] * 4
    assert (rows[0]["version"], rows[0]["sms_id"]) == (2, 1)
    assert (rows[1]["attempts"], rows[1]["flags"], len(rows[1]["observations"])) == (1, [], 1)
    assert "1 values of column attempts" in caplog.text
    assert "many" not in caplog.text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(
            st.sampled_from([f.name for dataset in DATASET_BY_TOPIC.values() for f in SCHEMAS[dataset]]), inner
        )
    ),
)
header_names = st.sampled_from(["source", "received_at", "origin", "reason"])


@given(
    st.sampled_from(list(DATASET_BY_TOPIC)),
    st.none() | st.binary() | json_values.map(orjson.dumps) | st.just(b'{"total_s": 1e999, "version": 1}'),
    st.none() | st.binary(),
    st.lists(st.tuples(header_names, st.none() | st.binary() | st.integers().map(lambda n: str(n).encode()))),
    st.integers(-1, 2**63 - 1),
)
def test_nothing_in_a_record_can_keep_it_from_being_landed(
    topic: str, value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes | None]], timestamp: int
) -> None:
    table = build_table(partition_records([MadeRecord(topic, 0, 1, timestamp, key, value, headers)]))
    table.validate(full=True)
    assert table["offset"].to_pylist() == [1]
    for name in ("queue_s", "total_s"):
        if name in table.column_names:
            assert all(v is None or isfinite(v) for v in table[name].to_pylist())


@pytest.mark.parametrize("topic", DATASET_BY_TOPIC)
@pytest.mark.parametrize("error", [RecursionError(), MemoryError(), ValueError("+4915712345")])
def test_a_record_whose_conversion_fails_is_a_row_of_its_bytes_and_the_others_are_as_without_it(
    topic: str, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    convert_records = CONVERTERS[topic]

    def columns(run: PartitionRecords, zone: tzinfo) -> DatasetColumns:
        if b"poison" in run.values:
            raise error
        return convert_records(run, zone)

    made = [raw(number, body)._replace(topic=topic, key=b"acme:1") for number, body in enumerate(BODIES)]
    faults = metrics.CONVERSION_FAULTS.labels(topic)._value
    before = faults.get()
    expected = [row(made[0]), row(made[2])]
    monkeypatch.setitem(CONVERTERS, topic, columns)
    table = build_table(partition_records(made))
    found = table.to_pylist()
    assert table.schema.equals(SCHEMAS[DATASET_BY_TOPIC[topic]])
    assert [row_["offset"] for row_ in found] == [0, 1, 2]
    assert [found[0], found[2]] == expected
    assert faults.get() == before + 1
    if topic == topics.RAW:
        assert (found[1]["kind"], found[1]["reason"], found[1]["body"]) == (
            "unreadable",
            "processing_failed",
            b"poison",
        )
        assert (found[1]["source"], found[1]["ingest_id"], found[1]["received_at"]) == ("acme", "id-1", moment(0))
    assert "+4915712345" not in caplog.text
    assert len(caplog.text) < 1_000


BODIES = (b'{"sms_id":1,"status_id":7}', b"poison", b"{")
