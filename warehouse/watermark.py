"""The watermarks of the base: up to which offsets of sms.messages the base files hold everything.

There are two. `rebuild` writes the first. Between two rebuilds, recent base files
(`warehouse.maintenance.recent_base`) hold what landed since, and have a watermark of their own.
"""

import json
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Final, NamedTuple

from warehouse.datasets import RECENT_BASE
from warehouse.errors import WarehouseError
from warehouse.file_names import SEED_DATE
from warehouse.partition_log import UNKNOWN_INCARNATION

WATERMARK_FILE: Final = "covered.json"
UPDATES_DATE: Final = date.max
"""Date of the folder of recent updates. They are unmerged, whatever their offsets."""
# Longer than Kafka keeps webhooks (`core.topics`).
_ABANDONED_AFTER: Final = timedelta(days=31)


class BaseWatermark(NamedTuple):
    """Content of the base files.

    Args:
        since: The first day of the dataset messages that has versions newer than the base.
        offsets: Offsets of sms.messages up to which the base holds everything, by `PartitionLog.file_label`.
        floor: The earliest complete day of the raw webhooks. Days before it cannot be rebuilt.
        sums: The `rollup_fingerprint` of their rollups; empty if some are missing.
    """

    since: date
    offsets: dict[str, int]
    floor: date = date.min
    sums: str = ""

    def to_json(self) -> str:
        """Return the content of the watermark's file."""
        return json.dumps(self._asdict(), default=str)


def read_base_watermark(data: Path) -> BaseWatermark | None:
    """Return the watermark of the last rebuild; None without one.

    Raises:
        WarehouseError: The watermark's file cannot be read.
    """
    return _read_watermark(data / "base" / WATERMARK_FILE)


def read_recent_watermark(data: Path) -> BaseWatermark | None:
    """Return the watermark of the recent base files; None without any.

    Raises:
        WarehouseError: The watermark's file cannot be read.
    """
    return _read_watermark(data / RECENT_BASE / WATERMARK_FILE)


def read_live_watermark(data: Path) -> BaseWatermark | None:
    """Return the watermark behind which the views read landed versions: that of the recent base files if there are any.

    Raises:
        WarehouseError: The watermark's file cannot be read.
    """
    return read_recent_watermark(data) or read_base_watermark(data)


def _read_watermark(path: Path) -> BaseWatermark | None:
    try:
        fields = json.loads(path.read_text())
        return BaseWatermark(
            date.fromisoformat(fields["since"]),
            {str(label): int(offset) for label, offset in fields["offsets"].items()},
            # Files of releases up to 0.1 lack these two.
            date.fromisoformat(fields.get("floor", str(date.min))),
            fields.get("sums", ""),
        )
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, AttributeError) as error:
        msg = f"{path} is damaged: remove it, and run `smspulse rebuild`"
        raise WarehouseError(msg) from error


def unmerged_versions_condition(data: Path) -> str:
    """Return the SQL condition of versions in the dataset messages that the base files do not hold.

    Raises:
        WarehouseError: The watermark's file cannot be read.
    """
    watermark = read_live_watermark(data)
    if watermark is None or not watermark.offsets:
        return "true"
    return f"date >= DATE '{watermark.since}' AND {newer_versions_condition(watermark.offsets)}"


def newer_versions_condition(offsets: Mapping[str, int]) -> str:
    """Return the SQL condition of versions in the dataset messages that are behind these offsets.

    Args:
        offsets: Offsets by `PartitionLog.file_label`. All versions of other logs are behind them.
    """
    # The names of files decide first, so that DuckDB does not open files that the base holds: a name has the offset
    # where its last range begins, and before it the label of its log. `split_part` would take half as long again.
    by_label = " ".join(f"WHEN '{label}' THEN '{offset:020d}'" for label, offset in offsets.items())
    name, label = "string_split(filename, '+')[-1]", "string_split(filename, '+')[-2]"
    is_newer = f"(date = DATE '{UPDATES_DATE}' OR \"offset\" >= {watermark_offset_sql(offsets)})"
    return f"{name} >= CASE {label} {by_label} ELSE '' END AND {is_newer}"


def first_uncovered_day(newest_days: Iterable[date]) -> date:
    """Return the first day of which the dataset messages may get versions that base files do not hold.

    Args:
        newest_days: Of each log, the day of its newest file.
    """
    days = list(newest_days)
    last = max(days, default=SEED_DATE)
    # An old topic that received nothing for longer than Kafka keeps webhooks has ended. If it comes back all the same,
    # the next rebuild finds its news, for it does not go by days.
    present = [day for day in days if day >= last - _ABANDONED_AFTER]
    return min(present, default=last) - timedelta(days=1)


def watermark_offset_sql(offsets: Mapping[str, int]) -> str:
    """Return the SQL of the offset of a row's log.

    Args:
        offsets: Offsets by `PartitionLog.file_label`. The offset of other logs is 0.
    """
    by_incarnation: dict[str, list[str]] = {}
    for label, offset in offsets.items():
        partition, _, incarnation = label.partition("@")
        by_incarnation.setdefault(incarnation, []).append(f"WHEN {partition} THEN {offset}")
    if not by_incarnation:
        return "0"
    cases = [
        f"WHEN '{incarnation}' THEN CASE \"partition\" {' '.join(partitions)} ELSE 0 END"
        for incarnation, partitions in by_incarnation.items()
    ]
    return f"CASE coalesce(incarnation, '{UNKNOWN_INCARNATION}') {' '.join(cases)} ELSE 0 END"
