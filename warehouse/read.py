"""Reading the warehouse from Python. Read-only, any number at once, beside a lander that goes on writing."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import duckdb
import pandas as pd

from warehouse.errors import NoWarehouseError
from warehouse.views import FILE

_T = TypeVar("_T")

_TRIES: Final = 5  # merges follow each other in seconds at the least


def retried(read: Callable[[], _T]) -> _T:
    """Return what a call returns; call it again if files that it had listed were merged before it opened them.

    Any other DuckDB says "Cannot open file" then, and answers when it is asked again; never from half of a merge.
    """
    for _ in range(_TRIES - 1):
        try:
            return read()
        except duckdb.IOException as error:
            if "No such file" not in str(error):
                raise
    return read()


def open_warehouse(data: Path) -> duckdb.DuckDBPyConnection:
    """Open the views of a data folder. Close the connection after use; while it is open it sees new data.

    Raises:
        NoWarehouseError: Nothing was published there.
    """
    path = data.resolve() / FILE
    if not path.is_file():
        raise NoWarehouseError(data)
    connection = duckdb.connect(path, read_only=True)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET parquet_metadata_cache = true")  # files never change, so their footers can be kept
    return connection


def query(data: Path, sql: str, params: Sequence[Any] | Mapping[str, Any] | None = None) -> pd.DataFrame:
    """Run one query and return its rows; times are `datetime64[us, UTC]`.

    Args:
        data: The data folder.
        sql: DuckDB's SQL, over the views. `?` or `$name` stands for a parameter.
        params: The parameters' values.

    Raises:
        NoWarehouseError: Nothing was published there.
        duckdb.Error: The query is wrong.
    """
    with open_warehouse(data) as connection:
        return retried(lambda: connection.execute(sql, params).df())
