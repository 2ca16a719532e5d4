"""Rollups: whether those of a data folder are current, and up to which date webhooks are counted."""

from datetime import date, timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path

from warehouse.datasets import ROLLUPS
from warehouse.file_names import parse_folder_day
from warehouse.sql_text import hash_statements, load_sql
from warehouse.watermark import read_base_watermark, read_recent_watermark


@cache
def rollup_fingerprint() -> str:
    """Return a hash that changes when rollups are counted in another way."""
    # Networks are counted by the prefixes of that library.
    return hash_statements([version("phonenumbers"), *(load_sql("rollups", name) for name in ROLLUPS)])[:16]


def has_current_rollups(data: Path) -> bool:
    """Return whether all base files were counted as this version counts.

    Raises:
        WarehouseError: The watermark's file cannot be read.
    """
    found = [each for each in (read_base_watermark(data), read_recent_watermark(data)) if each]
    return bool(found) and all(watermark.sums == rollup_fingerprint() for watermark in found)


def first_uncounted_date(data: Path) -> date:
    """Return the first date from which on compaction has counted no webhooks."""
    days = [parse_folder_day(path.parent) for path in (data / "webhooks").glob("date=*/[0-9]*.parquet")]
    # Without counts it is not the date of the seeds: records without a time are landed there.
    return max(days) + timedelta(days=1) if days else date.min
