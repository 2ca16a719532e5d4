"""SQL text that several modules share: quoting, scans of datasets, places of records, rates."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from warehouse.partition_log import UNKNOWN_INCARNATION
from warehouse.seeds import has_mixed_schemas

# The only partition key: the date of the folder that a file is in. DuckDB's own hive partitioning takes every key=value
# of a path for one, those above the data folder too, and they replace columns of the same name. A condition on this
# expression chooses files before any is opened, as one on a partition key does.
_FOLDER_DATE: Final = "right(parse_dirpath(filename), 10)::DATE"

_MAX_OFFSET: Final = 2**48
"""More than any partition has records; a number below 2^15 for its incarnation fits into a BIGINT above it."""

RATES: Final = {
    "delivered_per_attempted": ("delivered", "attempted"),
    "delivered_per_ended": ("delivered", "ended"),
    "open_share": ("open", "attempted"),
}
"""Every rate of counted messages: part and whole."""


def rate_columns_sql() -> str:
    """Return the rates of counted messages, each with its 95 % Wilson interval."""
    z = 1.959963984540054
    columns = []
    for name, (part, whole) in RATES.items():
        n = f"nullif({whole}, 0)"
        middle, reach = f"{part} + {z**2 / 2}", f"{z} * sqrt({part} * ({whole} - {part}) / {n} + {z**2 / 4})"
        columns += [
            f"{part} / {n} AS {name}",
            # At the ends, where rounding could lead out of them, the bounds are 0 and 1.
            f"CASE WHEN {part} > 0 THEN ({middle} - {reach}) / ({n} + {z**2}) ELSE 0.0 * {n} END AS {name}_low",
            f"CASE WHEN {part} < {whole} THEN ({middle} + {reach}) / ({n} + {z**2}) ELSE {n} / {n} END AS {name}_high",
        ]
    return ", ".join(columns)


def log_position_sql(incarnation_order: Sequence[str]) -> str:
    """Return the SQL of a record's place in all logs of its partition: those of a later incarnation are larger numbers.

    Args:
        incarnation_order: The topic's incarnations, oldest first. One that is not among them counts as newer.
    """
    if not incarnation_order:
        return '"offset"'
    cases = " ".join(f"WHEN '{incarnation}' THEN {number}" for number, incarnation in enumerate(incarnation_order))
    newer = len(incarnation_order)
    number = f"CASE coalesce(incarnation, '{UNKNOWN_INCARNATION}') {cases} ELSE {newer} END"
    return f'{number}::BIGINT * {_MAX_OFFSET} + "offset"'


def dataset_scan_sql(folder: Path | str, *, filename: bool = False) -> str:
    """Return the SQL that reads all files of a dataset's folder, with a column of their names if that is wanted.

    Args:
        folder: Prepared (`create_seed_files`), or the address of a bucket's.
        filename: Whether it is.
    """
    # Its seed is the first file, and has all columns. Where there are files that lack some, or may be, columns go by
    # name: for that each query opens every file, 0.1 ms a file and reference.
    by_name = isinstance(folder, str) or has_mixed_schemas(folder)
    options = ("union_by_name = true, " if by_name else "") + "filename = true, hive_partitioning = false"
    columns = "*" if filename else "* EXCLUDE (filename)"
    files = f"read_parquet({dataset_glob_sql(folder)}, {options})"
    return f"(SELECT {columns}, {_FOLDER_DATE} AS date FROM {files})"  # noqa: S608 - names of ours


def dataset_glob_sql(folder: Path | str) -> str:
    """Return the SQL text that stands for all files of a dataset's folder."""
    return quote_sql_text(f"{escape_glob(str(folder))}/date=*/*.parquet")


def escape_glob(path: str) -> str:
    """Return the glob pattern that stands for a path alone."""
    return re.sub(r"([\[*?{])", r"[\1]", path)


def quote_sql_text(text: str) -> str:
    """Return a text as SQL writes it."""
    return "'" + text.replace("'", "''") + "'"


def hash_statements(sql: list[str]) -> str:
    """Return a hash of statements, by which a change of them is found."""
    return hashlib.sha256("\n".join(sql).encode()).hexdigest()
