"""The watermark of the base: up to which offsets of sms.messages the base files hold everything."""

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Final, NamedTuple

from warehouse.errors import WarehouseError
from warehouse.partition_log import UNKNOWN_INCARNATION

WATERMARK_FILE: Final = "covered.json"


class BaseWatermark(NamedTuple):
    """What the base files hold.

    Args:
        since: The first day of the dataset messages with versions that they do not hold.
        offsets: Of sms.messages, up to which they hold everything, by `PartitionLog.file_label`.
        floor: The first day that the raw webhooks still tell all of; days before cannot be rebuilt.
        sums: The `rollup_fingerprint` of what was counted of them; empty where something was not.
    """

    since: date
    offsets: dict[str, int]
    floor: date = date.min
    sums: str = ""

    def to_json(self) -> str:
        """Return it as `read_base_watermark` reads it."""
        return json.dumps(self._asdict(), default=str)


def read_base_watermark(data: Path) -> BaseWatermark | None:
    """Return what the base files hold; None without any.

    Raises:
        WarehouseError: The file that says so cannot be read.
    """
    path = data / "base" / WATERMARK_FILE
    try:
        fields = json.loads(path.read_text())
        return BaseWatermark(
            date.fromisoformat(fields["since"]),
            {str(label): int(offset) for label, offset in fields["offsets"].items()},
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
        WarehouseError: The file that says so cannot be read.
    """
    watermark = read_base_watermark(data)
    if watermark is None or not watermark.offsets:
        return "true"
    return f"date >= DATE '{watermark.since}' AND {newer_versions_condition(watermark.offsets)}"


def newer_versions_condition(offsets: Mapping[str, int]) -> str:
    """Return the SQL condition of versions in the dataset messages that are behind these offsets.

    Args:
        offsets: By `PartitionLog.file_label`. Of other logs, all versions are.
    """
    # By the names of files, for those that the base holds need not be opened: a name has the offset where its last
    # range begins, and the label of its log before that. Judging names by `split_part` takes half as long again.
    by_label = " ".join(f"WHEN '{label}' THEN '{offset:020d}'" for label, offset in offsets.items())
    name, label = "string_split(filename, '+')[-1]", "string_split(filename, '+')[-2]"
    return f"{name} >= CASE {label} {by_label} ELSE '' END AND \"offset\" >= {watermark_offset_sql(offsets)}"


def watermark_offset_sql(offsets: Mapping[str, int]) -> str:
    """Return the SQL of the offset that a row's log has among these, by `PartitionLog.file_label`; 0 if it has none."""
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
