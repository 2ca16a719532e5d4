"""The dataset `status_codes`: the documented and configured meanings of status ids, as a file for any DuckDB.

Views and every process that reads a data folder use it, so that all agree on which statuses are unknown. The lander
writes it from `SMSPULSE_STREAM_STATUS_MEANINGS`. If another process has that variable in its environment, it uses the
variable, and records the meanings when it publishes the views. Without the variable, the recorded meanings count: a
`smspulse compact` from cron does not remove them.
"""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Final

import duckdb

from gateway.statuses import STATUSES, Outcome, StatusCode, build_status_table, parse_status_meanings
from warehouse.columns import read_column_file
from warehouse.errors import DamagedFileError
from warehouse.file_names import SEED_DATE
from warehouse.settings import WarehouseSettings
from warehouse.small_datasets import MARKER_KEY, compute_marker, read_parquet_bytes, write_table_atomically
from warehouse.sql_text import escape_glob, quote_sql_text

_STATUS_CODES_FILE: Final = "status_codes.parquet"


def load_known_statuses(data: Path) -> Mapping[int, StatusCode]:
    """Return the meaning of each status id, for a data folder.

    Raises:
        SettingError: The setting is invalid.
        DamagedFileError: The recorded meanings cannot be read.
    """
    is_configured = WarehouseSettings().status_meanings is not None
    return parse_configured_statuses() if is_configured else _read_recorded_statuses(data)


def parse_configured_statuses() -> Mapping[int, StatusCode]:
    """Return the meaning of each status id by the environment of this process.

    Raises:
        SettingError: The setting is invalid.
    """
    return build_status_table(parse_status_meanings(WarehouseSettings().status_meanings or ""))


def record_configured_statuses(data: Path) -> None:
    """Write the meaning of each status id, if this process has the setting, or if no file of this release is there.

    Raises:
        SettingError: The setting is invalid.
        OSError: The data folder is not writable.
    """
    if WarehouseSettings().status_meanings is not None:
        write_status_codes(data, parse_configured_statuses())
        return
    path = _status_codes_path(data)
    content = read_parquet_bytes(path)
    # A damaged file is left to its readers, who say what to do.
    if not path.exists() or (content and _release_marker() not in content):
        write_status_codes(data, _read_recorded_statuses(data))


def write_status_codes(data: Path, statuses: Mapping[int, StatusCode]) -> None:
    """Write the meaning of each status id, if the file has other meanings or texts.

    Raises:
        OSError: The data folder is not writable.
    """
    path = _status_codes_path(data)
    if _release_marker() in read_parquet_bytes(path):
        with suppress(DamagedFileError):
            if dict(_read_recorded_statuses(data)) == dict(statuses):
                return
    rows = [_describe_status(status) for _, status in sorted(statuses.items())]
    # Imported here because pyarrow takes half a second, and the file seldom changes.
    import pyarrow as pa  # noqa: PLC0415

    from warehouse.schemas import SCHEMAS  # noqa: PLC0415

    schema = SCHEMAS["status_codes"]
    columns = dict(zip(schema.names, zip(*rows, strict=True), strict=True))
    write_table_atomically(data, path, pa.table(columns, schema=schema.with_metadata({MARKER_KEY: _release_marker()})))


@cache
def _release_marker() -> bytes:
    """Return the marker of what a release says about the documented statuses."""
    return compute_marker(repr([*map(_describe_status, STATUSES.values())]) + read_column_file())


def _describe_status(status: StatusCode) -> tuple[Any, ...]:
    """Return the values of a status, in the order of the columns."""
    is_documented = status.id in STATUSES
    texts = status.likely_cause, status.what_to_do, status.retry.value
    return status.id, status.name, status.outcome.value, status.failure_class, is_documented, status.rank, *texts


def _read_recorded_statuses(data: Path) -> Mapping[int, StatusCode]:
    path = _status_codes_path(data)
    if not path.exists():
        return STATUSES
    source = f"read_parquet({quote_sql_text(escape_glob(str(path)))}, hive_partitioning = false)"
    try:
        with duckdb.connect() as connection:
            rows = connection.execute(f"SELECT status_id, outcome FROM {source}").fetchall()  # noqa: S608 - our file
    except duckdb.Error as error:
        raise DamagedFileError(path, type(error).__name__) from error
    # This version has the documented statuses itself, whatever another one has written.
    return build_status_table({id_: Outcome(outcome) for id_, outcome in rows if id_ not in STATUSES})


def _status_codes_path(data: Path) -> Path:
    return data / "status_codes" / f"date={SEED_DATE}" / _STATUS_CODES_FILE
