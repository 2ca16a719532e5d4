"""Reading the warehouse from Python. Read-only, any number at once, beside a lander that goes on writing.

import warehouse

frame = warehouse.query(".smspulse", "FROM delivery_daily WHERE source = ?", ["mygateway"])
table = warehouse.query(".smspulse", "FROM status_events", arrow=True)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload

import duckdb

from warehouse.errors import BucketError, NoWarehouseError
from warehouse.store import bucket, is_bucket
from warehouse.views import FILE

if TYPE_CHECKING:  # neither is needed to open a warehouse, and pandas takes its time
    import pandas as pd
    import pyarrow as pa

_T = TypeVar("_T")

LOCAL: Final = "SET read_ahead_depth = 0; SET disable_parquet_prefetching = true"
"""SQL for files of this machine. DuckDB's reading ahead hides a network's way; here it is a tenth of a query's time."""
_TRIES: Final = 5  # merges follow each other in seconds at the least


def retried(read: Callable[[], _T]) -> _T:
    """Return what a call returns; call it again if files that it had listed were merged before it opened them.

    Any other DuckDB says "Cannot open file" then, and answers when it is asked again; never from half of a merge.

    Raises:
        BucketError: The object store ceased to answer.
    """
    for left in reversed(range(_TRIES)):
        try:
            return read()
        except duckdb.Error as error:
            if away := re.search(r"BucketAwayError: (.*)", str(error)):  # DuckDB tells it with all its callers
                raise BucketError(away[1]) from error
            if not left or not isinstance(error, duckdb.IOException) or "No such file" not in str(error):
                raise
    raise AssertionError


Parameters = Sequence[Any] | Mapping[str, Any] | None


def open_warehouse(data: Path | str) -> duckdb.DuckDBPyConnection:
    """Open the views of a data folder, or of s3://bucket/prefix. Close the connection after use.

    While it is open it sees new data.

    Raises:
        NoWarehouseError: Nothing was published there.
        BucketError: The object store does not answer, or does not let us in.
    """
    if is_bucket(data):
        connection = bucket(data).open()
    else:
        path = Path(data).resolve() / FILE
        if not path.is_file():
            raise NoWarehouseError(data)
        connection = duckdb.connect(path, read_only=True)
        connection.execute(LOCAL)
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET parquet_metadata_cache = true")  # files never change, so their footers can be kept
    return connection


def rows(connection: duckdb.DuckDBPyConnection, sql: str, params: Parameters = None) -> list[dict[str, Any]]:
    """Run SQL and return its rows, each by the names of its columns.

    Raises:
        duckdb.Error: It cannot be answered.
    """
    answer = connection.execute(sql, params)
    names = [column[0] for column in answer.description or ()]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


@overload
def query(data: Path | str, sql: str, params: Parameters = None) -> "pd.DataFrame": ...


@overload
def query(data: Path | str, sql: str, params: Parameters = None, *, arrow: Literal[True]) -> "pa.Table": ...


def query(data: Path | str, sql: str, params: Parameters = None, *, arrow: bool = False) -> "pd.DataFrame | pa.Table":
    """Run one query and return its rows; times are in UTC, to the microsecond.

    Args:
        data: The data folder.
        sql: DuckDB's SQL, over the views. `?` or `$name` stands for a parameter.
        params: The parameters' values.
        arrow: Return an Arrow table, which keeps every type as it is, in place of a pandas frame.

    Raises:
        NoWarehouseError: Nothing was published there.
        duckdb.Error: The query is wrong.
    """
    with open_warehouse(data) as connection:
        if not arrow:
            return retried(lambda: connection.execute(sql, params).df())

        def read() -> "pa.Table":
            relation: Any = connection.sql(sql, params=params)
            if relation is None:
                msg = "the statement returns no rows"
                raise duckdb.InvalidInputException(msg)
            table: pa.Table = relation.to_arrow_table()
            return table

        return retried(read)
