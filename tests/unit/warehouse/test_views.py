"""Each view on data made by hand, with numbers computed by hand, and on none."""

import math
import os
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from landing import land_records
from restored import RestoredFolder
from warehouse_records import alert, at, deadletter, moment, raw, status, tombstone, version

from warehouse import catalog
from warehouse.errors import NoWarehouseError, UnreadablePathError
from warehouse.reader import open_warehouse, query
from warehouse.sql_text import load_sql
from warehouse.views import MACROS, VIEWS

HOUR = 3600


@pytest.fixture(scope="module")
def _empty(tmp_path_factory: pytest.TempPathFactory) -> RestoredFolder:
    folder = tmp_path_factory.mktemp("views") / "source=prod" / "date=2020-01-01" / "it's [odd]*?{x}%20"
    catalog.publish_views(folder)
    return RestoredFolder(folder)


@pytest.fixture
def data(_empty: RestoredFolder, tmp_path: Path) -> Iterator[Path]:
    """An empty warehouse, below folders whose names hold all that SQL, globs and partition keys could trip over."""
    with _empty.restored(tmp_path / "data") as folder:
        yield folder


def land(data: Path, *records: Any) -> None:
    land_records(data, records[0].offset, records)


def rows(data: Path, sql: str) -> list[tuple[Any, ...]]:
    with open_warehouse(data) as connection:
        return connection.execute(sql).fetchall()


def test_every_sql_file_is_a_view_and_says_what_a_row_is() -> None:
    found = {path.name for path in files("warehouse").joinpath("sql", "views").iterdir()}
    assert found == {f"{name}.sql" for name in (*VIEWS, *MACROS)}
    for name in (*VIEWS, *MACROS):
        header = "\n".join(line for line in load_sql("views", name).splitlines() if line.startswith("--"))
        assert all(f"-- {word}" in header for word in ("A row: ", "Key: ", "Units")), name
        assert "reshness" in header, name


@pytest.mark.parametrize("name", [name for name in VIEWS if name not in {"freshness", "statuses"}])
def test_a_view_of_nothing_is_empty(data: Path, name: str) -> None:
    assert query(data, f"SELECT * FROM {name}").empty  # noqa: S608 - a name of ours


def test_raw_webhooks_are_all_there_duplicates_too(data: Path) -> None:
    land(data, raw(0, status(1, 6)), raw(1, status(1, 6)), raw(2, b"{"))
    found = rows(data, 'SELECT "offset", kind, received_at, date::VARCHAR FROM raw_webhooks ORDER BY "offset"')
    assert found == [(n, kind, moment(0), "2026-11-24") for n, kind in enumerate(["status", "status", "unreadable"])]


def test_a_webhook_that_went_to_kafka_and_to_the_spool_is_one_by_its_ingest_id(data: Path) -> None:
    def spooled(record: Any, offset: int) -> Any:
        return record._replace(offset=offset, headers=[*record.headers, ("spooled", b"1")])

    first, late, only = raw(0, status(1, 6)), raw(1, status(2, 6)), raw(2, status(3, 6))
    land(data, first, spooled(first, 1), spooled(only, 2), spooled(only, 3), raw(4, status(1, 6)))
    land(
        data,
        *(record._replace(partition=1) for record in (spooled(late, 0), spooled(late, 1), late._replace(offset=2))),
    )
    sql = 'SELECT "partition", "offset", ingest_id, sms_id FROM raw_webhooks ORDER BY ALL'
    assert rows(data, sql) == [(0, 0, "id-0", 1), (0, 2, "id-2", 3), (0, 4, "id-4", 1), (1, 2, "id-1", 2)]
    assert rows(data, "SELECT count(*) FROM status_events") == [(4,)]
    assert rows(data, "SELECT rows FROM freshness WHERE dataset = 'raw'") == [(8,)]


def test_status_events_are_the_status_reports(data: Path) -> None:
    land(data, raw(0, status(1, 6), seconds=2), raw(1, {"sms_id": 5, "type": "text", "body": "Hi"}), raw(2, b"{"))
    found = rows(
        data, "SELECT source, sms_id, message_key, status_id, device_id, recipient, received_at FROM status_events"
    )
    assert found == [("acme", 1, "acme:1", 6, 1, "+4915700000001", moment(2))]


def test_an_incoming_message_counts_once_as_it_was_first_received(data: Path) -> None:
    def text(words: str) -> dict[str, Any]:
        return {"sms_id": 5, "type": "text", "address": "+491", "body": words}

    land(
        data,
        raw(0, text("second"), seconds=9),
        raw(1, text("first"), seconds=4),
        raw(2, text("other account"), source="beta", seconds=5),
        raw(3, status(5, 6)),
    )
    found = rows(data, "SELECT source, sms_id, text, sender, received_at FROM incoming_messages ORDER BY source")
    assert found == [("acme", 5, "first", "+491", moment(4)), ("beta", 5, "other account", "+491", moment(5))]


