"""Recent landed files are merged in tiers, next to landers and readers."""

import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from landing import land_records
from warehouse_records import raw, status, version

from core.topics import MESSAGES, RAW
from warehouse import recent_merger
from warehouse.errors import CannotExchangeError, CompactionError, OvertakenError
from warehouse.landed_files import list_log_files
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.recent_files import merge_recent_files, select_newest_files
from warehouse.partition_log import PartitionLog
from warehouse.reader import fetch_rows, open_warehouse
from warehouse.recent_merger import RecentFileMerger
from warehouse.sink.range_metadata import read_landed_position, read_range_start

LOG = PartitionLog(RAW, 0)
WAIT_S = 60


def land_webhooks(data: Path, first: int, flushes: int, partition: int = 0) -> int:
    """Land flushes of two webhooks each; return the next offset."""
    for number in range(flushes):
        start = first + 2 * number
        bodies = (raw(offset, status(offset, 1), partition=partition) for offset in (start, start + 1))
        land_records(data, start, list(bodies))
    return first + 2 * flushes


def offsets(data: Path) -> list[int]:
    with open_warehouse(data) as connection:
        return [row["offset"] for row in fetch_rows(connection, """SELECT "offset" FROM dataset('raw') ORDER BY ALL""")]


def test_the_number_of_files_grows_with_the_logarithm_of_the_flushes(published: Path) -> None:
    end, counts = 0, []
    for _ in range(20):
        end = land_webhooks(published, end, 4)
        assert merge_recent_files(published)
        counts.append(len(list_log_files(published, LOG)))
    assert max(counts) <= 10  # of 80 flushes
    assert offsets(published) == list(range(end))
    paths = list_log_files(published, LOG)
    starts = [read_range_start(path) for path in paths]
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert read_landed_position(published, RAW, 0) == end
    # Sorted by message, as `compact` sorts it.
    ids = pq.read_table(paths[0])["sms_id"].to_pylist()
    assert ids == sorted(ids)


def write_rows(path: Path, rows: int) -> Path:
    pq.write_table(pa.table({"offset": pa.array([0] * rows, pa.int64())}), path)
    return path


def merge_as_often_as_in_an_hour(folder: Path, rows_of_a_flush: int) -> tuple[int, int, int]:
    """Return the most files, those at the end, and the number of rows that merges wrote."""
    paths: list[Path] = []
    most, written = 0, 0
    for number in range(720):
        paths.append(write_rows(folder / f"sms.raw+0@bench+{number:020d}.parquet", rows_of_a_flush))
        parts = select_newest_files(paths)
        most = max(most, len(paths))
        if parts:
            rows = sum(pq.read_metadata(path).num_rows for path in parts)
            written += rows
            merged = parts[-1].with_name(f"{parts[-1].stem.partition('-')[0]}-mark.parquet")
            for path in parts:
                path.unlink()
            paths[-len(parts) :] = [write_rows(merged, rows)]
    return most, len(paths), written


def test_a_row_is_written_once_for_each_factor_of_two(tmp_path: Path) -> None:
    most, _, written = merge_as_often_as_in_an_hour(tmp_path, 10)
    assert most <= 8 + 7  # 720 flushes are 90 times 8
    assert written <= 7 * 720 * 10


def test_large_files_are_not_merged_again(tmp_path: Path) -> None:
    """1,000 webhooks a second of one partition."""
    most, left, written = merge_as_often_as_in_an_hour(tmp_path, 5000)
    assert max(pq.read_metadata(path).num_rows for path in tmp_path.iterdir()) <= 2 * 50_000 + 8 * 5000
    assert most <= 100
    assert left >= 720 * 5000 / 140_000
    assert written <= 3 * 720 * 5000


def test_a_lander_goes_on_after_its_newest_file_was_merged(published: Path) -> None:
    end = land_webhooks(published, 0, 8)
    merge_recent_files(published)
    assert len(list_log_files(published, LOG)) == 1
    with pytest.raises(OvertakenError):
        land_webhooks(published, end - 2, 1)
    assert land_webhooks(published, end, 1) == end + 2
    assert offsets(published) == list(range(end + 2))


