"""Names of the files in a data folder, and of the folders that they are in."""

import re
from datetime import date
from pathlib import Path
from typing import Final

from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog

TEMPORARY_FOLDER: Final = ".tmp"

SEED_DATE: Final = date(1970, 1, 1)
"""Date of the folder of each dataset's seed, and of records without a plausible time."""
SEED_FILE: Final = "seed.parquet"

LANDED_FILE_NAME: Final = re.compile(
    r"(?P<topic>.+)\+(?P<partition>\d+)(?:@(?P<incarnation>[\w.-]+))?\+(?P<start>\d{20})(?P<merged>-\w+)?\.parquet"
)
"""Names of landed files, merged ones too."""


def parse_folder_day(folder: Path) -> date:
    """Return the day of a folder `date=…`."""
    return date.fromisoformat(folder.name.removeprefix("date="))


def is_merged_file(path: Path) -> bool:
    """Return whether a file is a merged landed one."""
    name = LANDED_FILE_NAME.fullmatch(path.name)
    return name is not None and name["merged"] is not None


def parse_partition_log(name: re.Match[str]) -> PartitionLog:
    """Return the log of a file by the match of `LANDED_FILE_NAME`."""
    return PartitionLog(name["topic"], int(name["partition"]), name["incarnation"] or UNKNOWN_INCARNATION)


def format_file_name(log: PartitionLog, start: int) -> str:
    """Return the name of the file whose range begins at `start`. Names of one log sort as their ranges do."""
    return f"{log.topic}+{log.file_label}+{start:020d}.parquet"