def test_a_message_is_its_largest_version_and_among_equals_the_newest(data: Path) -> None:
    land(
        data,
        version(0, 1, "sent", version=1),
        version(1, 1, "delivered", version=3),
        version(2, 1, "sent", version=2),  # a replay of an older state
        version(3, 2, "sent", version=2, device_id=8),
        version(4, 2, "sent", version=2, device_id=9),
        version(5, 1, "pending", version=1, source="beta"),
        raw(6, b"no version")._replace(topic="sms.messages", key=b"acme:1"),
    )
    found = rows(data, "SELECT message_key, outcome, version, device_id FROM messages ORDER BY message_key")
    assert found == [("acme:1", "delivered", 3, 1), ("acme:2", "sent", 2, 9), ("beta:1", "pending", 1, 1)]


def test_a_message_that_the_stream_forgot_is_still_there(data: Path) -> None:
    land(data, version(0, 1, "delivered"), tombstone(1, "acme:1"), tombstone(2, "acme:2"))
    assert rows(data, "SELECT message_key, outcome FROM messages") == [("acme:1", "delivered")]


def test_the_columns_of_messages_are_the_contract(data: Path) -> None:
    land(data, version(0, 1, "delivered", total_s=2.5, flags=["reordered"]))
    found = rows(data, "SELECT column_name, column_type FROM (DESCRIBE messages)")
    assert [name for name, _ in found][:21] == [
        *("source", "sms_id", "message_key", "device_id", "channel_id", "recipient", "outcome", "failure_class"),
        *("last_status_id", "is_ended", "first_seen_at", "ended_at", "delivered_at", "attempts", "contradicted"),
        *("flags", "queue_s", "device_s", "network_s", "total_s", "version"),
    ]
    types = dict(found)
    assert {types[n] for n in types if n.endswith("_at")} == {"TIMESTAMP WITH TIME ZONE"}
    assert {types[n] for n in types if n.endswith("_s")} == {"DOUBLE"}
    assert types["flags"] == "VARCHAR[]"
    assert rows(data, "SELECT first_seen_at, ended_at, total_s, flags FROM messages") == [
        (moment(0), moment(0), 2.5, ["reordered"])
    ]


def deliveries(data: Path) -> None:
    """Land ten messages of two devices over two hours, one in two versions, and an incoming one."""
    land(
        data,
        version(0, 1, "sent", version=1),
        version(1, 1, "delivered", version=2),
        version(2, 2, "delivered", seconds=HOUR - 0.001),
        version(3, 3, "undelivered", failure_class="undelivered", last_status_id=8),
        version(4, 4, "not_sent", failure_class="no_service", last_status_id=10),
        version(5, 5, "not_permitted", failure_class="not_permitted", last_status_id=100),
        version(6, 6, "expired"),
        version(7, 7, "sent"),
        version(8, 8, "unknown"),
        version(9, 9, "incoming"),
        version(10, 10, "delivered", seconds=HOUR),
        version(11, 11, "pending", device_id=None, channel_id=None),
        version(12, 12, "not_sent", device_id=1, failure_class="no_service", last_status_id=10, seconds=HOUR),
    )


COUNTS = "attempted, ended, delivered, undelivered, not_sent, not_permitted, expired, open"
RATES = "delivered_per_attempted, delivered_per_ended, open_share"


def test_deliveries_of_an_hour_count_each_message_once(data: Path) -> None:
    deliveries(data)
    sql = f"SELECT device_id, channel_id, hour, {COUNTS}, {RATES} FROM delivery_hourly ORDER BY device_id, hour"  # noqa: S608
    assert rows(data, sql) == [
        (1, 2, moment(0), 8, 6, 2, 1, 1, 1, 1, 2, 2 / 8, 2 / 6, 2 / 8),
        (1, 2, moment(HOUR), 2, 2, 1, 0, 1, 0, 0, 0, 1 / 2, 1 / 2, 0.0),
        (None, None, moment(0), 1, 0, 0, 0, 0, 0, 0, 1, 0.0, None, 1.0),
    ]


@pytest.mark.parametrize("zone", ["UTC", "Asia/Kolkata", "America/St_Johns"])
def test_an_hour_is_an_hour_of_utc_wherever_the_reader_is(data: Path, zone: str) -> None:
    deliveries(data)
    with open_warehouse(data) as connection:
        connection.execute(f"SET TimeZone = '{zone}'")
        hours = "SELECT epoch_ms(hour) FROM"
        sql = f"{hours} delivery_hourly UNION {hours} latency_hourly ORDER BY 1"
        assert connection.execute(sql).fetchall() == [(at(0),), (at(HOUR),)]


