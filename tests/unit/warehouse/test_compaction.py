"""Merged files have the rows of their parts, for all readers and landers, and after a crash."""

import json
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from landing import land_records
from warehouse_records import NOON, raw, status, tombstone, version

from core import topics
from smspulse.cli.main import cli
from warehouse import views
from warehouse.errors import CannotExchangeError, CompactionError, OvertakenError
from warehouse.file_names import TEMPORARY_FOLDER
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.compaction import compact_files
from warehouse.reader import open_warehouse, query
from warehouse.schemas import SCHEMAS
from warehouse.sink.range_metadata import RANGE_START_KEY, read_landed_position

DAY_MS = 86_400_000
TODAY = datetime.fromtimestamp(NOON / 1000, UTC)
NEXT_DAY = TODAY + timedelta(days=1)
ALL = 'SELECT * FROM raw_webhooks ORDER BY "partition", "offset"'


READ = {"raw_webhooks", "live_messages", "messages_by_day", "messages", "changes", "webhook_quality"}
"""The views that the tests read, and those on which they depend."""


@pytest.fixture(autouse=True)
def _published_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """Publish only these views. Each merge publishes them, and all views would take most of its time."""
    monkeypatch.setattr(views, "VIEWS", tuple(name for name in views.VIEWS if name in READ))


@pytest.fixture
def data(published: Path) -> Path:
    return published


def land(data: Path, first: int, count: int, landed: datetime, *, partition: int = 0, day: int = 0) -> Path:
    """Land webhooks with decreasing ids, as if at the given time."""
    records = [
        raw(n, status(1_000_000 - n, 6), partition=partition)._replace(timestamp=NOON + day * DAY_MS)
        for n in range(first, first + count)
    ]
    path = land_records(data, first, records)
    os.utime(path, (landed.timestamp(), landed.timestamp()))
    return path


def names(data: Path, pattern: str = "raw/date=2*/*") -> list[str]:
    return sorted(path.name.split("-")[0].removesuffix(".parquet") for path in data.glob(pattern))


def rows(data: Path, sql: str) -> list[tuple[Any, ...]]:
    with open_warehouse(data) as connection:
        return connection.execute(sql).fetchall()


def test_files_are_not_merged_across_a_gap_until_it_is_filled(data: Path) -> None:
    paths = [land(data, first, 10, TODAY) for first in range(0, 60, 10)]
    missing = paths[2].rename(data / "missing")
    before = rows(data, ALL)
    compact_files(data, NEXT_DAY)
    assert names(data) == [f"sms.raw+0+{start:020d}" for start in (10, 50)]
    missing.rename(paths[2])
    compact_files(data, NEXT_DAY)
    assert names(data) == [f"sms.raw+0+{50:020d}"]
    (path,) = data.glob("raw/date=2*/sms.raw+0+*")
    assert pq.read_metadata(path).metadata[RANGE_START_KEY] == b"0"
    assert len(rows(data, ALL)) == len(before) + 10


def test_a_closed_day_becomes_one_file_per_partition_with_the_same_rows(data: Path) -> None:
    for partition in (0, 1):
        for first in (0, 10, 20):
            land(data, first, 10, TODAY, partition=partition)
    land_records(data, 0, [version(n, n % 7) for n in range(3)])
    land_records(data, 3, [tombstone(3, "acme:1")])
    for path in data.glob("messages/date=2*/*"):
        os.utime(path, (0, 0))
    before = rows(data, ALL), rows(data, "FROM messages ORDER BY ALL")
    done = compact_files(data, NEXT_DAY)
    assert (done.files_after, done.files_before, done.files_after, done.rows) == (3, 8, 3, 64)
    assert names(data) == [f"sms.raw+{partition}+{20:020d}" for partition in (0, 1)]
    assert (rows(data, ALL), rows(data, "FROM messages ORDER BY ALL")) == before
    (path,) = data.glob("raw/date=2*/sms.raw+0+*")
    assert [(f.name, f.metadata) for f in pq.read_schema(path)] == [(f.name, f.metadata) for f in SCHEMAS["raw"]]
    assert pq.read_table(path)["sms_id"].to_pylist() == sorted(1_000_000 - n for n in range(30))
    assert compact_files(data, NEXT_DAY).files_after == 0
    assert not list((data / TEMPORARY_FOLDER / "upkeep").iterdir())