def test_a_gap_stays_visible(published: Path) -> None:
    end = land_webhooks(published, 0, 8)
    land_webhooks(published, end + 2, 8)
    merge_recent_files(published)
    assert [read_range_start(path) for path in list_log_files(published, LOG)] == [0, end + 2]


def test_versions_that_the_views_read_are_not_merged(published: Path) -> None:
    """Readers that have opened the views do not lose the files that they are about to read."""
    for number in range(8):
        land_records(published, number, [version(number, number)])
    paths = list_log_files(published, PartitionLog(MESSAGES, 0))
    merge_recent_files(published)
    assert list_log_files(published, PartitionLog(MESSAGES, 0)) == paths
    land_records(published, 8, [version(8, 8)])
    merge_recent_files(published)
    assert len(list_log_files(published, PartitionLog(MESSAGES, 0))) == 2


def test_nothing_is_merged_while_another_process_maintains_the_folder(published: Path) -> None:
    land_webhooks(published, 0, 8)
    with atomic_replace.lock_maintenance(published):
        assert merge_recent_files(published) is None
    result = merge_recent_files(published)
    assert result is not None
    assert (result.files_before, result.files_after, result.rows) == (8, 1, 16)


def test_a_stop_ends_a_run_between_merges(published: Path) -> None:
    land_webhooks(published, 0, 8)
    land_webhooks(published, 0, 8, partition=1)
    asked = iter([False, True, True])
    result = merge_recent_files(published, lambda: next(asked))
    assert result is not None
    assert (result.files_before, result.files_after) == (8, 1)


def test_readers_see_every_row_once_while_files_are_merged(published: Path) -> None:
    stop = threading.Event()
    failures: list[Any] = []
    reads = [0]

    def read() -> None:
        with open_warehouse(published) as connection:
            while not stop.is_set():
                ((low, high, count),) = [
                    tuple(row.values())
                    for row in fetch_rows(
                        connection,
                        "SELECT coalesce(min(sms_id), 0) AS low, coalesce(max(sms_id), -1) AS high, count(*) AS count "
                        "FROM messages",
                    )
                ]
                reads[0] += 1
                if count != high - low + 1:
                    failures.append((low, high, count))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(36):
        land_records(published, number, [version(number, number)])
        if number % 6 == 5:
            merge_recent_files(published)
    stop.set()
    reader.join()
    assert failures == []
    assert reads[0]


class Merges:
    """Takes the place of `merge_recent_files`: each call waits for its outcome."""

    def __init__(self) -> None:
        self.outcomes: list[Exception | None] = []
        self.called = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def __call__(self, *_: object) -> None:
        self.called.release()
        assert self.go_on.acquire(timeout=WAIT_S)
        outcome = self.outcomes.pop(0)
        if outcome is not None:
            raise outcome


@pytest.fixture
def merges(monkeypatch: pytest.MonkeyPatch) -> Merges:
    made = Merges()
    monkeypatch.setattr(recent_merger, "merge_recent_files", made)
    return made


def test_the_thread_merges_after_landing_and_repeats_what_failed(
    tmp_path: Path, merges: Merges, caplog: pytest.LogCaptureFixture
) -> None:
    full = OSError(28, "No space left on device")
    merges.outcomes = [full, full, CompactionError(tmp_path, "damaged"), CannotExchangeError(tmp_path, "no exchange")]
    with RecentFileMerger(tmp_path, 0.01) as merger:
        assert not merges.called.acquire(timeout=0.2)  # nothing was landed
        merger.notify_landed()
        for _ in range(4):
            assert merges.called.acquire(timeout=WAIT_S)
            merges.go_on.release()
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert ["No space" in line for line in lines] == [True, False, False]
    assert "damaged" in lines[1]
    assert "no exchange" in lines[2]


def test_the_thread_merges_next_to_landing(published: Path) -> None:
    with RecentFileMerger(published, 0.01) as merger:
        land_webhooks(published, 0, 8)
        merger.notify_landed()
        with open_warehouse(published) as connection:
            while len(list_log_files(published, LOG)) > 1:
                fetch_rows(connection, "SELECT count(*) FROM raw_webhooks")
    assert offsets(published) == list(range(16))
