"""SQL text that several modules share: loading of files, quoting, positions of records.

DuckDB takes most values as parameters of macros and queries. Three are placed in text, because it takes none there:

- `{once}` in views/messages_by_day.sql, a keyword that depends on whether there are base files;
- the lists of files from which `warehouse.base_files` and compaction read;
- names of columns in `warehouse.lifecycle_comparison`.
"""

import hashlib
import re
from collections.abc import Sequence
from importlib.resources import files
from typing import Final

from warehouse.partition_log import UNKNOWN_INCARNATION

# Above any offset. The number of an incarnation, below 2^15, fits into a BIGINT above it.
_MAX_OFFSET: Final = 2**48


def load_sql(*path: str) -> str:
    """Return the SQL of a file in `warehouse/sql/`, named without its ending."""
    return files("warehouse").joinpath("sql", *path[:-1], f"{path[-1]}.sql").read_text("utf-8")


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


def escape_glob(path: str) -> str:
    """Return the glob pattern that matches only this path."""
    return re.sub(r"([\[*?{])", r"[\1]", path)


def quote_sql_text(text: str) -> str:
    """Return a text as an SQL literal."""
    return "'" + text.replace("'", "''") + "'"


def hash_statements(sql: list[str]) -> str:
    """Return a hash of statements. It changes if any of them does."""
    return hashlib.sha256("\n".join(sql).encode()).hexdigest()
