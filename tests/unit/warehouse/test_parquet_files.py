"""One range of offsets is one file, seen whole or not at all, once."""

import fcntl
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from landing import land_records
from warehouse_records import NOON, raw, status

from core import topics
from core.atomic_file import delete_orphaned_files
from warehouse.errors import DamagedFileError, OvertakenError
from warehouse.file_names import TEMPORARY_FOLDER
from warehouse.maintenance.compaction import compact_files
from warehouse.reader import open_warehouse
from warehouse.sink.range_metadata import find_first_lost_offsets, find_present_incarnation, read_landed_position


def webhooks(first: int, count: int) -> list[object]:
    return [raw(offset, status(offset, 6)) for offset in range(first, first + count)]


def test_a_file_is_named_after_where_its_range_begins(tmp_path: Path) -> None:
    path = land_records(tmp_path, 5, webhooks(8, 3))  # offsets 5 to 7 hold no records
    assert path.relative_to(tmp_path).as_posix() == "raw/date=2026-11-24/sms.raw+0+00000000000000000005.parquet"
    assert pq.read_table(path)["offset"].to_pylist() == [8, 9, 10]
    assert read_landed_position(tmp_path, topics.RAW, 0) == 11
    assert not list((tmp_path / TEMPORARY_FOLDER).iterdir())


def test_the_position_of_a_partition_is_its_own(tmp_path: Path) -> None:
    land_records(tmp_path, 0, webhooks(0, 3))
    assert [read_landed_position(tmp_path, topics.RAW, partition) for partition in (0, 1)] == [3, 0]
    assert read_landed_position(tmp_path, topics.MESSAGES, 0) == 0


def test_the_newest_range_counts_though_its_day_is_older(tmp_path: Path) -> None:
    land_records(tmp_path, 0, webhooks(0, 3))
    day_before = [record._replace(timestamp=NOON - 86_400_000) for record in webhooks(3, 1)]
    land_records(tmp_path, 3, day_before)
    assert read_landed_position(tmp_path, topics.RAW, 0) == 4


@pytest.mark.parametrize("day", ["the same day", "another day"])
def test_of_two_that_begin_a_range_at_one_place_one_wins(tmp_path: Path, day: str) -> None:
    path = land_records(tmp_path, 0, webhooks(0, 3))
    late = webhooks(0, 5)
    if day == "another day":
        late = [record._replace(timestamp=NOON + 86_400_000) for record in late]
    with pytest.raises(OvertakenError) as caught:
        land_records(tmp_path, 0, late)
    assert caught.value.path == path
    assert read_landed_position(tmp_path, topics.RAW, 0) == 3
    assert sorted(tmp_path.glob("raw/*/*")) == [path]


def test_many_at_once_land_a_range_once(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)
    outcomes: list[str] = []

    def land_concurrently(count: int) -> None:
        barrier.wait()
        try:
            land_records(tmp_path, 0, webhooks(0, count))
            outcomes.append("landed")
        except OvertakenError:
            outcomes.append("overtaken")

    threads = [threading.Thread(target=land_concurrently, args=(count,)) for count in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["landed", *["overtaken"] * 7]
    (path,) = tmp_path.glob("raw/*/*")
    assert read_landed_position(tmp_path, topics.RAW, 0) == pq.read_metadata(path).num_rows


def test_a_reader_sees_every_file_whole(published: Path) -> None:
    done = threading.Event()

    def land_all() -> None:
        for start in range(0, 4_000, 100):
            land_records(published, start, webhooks(start, 100))
        done.set()

    writer = threading.Thread(target=land_all)
    counts = []
    with open_warehouse(published) as connection:
        writer.start()
        while not done.is_set():
            counts.append(connection.execute("SELECT count(*), count(DISTINCT sms_id) FROM raw_webhooks").fetchone())
        counts.append(connection.execute("SELECT count(*), count(DISTINCT sms_id) FROM raw_webhooks").fetchone())
    writer.join()
    assert counts == sorted(counts)
    assert all(rows == distinct and rows % 100 == 0 for rows, distinct in counts)
    assert counts[-1] == (4_000, 4_000)
    assert len(set(counts)) > 2  # it did look while files came


def test_a_failed_landing_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "raw").write_text("in the way")
    with pytest.raises(OSError, match="raw"):
        land_records(tmp_path, 0, webhooks(0, 3))
    (tmp_path / "raw").unlink()
    land_records(tmp_path, 0, webhooks(0, 3))
    assert read_landed_position(tmp_path, topics.RAW, 0) == 3