def test_the_current_day_is_merged_by_the_hour_and_merged_files_are_not_changed(data: Path) -> None:
    for first, minutes in ((0, -70), (1, -65), (2, -10), (3, -5), (4, 1), (5, 2)):
        land(data, first, 1, TODAY + timedelta(minutes=minutes))
    compact_files(data, TODAY - timedelta(minutes=10))
    assert names(data) == [f"sms.raw+0+{n:020d}" for n in (1, 2, 3, 4, 5)]
    compact_files(data, TODAY + timedelta(minutes=10))
    assert names(data) == [f"sms.raw+0+{n:020d}" for n in (1, 3, 4, 5)]
    compact_files(data, TODAY.replace(hour=0) + timedelta(days=1, minutes=30))  # an hour for late landers
    assert names(data) == [f"sms.raw+0+{n:020d}" for n in (1, 3, 5)]
    compact_files(data, NEXT_DAY)
    assert names(data) == [f"sms.raw+0+{5:020d}"]
    assert rows(data, "SELECT count(*) FROM raw_webhooks") == [(6,)]


def test_webhooks_of_a_closed_day_are_counted_and_counted_again_after_new_ones_land(data: Path) -> None:
    day, next_day = TODAY.date(), NEXT_DAY.date()

    def quality() -> list[tuple[Any, ...]]:
        return rows(data, "SELECT day, webhooks, duplicates, unknown FROM webhook_quality ORDER BY day")

    def counts() -> list[str]:
        return [path.parent.name for path in data.glob("webhooks/date=2*/*")]

    def hook(offset: int, status_id: int, seconds: int, kafka_took_it: int | None = None) -> None:
        record = raw(offset, status(1, status_id), seconds=seconds)
        if kafka_took_it:
            record = record._replace(timestamp=NOON + kafka_took_it * 1000)
        land_records(data, offset, [record])

    for offset, status_id in enumerate((1, 6, 6, 99)):
        hook(offset, status_id, offset)
    hook(
        4, 6, 5, kafka_took_it=86_400
    )  # from the spool, on the next day; a duplicate only of webhooks in the same file
    hook(5, 6, 86_400)
    hook(6, 6, 86_401)
    before = quality()
    assert before == [(day, 5, 1, 1), (next_day, 2, 1, 0)]
    compact_files(data, NEXT_DAY)
    assert (quality(), counts()) == (before, [f"date={day}"])
    made = list(data.glob("webhooks/date=2*/*"))
    compact_files(data, NEXT_DAY)
    assert list(data.glob("webhooks/date=2*/*")) == made
    hook(7, 98, 6)
    assert quality() == before  # a counted day keeps its counts
    compact_files(data, NEXT_DAY + timedelta(days=1))
    after = [(day, 6, 1, 2), (next_day, 2, 1, 0)]
    assert (quality(), sorted(counts())) == (after, [f"date={day}", f"date={next_day}"])
    for path in data.glob("raw/date=2*/*"):
        path.unlink()
    assert quality() == after


def test_a_webhook_without_a_time_of_kafka_counts_on_its_day_of_receipt(data: Path) -> None:
    land_records(data, 0, [raw(0, status(1, 6))._replace(timestamp=-1)])
    sql = "SELECT day, webhooks FROM webhook_quality"
    assert rows(data, sql) == [(TODAY.date(), 1)]
    compact_files(data, NEXT_DAY + timedelta(days=1))
    assert rows(data, sql) == [(TODAY.date(), 1)]


def test_a_merge_keeps_the_position_and_excludes_concurrent_merges(data: Path) -> None:
    land(data, 0, 3, TODAY)
    land(data, 3, 3, TODAY, day=-1)
    land(data, 6, 3, TODAY)
    compact_files(data, NEXT_DAY)
    assert read_landed_position(data, topics.RAW, 0) == 9
    for start in (0, 3, 6):
        for day in (-1, 0, 1):
            with pytest.raises(OvertakenError):
                land(data, start, 2, TODAY, day=day)
    land(data, 9, 1, TODAY, day=-1)
    assert rows(data, "SELECT count(*), count(DISTINCT sms_id) FROM raw_webhooks") == [(10, 10)]


def test_files_of_an_older_schema_are_merged_and_those_of_a_newer_one_are_not(data: Path) -> None:
    for first in (0, 3):
        path = land(data, first, 3, TODAY)
        pq.write_table(pq.read_table(path).drop_columns(["spooled"]), path)
        os.utime(path, (0, 0))
    assert compact_files(data, NEXT_DAY).rows == 6
    assert rows(data, "SELECT count(*) FROM raw_webhooks WHERE spooled IS NULL") == [(6,)]
    path = land(data, 6, 1, TODAY)
    table = pq.read_table(path)
    pq.write_table(table.append_column("later", table["offset"]), path)
    os.utime(path, (0, 0))
    with pytest.raises(CompactionError, match=r"date=2026-11-24 were not merged.*columns of a newer smspulse: later"):
        compact_files(data, NEXT_DAY)
    assert len(rows(data, ALL)) == 7


