"""Rollups: their SQL, and whether those of a data folder are current."""

from datetime import date, timedelta
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from gateway.statuses import STATUSES
from warehouse.datasets import ROLLUPS
from warehouse.file_names import parse_folder_day
from warehouse.sql_text import hash_statements
from warehouse.watermark import read_base_watermark


def load_rollup_sql(name: str, rows: str, prefixes: str = "") -> str:
    """Return the SQL that counts messages or webhooks.

    Args:
        name: One of `ROLLUPS`, or `webhooks`.
        rows: SQL of the messages, each with its day and the sign with which it counts; or of all webhooks of dates.
        prefixes: SQL that reads the dataset `prefixes`. The rollup `networks` needs it.
    """
    sql = files("warehouse").joinpath("sql", "rollups", f"{name}.sql").read_text("utf-8")
    documented = ", ".join(map(str, sorted(STATUSES)))
    return sql.replace("{rows}", rows).replace("{prefixes}", prefixes).replace("{documented}", documented)


@cache
def rollup_fingerprint() -> str:
    """Return a hash that changes when rollups are counted in another way."""
    return hash_statements([version("phonenumbers"), *(load_rollup_sql(name, "", "") for name in ROLLUPS)])[:16]


def has_current_rollups(data: Path) -> bool:
    """Return whether all base files were counted as this version counts.

    Raises:
        WarehouseError: The watermark's file cannot be read.
    """
    watermark = read_base_watermark(data)
    return watermark is not None and watermark.sums == rollup_fingerprint()


def first_uncounted_date(data: Path) -> date:
    """Return the first date from which on compaction has counted no webhooks."""
    days = [parse_folder_day(path.parent) for path in (data / "webhooks").glob("date=*/[0-9]*.parquet")]
    # Without counts it is not the date of the seeds: records without a time are landed there.
    return max(days) + timedelta(days=1) if days else date.min
