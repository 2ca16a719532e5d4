"""Lists of the landed files of a data folder, by log and incarnation."""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.file_names import LANDED_FILE_NAME, parse_partition_log
from warehouse.partition_log import PartitionLog


def list_incarnations(data: Path, topic: str, partition: int) -> set[str]:
    """Return the incarnations of a partition that have files."""
    entries = _scan_day_folders(data / DATASET_BY_TOPIC[topic], f"{topic}+{partition}")
    return select_incarnations((name for name, _ in entries), partition)


def select_incarnations(names: Iterable[str], partition: int) -> set[str]:
    """Return the incarnations of a partition that landed files of one topic are of, by the names of the files."""
    logs = [parse_partition_log(found) for name in names if (found := LANDED_FILE_NAME.fullmatch(name))]
    return {log.incarnation for log in logs if log.partition == partition}


def list_incarnations_by_age(data: Path, topic: str) -> list[str]:
    """Return the incarnations of a topic that have files, by the age of their oldest file.

    On the same day, they are ordered by the time at which their first file was written.
    """
    found = []
    for name, folder in _scan_day_folders(data / DATASET_BY_TOPIC[topic], f"{topic}+"):
        # Compaction may have merged it meanwhile.
        with suppress(FileNotFoundError):
            found.append((Path(folder).name, Path(folder, name).stat().st_mtime, name))
    return sort_incarnations(found)


def sort_incarnations(landed_files: Iterable[tuple[str, float, str]]) -> list[str]:
    """Return the incarnations of landed files, by the age of their oldest file.

    Args:
        landed_files: Folder name, time of writing in seconds since 1970, and file name of each.
    """
    first: dict[str, tuple[str, float]] = {}
    for folder, written_at, name in landed_files:
        # The seed is no landed file.
        if landed := LANDED_FILE_NAME.fullmatch(name):
            incarnation = parse_partition_log(landed).incarnation
            first[incarnation] = min((folder, written_at), first.get(incarnation, (folder, written_at)))
    return sorted(first, key=first.__getitem__)


def list_log_files(data: Path, log: PartitionLog) -> list[Path]:
    """Return the files of a log, in the order of their ranges."""
    # Names sort by range, the days of their folders need not.
    entries = sorted(_scan_day_folders(data / DATASET_BY_TOPIC[log.topic], f"{log.topic}+{log.file_label}+"))
    return [Path(folder, name) for name, folder in entries]


def group_files_by_log(folder: Path) -> dict[PartitionLog, list[Path]]:
    """Return the landed files of one day's folder by their log, each list in the order of the ranges."""
    found: dict[PartitionLog, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        # The seed is no landed file.
        if name := LANDED_FILE_NAME.fullmatch(path.name):
            found.setdefault(parse_partition_log(name), []).append(path)
    return found


def list_newest_files(dataset: Path) -> dict[PartitionLog, Path]:
    """Return the file with the newest range of each log of a landed dataset."""
    found: dict[PartitionLog, Path] = {}
    for name, folder in sorted(_scan_day_folders(dataset, "")):
        # The seed is no landed file.
        if landed := LANDED_FILE_NAME.fullmatch(name):
            found[parse_partition_log(landed)] = Path(folder, name)
    return found


def find_newest_file(dataset: Path, log: PartitionLog) -> Path | None:
    """Return the file with the newest range of a log."""
    name, folder = max(_scan_day_folders(dataset, f"{log.topic}+{log.file_label}+"), default=("", ""))
    return Path(folder, name) if name else None


def _scan_day_folders(dataset: Path, head: str) -> Iterator[tuple[str, str]]:
    """Yield name and folder of the files of a dataset whose names begin with `head`."""
    try:
        days = [day.path for day in os.scandir(dataset) if day.name.startswith("date=")]
    except FileNotFoundError:
        return
    for day in days:
        # Retention may have deleted the day meanwhile.
        with suppress(FileNotFoundError):
            for entry in os.scandir(day):
                if entry.name.startswith(head):
                    yield entry.name, day