def test_a_damaged_file_is_reported_in_one_line_and_nothing_is_changed(data: Path) -> None:
    land(data, 0, 3, TODAY)
    torn = land(data, 3, 3, TODAY)
    torn.write_bytes(b"PAR1")
    os.utime(torn, (0, 0))
    command = ["compact", "--data", str(data)]
    result = CliRunner().invoke(cli, command)
    assert isinstance(result.exception, CompactionError)
    assert "date=2026-11-24 were not merged and are as they were" in str(result.exception)
    torn.unlink()
    assert len(rows(data, ALL)) == 3
    land(data, 3, 3, TODAY)
    assert "2 files became 1" in CliRunner().invoke(cli, command).output


def test_a_file_system_that_cannot_exchange_folders_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for first in (0, 3):
        land(data, first, 3, TODAY)
    monkeypatch.setattr(atomic_replace, "_RENAME_EXCHANGE", 1 << 31)
    with pytest.raises(CannotExchangeError, match=r"date=2026-11-24 cannot be changed in one step"):
        compact_files(data, NEXT_DAY)
    assert names(data) == [f"sms.raw+0+{n:020d}" for n in (0, 3)]


def test_readers_and_landers_during_merges_read_each_row_once(data: Path) -> None:
    """Rows land in order, so the largest id of a result gives the expected number of rows."""
    done = threading.Event()
    failures: list[Any] = []
    answers: set[int] = set()
    batch, files = 20, 60

    def read(sql: str) -> None:
        while not done.is_set():
            found = query(data, sql).iloc[0]
            if not found["n"] == found["ids"] == found["newest"]:
                failures.append((sql, tuple(found)))
            answers.add(int(found["n"]))

    once = """
        SELECT count(*) AS n, count(DISTINCT sms_id) AS ids, coalesce(max("offset") + 1, 0) AS newest FROM raw_webhooks
    """
    # It may list the files before and after a landing, so it joins the rows of both lists.
    twice = """
        SELECT count(*) AS n, count(DISTINCT a.sms_id) AS ids, coalesce(max(a."offset") + 1, 0) AS newest
        FROM raw_webhooks AS a JOIN raw_webhooks AS b USING ("offset") WHERE a.sms_id = b.sms_id
    """
    readers = [threading.Thread(target=read, args=(sql,)) for sql in (once, twice)]

    def merge() -> None:
        while not done.is_set():
            compact_files(data, NEXT_DAY)

    merger = threading.Thread(target=merge)
    for thread in (*readers, merger):
        thread.start()
    try:
        for file in range(files):
            land(data, file * batch, batch, TODAY)
    finally:
        done.set()
        for thread in (*readers, merger):
            thread.join()
    compact_files(data, NEXT_DAY)
    assert rows(data, "SELECT count(*) FROM raw_webhooks") == [(batch * files,)]
    assert len(list(data.glob("raw/date=2*/*"))) == 1
    assert failures == []
    assert len(answers) > 3  # it did read meanwhile


KILLED = """
import json, os, shutil, sys
from datetime import datetime
from pathlib import Path
from warehouse import catalog
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.compaction import compact_files

catalog.publish_views = lambda data: None  # already published, and publishing takes most of the time
data, kept, now, later = Path(sys.argv[1]), Path(sys.argv[2]), *map(datetime.fromisoformat, sys.argv[3:])
EVENTS = {"os.link", "os.mkdir", "os.remove", "os.rmdir", "os.rename"}
shutil.copytree(data, kept / "before")

def compacted(steps, at):
    child = os.fork()
    if not child:
        left = steps
        def hook(event, arguments):
            nonlocal left
            if event in EVENTS or event == "ours":
                left -= 1
                if left < 0:
                    os._exit(9)
        exchange = atomic_replace._exchange_folders
        def around(*paths):
            sys.audit("ours")
            exchange(*paths)
            sys.audit("ours")
        atomic_replace._exchange_folders = around
        sys.addaudithook(hook)
        compact_files(data, at)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

steps, code = 0, 9
while code == 9:
    shutil.rmtree(data)
    shutil.copytree(kept / "before", data)
    code = compacted(steps, now)
    shutil.copytree(data, kept / f"{steps}-killed")
    if not steps % 4 or code == 0:
        assert compacted(1_000_000, later) == 0
    shutil.copytree(data, kept / f"{steps}-done")
    steps += 1
print(json.dumps([steps, code]))
"""


