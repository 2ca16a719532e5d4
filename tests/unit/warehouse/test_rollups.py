"""Marts add the rollups and the versions since, and always equal the counts of the messages."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pytest
from days import LAST, Days
from landing import land_records
from warehouse_records import NOON, MadeRecord, at, tombstone, version

from gateway.number_search import NumberSearch
from gateway.statuses import build_status_table
from warehouse import catalog
from warehouse.maintenance.compaction import compact_files
from warehouse.maintenance.erasure import erase_from_files
from warehouse.maintenance.retention import drop_expired_days
from warehouse.reader import open_warehouse
from warehouse.rebuild import rebuild_base
from warehouse.rollups import has_current_rollups
from warehouse.settings import RetentionSettings
from warehouse.views import create_view_statements
from warehouse.watermark import WATERMARK_FILE, read_base_watermark

MARTS = {
    "delivery_hourly": "*",
    "delivery_daily": "*",
    "delivery_by_device": "*",
    "delivery_by_prefix": "*",
    "latency_hourly": "*",
    "funnel": "*",
    "failure_reasons": "*",
    # A report counts for its phone also if its message went through another one later.
    "device_health": "* EXCLUDE (quiet_s, last_seen_at)",
    "attempts_hourly": "*",
    "delivery_by_channel": "*",
    "routes_daily": "*",
    "stuck_messages": "* EXCLUDE (waiting_s)",
}
"""Every mart of messages, and its columns except those that depend on the current time."""
HOUR, DAY = 3600, 86_400
LATER = datetime(LAST.year, LAST.month, LAST.day, tzinfo=UTC) + timedelta(days=9)
SETTINGS = RetentionSettings(raw_days=9, messages_days=9)  # type: ignore[call-arg]


@pytest.fixture
def simulated(published: Path) -> Days:
    """Two simulated days, and current messages."""
    days = Days(published, 1, 150)
    for back in (4, 3):
        days.simulate_day(LAST - timedelta(back))
    now = time.time() - NOON / 1000
    land(days.data, 9, 0, *(
        version(0, 1_000 + n, outcome, seconds=now - hours * HOUR, device_id=1 + n % 2)
        for n, (outcome, hours) in enumerate([("sent", 2), ("sent", 2), ("delivered", 1), ("undelivered", 30)])
    ))  # fmt: skip
    return days


def land(data: Path, partition: int, start: int, *records: MadeRecord) -> None:
    """Land records in their own partition."""
    made = [each._replace(partition=partition, offset=start + n) for n, each in enumerate(records)]
    land_records(data, start, made)


def marts(connection: duckdb.DuckDBPyConnection) -> dict[str, list[tuple[Any, ...]]]:
    return {n: connection.execute(f"SELECT {c} FROM {n} ORDER BY ALL").fetchall() for n, c in MARTS.items()}  # noqa: S608


class Straight:
    """The marts, computed from the view of messages only."""

    def __init__(self, empty: Path) -> None:
        catalog.publish_views(empty)
        self._connection = duckdb.connect()
        self._connection.execute("SET TimeZone = 'UTC'")
        for statement in create_view_statements(empty):
            self._connection.execute(statement)
        self._connection.execute("CREATE TABLE those AS FROM messages_by_day LIMIT 0")
        self._connection.execute("CREATE OR REPLACE VIEW messages_by_day AS FROM those")

    def close(self) -> None:
        self._connection.close()

    def marts(self, data: Path) -> dict[str, list[tuple[Any, ...]]]:
        with open_warehouse(data) as connection:
            table = connection.sql(
                "SELECT (first_seen_at AT TIME ZONE 'UTC')::DATE AS day, * FROM messages"
            ).to_arrow_table()
        self._connection.register("these", table)
        self._connection.execute("CREATE OR REPLACE TABLE those AS FROM these")
        self._connection.unregister("these")
        return marts(self._connection)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Straight]:
    made = Straight(tmp_path_factory.mktemp("empty") / "data")
    yield made
    made.close()


def assert_marts_equal_messages(data: Path, straight: Straight) -> None:
    """Assert that every mart equals the counts of the messages."""
    with open_warehouse(data) as connection:
        found = marts(connection)
    expected = straight.marts(data)
    assert all(expected.values())
    for name in MARTS:
        assert found[name] == expected[name], name


def rebuilt(data: Path, **options: Any) -> None:
    rebuild_base(data, build_status_table({}), timedelta(days=1), **options)


def news(data: Path) -> list[MadeRecord]:
    """Return newer versions of messages in base files, with changed columns or without a change."""
    with open_warehouse(data) as connection:
        rows = connection.execute("""
            SELECT source, sms_id, epoch_ms(first_seen_at), version FROM dataset('base') WHERE outcome = 'delivered'
            ORDER BY hash(sms_id) LIMIT 8
        """).fetchall()
    changes: list[dict[str, Any]] = [
        {"first_seen_at": -HOUR * 1000},
        {"first_seen_at": -DAY * 1000},
        {"outcome": "not_sent", "failure_class": "no_service", "last_status_id": 10},
        {"outcome": "sent", "is_ended": False, "ended_at": None},
        {"device_id": 77, "channel_id": 9},
        {"recipient": "+12025550123"},
        {"outcome": "incoming"},
        {"network_s": 9_999.0, "version": -1},  # older than the base, so it is ignored
    ]
    made = []
    for (source, sms_id, first, facts), change in zip(rows, changes, strict=True):
        fields = {"first_seen_at": first + change.pop("first_seen_at", 0), "version": facts + change.pop("version", 1)}
        outcome = change.pop("outcome", "delivered")
        made.append(version(0, sms_id, outcome, source=source, **fields | change))
    now = time.time() - NOON / 1000
    # The newest report of a device belongs to another one now, and the oldest open message ended.
    fields = {"device_id": 2, "version": 5, "last_seen_at": at(now - HOUR)}
    made.append(version(0, 1_000, "delivered", seconds=now - 2 * HOUR, **fields))
    return made


def test_a_mart_equals_the_counts_of_the_messages_at_any_time(simulated: Days, straight: Straight) -> None:
    data = simulated.data
    assert_marts_equal_messages(data, straight)  # without base files
    rebuilt(data)
    assert_marts_equal_messages(data, straight)  # only base files
    simulated.simulate_day(LAST - timedelta(2), files=2)
    assert_marts_equal_messages(
        data, straight
    )  # base files and newer versions, some of them of messages of the previous day
    land(data, 8, 0, *news(data))
    assert_marts_equal_messages(data, straight)
    late = version(0, 1_002, "delivered", flags=["late_after_forgetting"], version=2)
    land(data, 8, 9, tombstone(0, "acme:1001"), late)
    assert_marts_equal_messages(data, straight)
    rebuilt(data, day=LAST - timedelta(3))
    assert_marts_equal_messages(data, straight)  # one rebuilt day has the newer versions
    land(data, 8, 11, version(0, 2_000, "delivered", seconds=-3 * DAY))
    assert_marts_equal_messages(data, straight)  # newer versions of a closed day
    rebuilt(data)
    assert_marts_equal_messages(data, straight)
    assert compact_files(data, datetime.now(UTC) + timedelta(days=2)).files_after
    assert_marts_equal_messages(data, straight)


def test_a_filter_on_a_mart_equals_a_filter_on_its_rows(simulated: Days, straight: Straight) -> None:
    rebuilt(simulated.data)
    land(simulated.data, 8, 0, *news(simulated.data))
    expected = straight.marts(simulated.data)
    day = LAST - timedelta(4)
    with open_warehouse(simulated.data) as connection:
        for name, columns in MARTS.items():
            names = [each[0] for each in connection.execute(f"DESCRIBE SELECT {columns} FROM {name}").fetchall()]  # noqa: S608
            for column, value in (("day", day), ("device_id", 1)):
                if column in names:
                    sql = f"SELECT {columns} FROM {name} WHERE {column} = ? ORDER BY ALL"  # noqa: S608 - names of ours
                    found = connection.execute(sql, [value]).fetchall()
                    assert found == [row for row in expected[name] if row[names.index(column)] == value], name


@pytest.mark.parametrize("sums", ["", "of another release"])
def test_rollups_of_another_release_are_ignored(simulated: Days, straight: Straight, sums: str) -> None:
    data = simulated.data
    rebuilt(data)
    before = read_base_watermark(data)
    assert before
    (data / "base" / WATERMARK_FILE).write_text(before._replace(sums=sums).to_json())
    catalog.publish_views(data)
    assert_marts_equal_messages(data, straight)
    with open_warehouse(data) as connection:
        assert connection.execute("SELECT count(*) FROM changes WHERE sign < 0").fetchone() == (0,)
    assert set(drop_expired_days(data, SETTINGS, LATER, timedelta(9))) == {"raw"}
    simulated.simulate_day(LAST)
    rebuilt(data)
    assert has_current_rollups(data)
    assert_marts_equal_messages(data, straight)


def test_rollups_are_kept_after_their_messages(simulated: Days) -> None:
    data = simulated.data
    rebuilt(data)
    names = set(MARTS) - {"stuck_messages", "device_health"}
    with open_warehouse(data) as connection:
        before = marts(connection)
    dropped = drop_expired_days(data, SETTINGS, LATER, timedelta(9))
    assert {LAST - timedelta(4), LAST - timedelta(3)} <= set(dropped["base"])
    with open_warehouse(data) as connection:
        after = marts(connection)
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


def test_after_an_erasure_the_counts_are_those_of_the_files(simulated: Days, straight: Straight) -> None:
    data = simulated.data
    rebuilt(data)
    with open_warehouse(data) as connection:
        ((number, sms_id),) = connection.execute(
            "SELECT recipient, sms_id FROM messages WHERE recipient LIKE '+%' AND outcome = 'delivered' LIMIT 1"
        ).fetchall()
    assert erase_from_files(data, NumberSearch((number,))).rows["base"]
    assert_marts_equal_messages(data, straight)
    land(data, 8, 0, version(0, sms_id, "delivered", version=99, recipient=number))
    assert_marts_equal_messages(data, straight)
    rebuilt(data)
    assert_marts_equal_messages(data, straight)