def test_deliveries_by_device_are_the_sum_of_its_hours(data: Path) -> None:
    deliveries(data)
    sql = (
        f"SELECT source, device_id, first_hour, last_hour, {COUNTS}, {RATES} FROM delivery_by_device ORDER BY device_id"  # noqa: S608
    )
    assert rows(data, sql) == [
        ("acme", 1, moment(0), moment(HOUR), 10, 8, 3, 1, 2, 1, 1, 2, 3 / 10, 3 / 8, 2 / 10),
        ("acme", None, moment(0), moment(0), 1, 0, 0, 0, 0, 0, 0, 1, 0.0, None, 1.0),
    ]


def test_latencies_are_percentiles_of_those_who_have_them(data: Path) -> None:
    totals = [1.0, 2.0, 3.0, 4.0, 5.0]
    land(
        data,
        *(version(n, n, "delivered", total_s=total, network_s=7.0) for n, total in enumerate(totals)),
        version(5, 5, "sent"),
        version(6, 6, "incoming", total_s=99.0),
    )
    (found,) = query(data, "SELECT * FROM latency_hourly").to_dict("records")
    assert (found["source"], found["hour"].to_pydatetime(), found["messages"]) == ("acme", moment(0), 6)
    assert [found[f"{name}_messages"] for name in ("queue", "device", "network", "total")] == [0, 0, 5, 5]
    assert [found[f"total_p{p}_s"] for p in (50, 90, 95, 99)] == pytest.approx([3.0, 4.6, 4.8, 4.96])
    assert [found[f"network_p{p}_s"] for p in (50, 90, 95, 99)] == [7.0] * 4
    within = [[found[f"{name}_within_{s}_s"] for s in (5, 10, 30, 60)] for name in ("delivered", "network")]
    # Of six messages, five were delivered within five seconds.
    assert within == [[5 / 6] * 4, [0.0, 1.0, 1.0, 1.0]]
    assert rows(data, "SELECT queue_p50_s, device_p99_s FROM latency_hourly") == [(None, None)]


def test_failure_reasons_share_out_the_failures_of_a_device(data: Path) -> None:
    deliveries(data)
    sql = "SELECT source, device_id, failure_class, last_status_id, attempts, share FROM failure_reasons ORDER BY 4"
    assert rows(data, sql) == [
        ("acme", 1, "undelivered", 8, 1, 1 / 4),
        ("acme", 1, "no_service", 10, 2, 2 / 4),
        ("acme", 1, "not_permitted", 100, 1, 1 / 4),
    ]


def test_deadletters_say_why_and_where(data: Path) -> None:
    land(data, deadletter(4, b"{", "not_json", "sms.raw:3:77"))
    sql = 'SELECT "offset", reason, detail, origin_topic, origin_partition, origin_offset, body FROM deadletters'
    assert rows(data, sql) == [(4, "not_json", "why", "sms.raw", 3, 77, b"{")]


def test_a_record_that_was_put_aside_twice_is_one_dead_letter(data: Path) -> None:
    first, other = deadletter(4, b"{", "not_json", "sms.raw:3:77"), deadletter(6, b"{", "not_json", "sms.raw:3:77")
    unknown = [deadletter(offset, b"{", "not_json", "?") for offset in (7, 8)]
    land(data, first, first._replace(offset=5), other, *unknown)
    assert rows(data, 'SELECT "offset" FROM deadletters ORDER BY 1') == [(4,), (6,), (7,), (8,)]


def test_freshness_has_a_row_for_each_dataset_empty_or_not(data: Path) -> None:
    land(data, raw(0, status(1, 6), seconds=5), raw(1, status(1, 7), seconds=3))
    sql = "SELECT dataset, newest_received_at, newest_recorded_at, rows FROM freshness ORDER BY dataset"
    assert rows(data, sql) == [
        ("deadletters", None, None, 0),
        ("messages", None, None, 0),
        ("raw", moment(5), moment(5), 2),
    ]
    sql = "SELECT seconds_since - (epoch(now()) - epoch(newest_recorded_at)) FROM freshness ORDER BY dataset"
    (none, _, (difference,)) = rows(data, sql)
    assert none == (None,)
    assert math.isclose(difference, 0, abs_tol=1e-3)


