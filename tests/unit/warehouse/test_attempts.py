"""Attempts: the stream's rules against those in SQL, the view, and the counts of phones and of messages."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rebuilt_streams import Stream, rebuild, rows
from warehouse_records import status

from gateway.events import StatusReport
from gateway.statuses import STATUSES
from streams.lifecycle import AttemptDetails, LifecycleRules, MessageState, MessageVersion
from warehouse import lifecycle_sql
from warehouse.schemas import SCHEMAS
from warehouse.sql_text import load_sql

T0 = 1_760_000_000_000
LIFECYCLE = LifecycleRules(STATUSES)
COMPARED = (
    *("outcome", "failure_class", "last_status_id", "is_ended", "device_id", "channel_id", "attempts", "contradicted"),
    *("queue_s", "device_s", "network_s", "total_s", "flags", "version"),
)

reports = st.tuples(
    st.sampled_from([1, 3, 2, 6, 7, 8, 9, 10, 55, 5]),
    st.sampled_from([None, 501, 502, 503]),
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, T0, T0 + 60_000]),
    st.integers(0, 30),
)
histories = st.lists(st.lists(reports, min_size=1, max_size=12), min_size=1, max_size=30)


@pytest.fixture(scope="module")
def sql() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'; SET threads = 1")
    lifecycle_sql.create_statuses_table(connection, STATUSES)
    for name, value in (("expire_after", timedelta(days=1)), ("horizon", datetime.fromtimestamp(T0 / 1000, UTC))):
        connection.execute(f"SET VARIABLE {name} = ?", [value])
    return connection


LOG = pa.schema({
    "source": pa.string(), "sms_id": pa.int64(), "status_id": pa.int32(), "device_id": pa.int64(),
    "channel_id": pa.int32(), "sent_at": pa.timestamp("ms", "UTC"), "reported_at": pa.timestamp("ms", "UTC"),
    "recipient": pa.string(),
})  # fmt: skip


def derive_in_sql(connection: duckdb.DuckDBPyConnection, history: Iterable[Iterable[Any]]) -> list[dict[str, Any]]:
    reported = [
        dict(zip(LOG.names, ["gw", number, *report[:4], T0 + report[4], None], strict=True))
        for number, message in enumerate(history)
        for report in message
    ]
    connection.register("arrived", pa.Table.from_pylist(reported, schema=LOG))
    connection.execute("CREATE OR REPLACE TEMP TABLE log AS FROM arrived")
    lifecycle_sql.create_message_summary_table(connection)
    lifecycle_sql.create_reported_state_view(connection)
    found = connection.sql(f"FROM ({load_sql('lifecycle', 'lifecycle')}) ORDER BY sms_id")
    return found.to_arrow_table().to_pylist()


def derive_in_python(history: Iterable[Iterable[Any]]) -> list[MessageVersion]:
    versions = []
    for number, message in enumerate(history):
        facts = MessageState("gw", number)
        for status_id, device_id, channel_id, sent_at, at in message:
            facts.add_report(StatusReport(number, status_id, device_id, channel_id, sent_at, None, None, ()), T0 + at)
        versions.append(LIFECYCLE.derive_version(facts))
    return versions


def milliseconds(value: Any) -> Any:
    return None if value is None else round(value.timestamp() * 1000)


@given(histories)
def test_sql_and_python_find_the_same_attempts(sql: duckdb.DuckDBPyConnection, history: list[list[Any]]) -> None:
    in_sql = derive_in_sql(sql, history)
    for found, version in zip(in_sql, derive_in_python(history), strict=True):
        assert {name: found[name] for name in COMPARED} == {name: getattr(version, name) for name in COMPARED}
        details = found["attempt_details"] and [
            [milliseconds(value) if name.endswith("_at") else value for name, value in each.items()]
            for each in found["attempt_details"]
        ]
        assert details == msgspec.to_builtins(version.attempt_details)


@given(histories)
def test_attempts_agree_with_their_message(history: list[list[Any]]) -> None:
    for version in derive_in_python(history):
        details = version.attempt_details
        if details is None:
            assert version.attempts == 1
            continue
        assert len(details) == version.attempts > 1
        # Each but the last has an end, and the message is what its last end makes of it.
        assert all(attempt.ended_at is not None for attempt in details[:-1])
        decisive = [attempt for attempt in details if attempt.ended_at is not None][-1]
        assert (version.outcome, version.failure_class, version.last_status_id, version.ended_at) == (
            decisive.outcome, decisive.failure_class, decisive.status_id, decisive.ended_at
        )  # fmt: skip
        assert (version.device_id, version.channel_id) == (decisive.device_id, decisive.channel_id)
        assert version.last_seen_at == max(attempt.last_seen_at for attempt in details)
        assert [attempt.started_at for attempt in details] == sorted(attempt.started_at for attempt in details)


SENT_AT = "2026-11-24 11:00:00"
RESENT_AT = "2026-11-24 11:05:00"
# The cases of two phones: reports of 501, then of another phone.
CONTRADICTED = [
    *((seconds, status(1, id_, device_id=501, senttime=SENT_AT)) for seconds, id_ in ((0, 1), (5, 7), (9, 8))),
    (60, status(1, 7, device_id=502, senttime=RESENT_AT)),
]
RETRIED = [
    *((seconds, status(1, id_, device_id=501, senttime=SENT_AT)) for seconds, id_ in ((0, 1), (5, 9))),
    (60, status(1, 1, device_id=777, senttime=RESENT_AT)),
]


@pytest.fixture
def stream(published: Path) -> Stream:
    return Stream(published)


ATTEMPTS = """
    SELECT attempt, device_id, outcome, status_id, is_ended, is_followed, total_s FROM attempts ORDER BY sms_id, attempt
