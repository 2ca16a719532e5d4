"""The dataset `status_codes`: which status ids have a meaning, documented or configured, as a file for any DuckDB.

Views and every process that reads a data folder go by it, so that all have the same answer to which status is unknown.
The lander writes it, from `SMSPULSE_STREAM_STATUS_MEANINGS`. Where that variable is set in the environment of another
process, it counts there, and is recorded by whoever publishes the views. Where it is not, what was recorded counts: a
`smspulse compact` from cron does not take the meanings away.
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from gateway.statuses import STATUSES, Outcome, Status, parse_meanings, status_table
from warehouse.errors import DamagedFileError
from warehouse.schemas import STATUS_CODES_SCHEMA
from warehouse.sink import parquet_files as landing

SETTING: Final = "SMSPULSE_STREAM_STATUS_MEANINGS"
_FILE: Final = "status_codes.parquet"


def known_statuses(data: Path) -> Mapping[int, Status]:
    """Return what each status id means, for a data folder.

    Raises:
        SettingError: The setting cannot be meant.
        DamagedFileError: What was recorded cannot be read.
    """
    return configured_statuses() if SETTING in os.environ else _recorded(data)


def configured_statuses() -> Mapping[int, Status]:
    """Return what each status id means by the environment of this process.

    Raises:
        SettingError: The setting cannot be meant.
    """
    return status_table(parse_meanings(os.environ.get(SETTING, "")))


def prepare(data: Path) -> None:
    """Write the file, if it is missing or has other meanings.

    Raises:
        SettingError: The setting cannot be meant.
        DamagedFileError: What was recorded cannot be read.
        OSError: The data folder is not writable.
    """
    record(data, known_statuses(data))


def record(data: Path, statuses: Mapping[int, Status]) -> None:
    """Write what each status id means, if the file has another table.

    Raises:
        OSError: The data folder is not writable.
    """
    path = _path(data)
    if path.exists():
        with suppress(DamagedFileError):
            if dict(_recorded(data)) == dict(statuses):
                return
    rows = [
        {
            "status_id": status.id,
            "name": status.name,
            "outcome": status.outcome.value,
            "failure_class": status.failure_class,
            "is_documented": status.id in STATUSES,
        }
        for status in sorted(statuses.values(), key=lambda status: status.id)
    ]
    temporary = data / landing.TEMPORARY / _FILE
    temporary.parent.mkdir(parents=True, exist_ok=True)
    with landing.only_one(temporary.parent):
        pq.write_table(pa.Table.from_pylist(rows, STATUS_CODES_SCHEMA), temporary, compression="zstd")
        landing.replace(data, temporary, path)


def _recorded(data: Path) -> Mapping[int, Status]:
    path = _path(data)
    try:
        rows = pq.read_table(path, schema=STATUS_CODES_SCHEMA, partitioning=None).to_pylist()
    except FileNotFoundError:
        return STATUSES
    except (pa.ArrowException, OSError) as error:
        raise DamagedFileError(path, type(error).__name__) from error
    # What is documented is known to this version, whatever another one has written.
    return status_table({r["status_id"]: Outcome(r["outcome"]) for r in rows if r["status_id"] not in STATUSES})


def _path(data: Path) -> Path:
    return data / "status_codes" / f"date={landing.SEED_DATE}" / _FILE
