"""Merges what was landed recently, every few seconds: so that queries open few files, and read few versions.

Each flush of a lander writes a file for each partition and dataset that has rows. Once a log has some of them, they
become one. A merged file is merged again with newer ones that have at least its rows together. So the number of files
of a log grows with the logarithm of the number of flushes, and so does the number of times that a row is written. Large
files are left to `compact`.

The versions of messages that were landed also become recent base files (`warehouse.maintenance.recent_base`). The
landed files of a version are merged one run after it, when the views do not read them any more.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from core.memory import return_free_memory
from core.topics import MESSAGES
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.file_names import LANDED_FILE_NAME, is_merged_file
from warehouse.landed_files import group_files_by_log
from warehouse.maintenance import atomic_replace
from warehouse.maintenance.file_merge import FileMerger, MergedFile, read_parquet_footer, split_at_gaps
from warehouse.maintenance.recent_base import RecentBaseResult, update_recent_base
from warehouse.watermark import read_live_watermark

_MERGED_AT_ONCE: Final = 8
# Rows from which a file is not merged again before `compact`. A merge has its rows in memory, 1.4 KB each for versions
# of messages. An hour of 500 webhooks a second leaves some 30 such files.
_LARGE_FILE_ROWS: Final = 50_000


@dataclass(slots=True)
class RecentMergeResult:
    """Counts of a run.

    Args:
        base: Counts of the recent base files.
        files_before: Landed files that were merged.
        files_after: Files that they became.
        rows: Their rows.
    """

    base: RecentBaseResult
    files_before: int = 0
    files_after: int = 0
    rows: int = 0


def merge_recent_files(
    data: Path, is_stopped: Callable[[], bool] = lambda: False, memory: str = "512MB", threads: int = 1
) -> RecentMergeResult | None:
    """Merge what was landed recently. Readers and landers go on meanwhile.

    Args:
        data: The data folder.
        is_stopped: Returns whether to end. It is called between merges.
        memory: Limit of DuckDB's memory. Beyond it, DuckDB writes to disk.
        threads: DuckDB's threads.

    Returns:
        Counts; None if another process maintains the folder now.

    Raises:
        CompactionError: A file is damaged, or memory and disk do not suffice. Earlier merges of the run stay.
        CannotExchangeError: The file system cannot exchange folders.
        OSError: The data folder is not writable.
    """
    data = data.resolve()
    with atomic_replace.try_lock_maintenance(data) as scratch:
        if scratch is None:
            return None
        limits = {"memory_limit": memory, "threads": threads, "temp_directory": str(scratch / "spill")}
        landed = _LandedFilesMerge(scratch, limits, is_stopped)
        for topic, dataset in DATASET_BY_TOPIC.items():
            ends = _read_unneeded_ends(data) if topic == MESSAGES else None
            for folder in sorted((data / dataset).glob("date=*")):
                landed.merge_day(folder, ends)
        if not is_stopped():
            landed.result.base = update_recent_base(data, scratch, limits)
    return landed.result


def _read_unneeded_ends(data: Path) -> dict[str, int]:
    """Return the offsets before which the views read no landed versions, by `PartitionLog.file_label`."""
    watermark = read_live_watermark(data)
    return watermark.offsets if watermark else {}


class _LandedFilesMerge:
    """One run. Temporary files are in `scratch`."""

    def __init__(self, scratch: Path, limits: dict[str, Any], is_stopped: Callable[[], bool]) -> None:
        self._scratch, self._is_stopped = scratch, is_stopped
        self._merger = FileMerger(scratch, limits)
        self.result = RecentMergeResult(RecentBaseResult())

    def merge_day(self, folder: Path, ends: Mapping[str, int] | None) -> None:
        """Merge the files of one day of a landed dataset.

        Args:
            folder: Folder of the day.
            ends: Offsets by `PartitionLog.file_label`. Files that begin behind them are left alone. None: no file is.
        """
        removed: list[Path] = []
        added: list[MergedFile] = []
        for log, paths in group_files_by_log(folder).items():
            settled = (
                paths if ends is None else [path for path in paths if _parse_start(path) < ends.get(log.file_label, 0)]
            )
            for parts in split_at_gaps(select_newest_files(settled)):
                if len(parts) > 1 and not self._is_stopped():
                    added.append(self._merger.merge_landed_files(parts))
                    removed += parts
        atomic_replace.replace_files(folder, self._scratch, removed, {each.path: each.temporary for each in added})
        self.result.files_before += len(removed)
        self.result.files_after += len(added)
        self.result.rows += sum(each.rows for each in added)
        if added:
            return_free_memory()


def select_newest_files(paths: list[Path]) -> list[Path]:
    """Return the newest files of a log that are to be merged, in order; none if there are few.

    Args:
        paths: Files of one log and day, in the order of their ranges.

    Raises:
        CompactionError: A file is damaged.
    """
    count = 0
    total = 0
    for path in reversed(paths):
        rows = read_parquet_footer(path).num_rows
        # Files that were not merged yet are few.
        if is_merged_file(path) and (count < _MERGED_AT_ONCE or rows > min(total, _LARGE_FILE_ROWS)):
            break
        count += 1
        total += rows
    return paths[-count:] if count >= _MERGED_AT_ONCE else []


def _parse_start(path: Path) -> int:
    name = LANDED_FILE_NAME.fullmatch(path.name)
    return int(name["start"]) if name else 0