def test_text_with_every_character_reads(data: Path) -> None:
    words = "\x00 'quoted' \U0001f600 \u202e"
    land(data, raw(0, {"sms_id": 1, "type": "text", "body": words}))
    assert rows(data, "SELECT text FROM incoming_messages") == [(words,)]


@pytest.mark.parametrize("has_seed", [True, False])
def test_a_column_that_only_newer_files_have_is_seen(data: Path, *, has_seed: bool) -> None:
    seed = data / "raw/date=1970-01-01/seed.parquet"
    # Without its marker: an earlier release has another one.
    older = pq.read_schema(seed).remove_metadata()
    older = older.remove(older.get_field_index("spooled"))
    land(data, raw(0, status(1, 6)))
    (landed,) = data.glob("raw/date=*/sms*")
    pq.write_table(pq.read_table(landed, schema=older), landed)
    seed.unlink()
    if has_seed:
        pq.write_table(older.empty_table(), seed)
    for _ in range(2):  # nor is it forgotten
        catalog.publish_views(data)
        assert rows(data, "SELECT spooled, sms_id FROM raw_webhooks") == [(None, 1)]
    land(data, raw(1, status(2, 6)))
    assert rows(data, "SELECT spooled, sms_id FROM raw_webhooks ORDER BY sms_id") == [(None, 1), (False, 2)]


def test_publishing_again_changes_nothing(data: Path) -> None:
    before = (data / catalog.CATALOG_FILE).stat()
    catalog.publish_views(data)
    assert (data / catalog.CATALOG_FILE).stat().st_ino == before.st_ino


def test_a_moved_folder_is_published_anew(data: Path, tmp_path: Path) -> None:
    land(data, raw(0, status(1, 6)))
    moved = data.rename(tmp_path / "moved")
    catalog.publish_views(moved)
    assert rows(moved, "SELECT count(*) FROM raw_webhooks") == [(1,)]


def test_a_folder_that_a_pattern_would_fit_is_not_read(data: Path) -> None:
    land(data, raw(0, status(1, 6)))
    land(data.with_name("it's [odd]*Z{x}%20"), raw(0, status(2, 6)))
    assert rows(data, "SELECT sms_id FROM raw_webhooks") == [(1,)]


def test_a_folder_that_duckdb_cannot_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadablePathError, match="backslash"):
        catalog.publish_views(tmp_path / "a\\b")


def test_a_damaged_file_of_views_is_replaced(data: Path) -> None:
    (data / catalog.CATALOG_FILE).write_bytes(os.urandom(5000))
    catalog.publish_views(data)
    assert rows(data, "SELECT count(*) FROM raw_webhooks") == [(0,)]


def test_a_reader_who_has_it_open_sees_new_data_and_survives_new_views(data: Path) -> None:
    with open_warehouse(data) as connection:
        count = "SELECT count(*) FROM raw_webhooks"
        assert connection.execute(count).fetchone() == (0,)
        land(data, raw(0, status(1, 6)))
        assert connection.execute(count).fetchone() == (1,)
        (data / catalog.CATALOG_FILE).unlink()
        catalog.publish_views(data)
        assert connection.execute(count).fetchone() == (1,)


def test_readers_cannot_write(data: Path) -> None:
    with open_warehouse(data) as connection, pytest.raises(duckdb.Error, match="read-only"):
        connection.execute("CREATE TABLE t (n INTEGER)")


def test_a_folder_without_a_warehouse_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoWarehouseError, match=str(tmp_path)):
        query(tmp_path, "SELECT 1")


def test_parameters_are_bound(data: Path) -> None:
    land(data, raw(0, status(1, 6)))
    assert query(data, "SELECT sms_id FROM raw_webhooks WHERE source = ?", ["acme"])["sms_id"].tolist() == [1]
    assert query(data, "SELECT sms_id FROM raw_webhooks WHERE source = $s", {"s": "'"}).empty


def test_an_alert_is_a_row_each_time_it_fires_with_what_it_rested_on(data: Path) -> None:
    again = {"fired_at": at(9_000), "device_id": 1}
    land(
        data,
        alert(0, "pending", seconds=-60),
        alert(1, "firing"),
        alert(2, "resolved", seconds=600, count=90, failures=9),
        alert(3, "resolved", seconds=700, fired_at=None),  # was pending, and subsided
        alert(4, "firing", seconds=9_000, **again),
    )
    found = rows(
        data,
        "SELECT fired_at, resolved_at, is_firing, lasted_s, count, ratio, errors['10'], samples FROM alerts ORDER BY 1",
    )
    assert found[0] == (moment(0), moment(600), False, 600, 8, 0.75, 6, ["acme:17"])
    assert found[1][:3] == (moment(9_000), None, True)
    assert len(found) == 2
