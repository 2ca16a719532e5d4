"""SQL text that several modules share: quoting, scans of datasets, positions of records, rates."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from warehouse.partition_log import UNKNOWN_INCARNATION
from warehouse.small_datasets import has_mixed_schemas

# The only partition key is the date of a file's folder. DuckDB's own hive partitioning would take every key=value of a
# path for one, also above the data folder, and they would replace columns of the same name. As with a partition key,
# DuckDB evaluates a condition on this expression before it opens files.
_FOLDER_DATE: Final = "right(parse_dirpath(filename), 10)::DATE"

# Above any offset. The number of an incarnation, below 2^15, fits into a BIGINT above it.
_MAX_OFFSET: Final = 2**48

RATES: Final = {
    "delivered_per_attempted": ("delivered", "attempted"),
    "delivered_per_ended": ("delivered", "ended"),
    "open_share": ("open", "attempted"),
}
"""Part and whole of every rate of counted messages."""


def rate_columns_sql() -> str:
    """Return the rates of counted messages, each with its 95 % Wilson interval."""
    z = 1.959963984540054
    columns = []
    for name, (part, whole) in RATES.items():
        n = f"nullif({whole}, 0)"
        middle, reach = f"{part} + {z**2 / 2}", f"{z} * sqrt({part} * ({whole} - {part}) / {n} + {z**2 / 4})"
        columns += [
            f"{part} / {n} AS {name}",
            # At the ends, the bounds are exactly 0 and 1: rounding could exceed them.
            f"CASE WHEN {part} > 0 THEN ({middle} - {reach}) / ({n} + {z**2}) ELSE 0.0 * {n} END AS {name}_low",
            f"CASE WHEN {part} < {whole} THEN ({middle} + {reach}) / ({n} + {z**2}) ELSE {n} / {n} END AS {name}_high",
        ]
    return ", ".join(columns)


def log_position_sql(incarnation_order: Sequence[str]) -> str:
    """Return the SQL of a record's position in all logs of its partition. It grows from one incarnation to the next.

    Args:
        incarnation_order: The topic's incarnations, oldest first. An incarnation that is missing counts as newer.
    """
    if not incarnation_order:
        return '"offset"'
    cases = " ".join(f"WHEN '{incarnation}' THEN {number}" for number, incarnation in enumerate(incarnation_order))
    newer = len(incarnation_order)
    number = f"CASE coalesce(incarnation, '{UNKNOWN_INCARNATION}') {cases} ELSE {newer} END"
    return f'{number}::BIGINT * {_MAX_OFFSET} + "offset"'


def dataset_scan_sql(folder: Path | str, *, filename: bool = False) -> str:
    """Return the SQL that reads all files of a dataset's folder.

    Args:
        folder: A folder that has a seed (`create_seed_files`), or the address of a bucket's.
        filename: Whether the file's path is a column.
    """
    # The seed is the first file and has all columns. If other files may lack some, columns are matched by name. For
    # that, each query opens every file, which takes 0.1 ms a file and reference.
    by_name = isinstance(folder, str) or has_mixed_schemas(folder)
    options = ("union_by_name = true, " if by_name else "") + "filename = true, hive_partitioning = false"
    columns = "*" if filename else "* EXCLUDE (filename)"
    files = f"read_parquet({dataset_glob_sql(folder)}, {options})"
    return f"(SELECT {columns}, {_FOLDER_DATE} AS date FROM {files})"  # noqa: S608 - names of ours


def dataset_glob_sql(folder: Path | str) -> str:
    """Return the SQL text of the glob pattern of a dataset's files."""
    return quote_sql_text(f"{escape_glob(str(folder))}/date=*/*.parquet")


def escape_glob(path: str) -> str:
    """Return the glob pattern that matches only this path."""
    return re.sub(r"([\[*?{])", r"[\1]", path)


def quote_sql_text(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def hash_statements(sql: list[str]) -> str:
    """Return a hash of statements. It changes if any of them does."""
    return hashlib.sha256("\n".join(sql).encode()).hexdigest()