"""


@pytest.mark.parametrize("rebuilt", [False, True])
def test_no_phone_is_charged_with_what_another_one_reported(published: Path, stream: Stream, *, rebuilt: bool) -> None:
    stream.report(*CONTRADICTED)
    stream.settle(3600)
    if rebuilt:
        rebuild(published)
    assert rows(published, f"FROM ({ATTEMPTS}) LIMIT 2") == [
        (1, 501, "undelivered", 8, True, True, 9.0),
        (2, 502, "delivered", 7, True, False, 0.0),
    ]
    message = "SELECT outcome, device_id, delivered_at = ended_at, attempts, contradicted FROM messages"
    assert rows(published, f"{message} WHERE sms_id = 1") == [("delivered", 502, True, 2, True)]


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_message_that_is_tried_again_is_what_its_last_end_says(
    published: Path, stream: Stream, *, rebuilt: bool
) -> None:
    stream.report(*RETRIED)
    stream.settle(3600)
    if rebuilt:
        rebuild(published)
    assert rows(published, f"FROM ({ATTEMPTS}) LIMIT 2") == [
        (1, 501, "not_sent", 9, True, True, 5.0),
        (2, 777, "pending", 1, False, False, None),
    ]
    message = "SELECT outcome, is_ended, device_id, attempts FROM messages WHERE sms_id = 1"
    assert rows(published, message) == [("not_sent", True, 501, 2)]


@pytest.mark.parametrize("rebuilt", [False, True])
def test_phones_are_judged_by_attempts_and_delivery_by_messages(
    published: Path, stream: Stream, *, rebuilt: bool
) -> None:
    stream.report(*CONTRADICTED)
    stream.settle(3600)
    if rebuilt:
        rebuild(published)
    by_device = "SELECT device_id, attempted, ended, delivered, undelivered FROM delivery_by_device"
    assert rows(published, f"{by_device} WHERE device_id IN (501, 502) ORDER BY device_id") == [
        (501, 1, 1, 0, 1),
        (502, 1, 1, 1, 0),
    ]
    by_message = "SELECT sum(attempted), sum(delivered), sum(first_try_delivered) FROM delivery_hourly"
    assert rows(published, f"{by_message} WHERE device_id IN (501, 502)") == [(1, 1, 0)]
    reasons = "SELECT device_id, last_status_id, attempts FROM failure_reasons"
    assert rows(published, reasons) == [(501, 8, 1)]


def test_without_messages_there_are_no_attempts(published: Path) -> None:
    assert rows(published, "FROM attempts") == rows(published, "FROM attempts_hourly") == []


def test_the_columns_of_an_attempt_are_those_of_the_schema() -> None:
    kind = SCHEMAS["messages"].field("attempt_details").type.value_type
    assert [field.name for field in kind] == [field.name for field in msgspec.structs.fields(AttemptDetails)]