def test_a_kill_between_any_two_steps_leaves_every_row_once(
    data: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for first, partition in ((0, 0), (3, 0), (0, 1)):
        land(data, first, 3, TODAY, partition=partition)
    land(data, 6, 1, NEXT_DAY)
    kept = tmp_path_factory.mktemp("killed")
    times = [(TODAY + timedelta(hours=1)).isoformat(), (NEXT_DAY + timedelta(hours=1)).isoformat()]
    command = [sys.executable, "-c", KILLED, str(data), str(kept), *times]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    steps, code = json.loads(done.stdout)
    assert code == 0
    assert steps > 10
    names_then = set()
    for number in range(steps):
        for state in ("killed", "done"):
            copy = kept / f"{number}-{state}"
            landed = duckdb.sql(f"""
                SELECT "partition", "offset", sms_id FROM read_parquet('{copy}/raw/date=2*/*') ORDER BY ALL
            """).fetchall()  # noqa: S608 - names of ours
            assert landed == [(0, n, 1_000_000 - n) for n in range(7)] + [(1, n, 1_000_000 - n) for n in range(3)]
            assert [read_landed_position(copy, topics.RAW, n) for n in (0, 1)] == [7, 3]
        names_then.add(tuple(names(kept / f"{number}-killed")))
        if number % 4 == 0:
            assert len(names(copy)) == 2
            assert not list((copy / TEMPORARY_FOLDER / "upkeep").iterdir())
    assert {len(each) for each in names_then} == {3, 4}


def test_two_states_of_the_base_files_are_never_mixed_in_one_result(data: Path) -> None:
    """The query lists the base files, changes them, and lists them again. Both states have five messages."""
    land_records(data, 0, [version(n, n, version=1) for n in range(5)])
    base = data / "base"
    atomic_replace.add_rotating_seed(base)
    with atomic_replace.lock_maintenance(data) as scratch, open_warehouse(data) as connection:
        made = scratch / "base.parquet"
        columns = ", ".join(SCHEMAS["base"].names)
        second = "SELECT * REPLACE (2::BIGINT AS version) FROM messages"
        connection.execute(f"COPY (SELECT {columns} FROM ({second})) TO '{made}'")  # noqa: S608 - names of ours
        place = base / "date=2026-11-24" / f"0-{atomic_replace.unique_suffix()}.parquet"

        def change_state(rows: int) -> int:
            if place.exists():
                atomic_replace.replace_files(base, scratch, [place], {})
            else:
                atomic_replace.replace_files(base, scratch, [], {place: made})
            return rows

        def versions() -> Any:
            return connection.execute("SELECT count(*), sum(version) FROM messages").fetchone()

        # DuckDB calls the function when it binds the statement, between the two views.
        connection.create_function("change_state", change_state)
        across = """
            SELECT count(*), sum(before.version), sum(after.version)
            FROM messages AS before, range(change_state(1)), messages AS after
            WHERE (before.source, before.sms_id) = (after.source, after.sms_id)
        """
        assert versions() == (5, 5)
        with pytest.raises(duckdb.IOException, match="Cannot open file"):
            connection.execute(across).fetchone()
        assert versions() == (5, 10)
        with pytest.raises(duckdb.IOException, match="Cannot open file"):
            connection.execute(across).fetchone()
        assert versions() == (5, 5)


def test_files_are_added_to_folders_only_after_queries_could_list_them(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A query that listed the folders before the new one existed would miss its files in one of its two lists."""
    place = data / "base" / "date=2026-11-24" / "file.parquet"
    ages: list[float] = []
    waits: list[float] = []
    exchange, sleep = atomic_replace._exchange_folders, time.sleep

    def seen(one: Path, other: Path) -> None:
        ages.append(time.time() - place.parent.stat().st_mtime)
        exchange(one, other)

    def waited(seconds: float) -> None:
        waits.append(seconds)
        sleep(seconds)

    monkeypatch.setattr(atomic_replace, "_exchange_folders", seen)
    monkeypatch.setattr(time, "sleep", waited)
    with atomic_replace.lock_maintenance(data) as scratch:
        made = scratch / "made"
        made.write_text("rows")
        for gone, come in ([], {place: made}), ([place], {}), ([], {place: made}):
            atomic_replace.replace_files(data / "base", scratch, gone, come)
    assert ages[0] >= atomic_replace._SETTLE_S
    assert [wait > 0 for wait in waits] == [True, False, False]  # empty again, it has its old age
