"""Retention: drops days that are too old, and keeps their counts.

The counts of a day's messages were written with them (`warehouse.rebuild`), so only the details are dropped. Files from
which a sink derives its position are replaced by files of the same name without rows.
"""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq

from warehouse import catalog
from warehouse.datasets import DATASET_BY_TOPIC, RECENT_BASE
from warehouse.errors import RetentionError
from warehouse.file_names import LANDED_FILE_NAME, SEED_DATE, parse_folder_day, parse_partition_log
from warehouse.landed_files import find_newest_file
from warehouse.maintenance import atomic_replace
from warehouse.rollups import has_current_rollups
from warehouse.schemas import SCHEMAS
from warehouse.settings import RetentionSettings
from warehouse.sink import parquet_files
from warehouse.sink.range_metadata import read_end_metadata
from warehouse.watermark import WATERMARK_FILE, BaseWatermark, read_base_watermark

_DAY: Final = timedelta(days=1)


def drop_expired_days(
    data: Path, settings: RetentionSettings, now: datetime, min_age: timedelta
) -> dict[str, list[date]]:
    """Drop the days that are older than the settings allow; return them by dataset. Readers and sinks go on meanwhile.

    Args:
        data: The data folder.
        settings: Number of days to keep of each dataset.
        now: The time.
        min_age: How long messages can change. Raw webhooks and messages must be kept that long.

    Raises:
        RetentionError: The settings would drop data that are still needed. Nothing was dropped.
        CannotExchangeError: The file system cannot exchange folders.
        OSError: The data folder is not writable.
    """
    data = data.resolve()
    _check_retention_settings(settings, min_age)
    catalog.publish_views(data)
    dropped: dict[str, list[date]] = {}

    def first_kept_day(days: int | None) -> date:
        # Without a setting, no day is old enough.
        return now.astimezone(UTC).date() - timedelta(days) if days else date.min

    with atomic_replace.lock_maintenance(data) as scratch:
        before = {
            "raw": first_kept_day(settings.raw_days),
            "messages": first_kept_day(settings.versions_days),
            "differences": first_kept_day(settings.messages_days),
            "deadletters": first_kept_day(settings.deadletters_days),
            "quality": first_kept_day(settings.quality_days),
        }
        watermark = read_base_watermark(data)
        if watermark is None:
            # Before the first rebuild, messages exist nowhere else.
            before |= dict.fromkeys(("raw", "messages", "differences"), date.min)
        else:
            if not has_current_rollups(data):
                # The next rebuild counts them.
                before["differences"] = date.min
            dropped["base"] = _drop_base_days(data, scratch, before["differences"], before["raw"], watermark)
            before["messages"] = min(before["messages"], watermark.since)
        for name, first_kept in before.items():
            folders = _list_expired_folders(data / name, first_kept)
            for folder in folders:
                _drop_landed_day(folder, scratch)
            dropped[name] = [parse_folder_day(folder) for folder in folders]
    return {name: days for name, days in dropped.items() if days}


def _check_retention_settings(settings: RetentionSettings, min_age: timedelta) -> None:
    for name in ("raw_days", "messages_days"):
        days = getattr(settings, name)
        if days is not None and timedelta(days) < min_age:
            detail = f"{name} is {days}, but messages can change for {min_age / _DAY:g} days: raise it to that"
            raise RetentionError(detail)
    messages = settings.messages_days
    if messages is not None and (settings.raw_days is None or settings.raw_days > messages):
        detail = "messages_days needs raw_days of as many or fewer: messages would come back from the raw webhooks"
        raise RetentionError(detail)


def _list_expired_folders(folder: Path, before: date) -> list[Path]:
    days = (each for each in folder.glob("date=*") if SEED_DATE < parse_folder_day(each) < before)
    return sorted(each for each in days if any(pq.read_metadata(path).num_rows for path in each.iterdir()))


def _drop_base_days(data: Path, scratch: Path, before: date, raw_before: date, watermark: BaseWatermark) -> list[date]:
    """Drop base files, and record the first day that is complete in the log; return the dropped days."""
    base = data / "base"
    folders = [*_list_expired_folders(base, before), *_list_expired_folders(data / RECENT_BASE, before)]
    removed = [path for folder in folders for path in folder.iterdir()]
    added: dict[Path, Path] = {}
    # A file can have records of the next day as well, so that day is incomplete too.
    complete_from = [parse_folder_day(folder) + 2 * _DAY for folder in _list_expired_folders(data / "raw", raw_before)]
    floor = max([*complete_from, watermark.floor])
    if floor != watermark.floor:
        added[base / WATERMARK_FILE] = path = scratch / WATERMARK_FILE
        path.write_text(watermark._replace(floor=floor).to_json())
    if added or removed:
        atomic_replace.add_rotating_seed(base)
        atomic_replace.add_rotating_seed(data / RECENT_BASE)
        atomic_replace.replace_files(base, scratch, removed, added)
    return sorted({parse_folder_day(folder) for folder in folders})


def _drop_landed_day(folder: Path, scratch: Path) -> None:
    """Drop a day of a landed dataset. Keep the names of the files from which sinks derive their positions."""
    added: dict[Path, Path] = {}
    for path in folder.iterdir():
        name = LANDED_FILE_NAME.fullmatch(path.name)
        if name and find_newest_file(folder.parent, parse_partition_log(name)) == path:
            target_path = atomic_replace.name_successor(path)
            added[target_path] = scratch / target_path.name
            schema = SCHEMAS[DATASET_BY_TOPIC[name["topic"]]].with_metadata(read_end_metadata(path))
            pq.write_table(schema.empty_table(), added[target_path])
            parquet_files.copy_landing_time(path, added[target_path])
    atomic_replace.replace_files(folder, scratch, list(folder.iterdir()), added)