def test_a_damaged_newest_file_is_named(tmp_path: Path) -> None:
    path = land_records(tmp_path, 0, webhooks(0, 3))
    path.write_bytes(b"PAR1")
    with pytest.raises(DamagedFileError, match=re.escape(path.name)):
        read_landed_position(tmp_path, topics.RAW, 0)


def test_files_of_dead_writers_are_swept_and_of_living_ones_not(tmp_path: Path) -> None:
    folder = tmp_path / TEMPORARY_FOLDER
    folder.mkdir()
    (folder / "orphan.parquet.1").write_bytes(b"half")
    living = folder / "living.parquet.2"
    hold = """
import fcntl, sys
file = open(sys.argv[1], "xb")
fcntl.flock(file, fcntl.LOCK_EX)
print("locked", flush=True)
input()
"""
    child = subprocess.Popen(
        [sys.executable, "-c", hold, str(living)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline()
    assert delete_orphaned_files(tmp_path / TEMPORARY_FOLDER) == 1
    assert list(folder.iterdir()) == [living]
    child.communicate("\n")
    assert delete_orphaned_files(tmp_path / TEMPORARY_FOLDER) == 1
    assert not list(folder.iterdir())


@pytest.mark.parametrize("meets", ["before its lock", "at its lock"])
def test_a_sweep_that_meets_a_file_just_created_costs_its_writer_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meets: str
) -> None:
    flock, swept = fcntl.flock, []

    def lock_after_a_sweep(file: Any, operation: int) -> None:
        if not swept and not isinstance(file, int):
            monkeypatch.setattr(fcntl, "flock", flock)
            swept.append(delete_orphaned_files(tmp_path / TEMPORARY_FOLDER))
            if meets == "at its lock":
                raise BlockingIOError
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", lock_after_a_sweep)
    path = land_records(tmp_path, 0, webhooks(0, 3))
    assert swept == [1]
    assert path.exists()
    assert not list((tmp_path / TEMPORARY_FOLDER).iterdir())


@pytest.mark.parametrize("timestamp", [-1, 2**62])
def test_a_time_that_cannot_be_meant_is_null_and_reads(published: Path, timestamp: int) -> None:
    land_records(published, 0, [raw(0, status(1, 6))._replace(timestamp=timestamp)])
    with open_warehouse(published) as connection:
        assert connection.execute("SELECT recorded_at, sms_id FROM raw_webhooks").fetchall() == [(None, 1)]


def test_a_filter_on_the_date_skips_other_files(published: Path) -> None:
    for start in range(3):
        land_records(published, start, [raw(start, status(1, 6))._replace(timestamp=NOON + start * 86_400_000)])
    with open_warehouse(published) as connection:
        sql = "EXPLAIN SELECT count(*) FROM raw_webhooks WHERE date = DATE '2026-11-25'"
        plan = connection.execute(sql).fetchall()[0][1]
    assert "1/4" in plan  # with the seed there are four files


def land_log(data: Path, incarnation: str, first: int, count: int, *, seconds: float) -> None:
    """Land webhooks of an incarnation, a file each, that were written so many seconds after noon."""
    for offset in range(first, first + count):
        record = raw(offset, status(offset, 6), seconds=seconds)
        land_records(data, offset, [record], incarnation=incarnation)  # type: ignore[list-item]


def test_the_files_tell_from_which_offset_on_kafka_has_lost_the_records_of_each_incarnation(published: Path) -> None:
    land_log(published, "", 0, 5, seconds=0)
    land_log(published, "topic", 5, 5, seconds=1)
    land_log(published, "other", 0, 3, seconds=2)
    assert find_present_incarnation(published, topics.RAW, 0) == "other"
    lost = {"": 0, "topic": 0, "other": None}
    assert find_first_lost_offsets(published, topics.RAW, 0, "other") == lost
    lost = {"": None, "topic": None, "other": 0}
    assert find_first_lost_offsets(published, topics.RAW, 0, "topic") == lost
    land_log(published, "topic.1", 8, 9, seconds=3)
    land_log(published, "topic.2", 6, 2, seconds=4)
    assert find_present_incarnation(published, topics.RAW, 0) == "topic.2"
    lost = {"": 6, "topic": 6, "topic.1": 6, "topic.2": None, "other": 0}
    assert find_first_lost_offsets(published, topics.RAW, 0, "topic") == lost
    compact_files(published, datetime.now(UTC) + timedelta(days=2))
    assert find_first_lost_offsets(published, topics.RAW, 0, "topic") == lost
    assert find_first_lost_offsets(published, topics.RAW, 1, "topic") == {}
