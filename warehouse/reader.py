"""Reading the warehouse from Python: read-only, any number of readers at once, while the sink goes on writing.

import warehouse

frame = warehouse.query(".smspulse", "FROM delivery_daily WHERE source = ?", ["mygateway"])
table = warehouse.query(".smspulse", "FROM status_events", arrow=True)
"""

import os
import re
import stat
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir, mkdtemp
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, overload
from uuid import uuid4

import duckdb

from core.buckets import is_bucket_address
from warehouse.buckets import open_bucket_store
from warehouse.catalog import CATALOG_FILE, create_folder_statements, read_published_folder, write_catalog_file
from warehouse.errors import BucketError, NoWarehouseError, StaleViewsError
from warehouse.file_names import TEMPORARY_FOLDER
from warehouse.sql_text import escape_glob, quote_sql_text

# Neither is needed to open a warehouse, and pandas takes long to import.
if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

_T = TypeVar("_T")

LOCAL_FILE_SETTINGS: Final = "SET read_ahead_depth = 0; SET disable_parquet_prefetching = true"
"""SQL for files of this machine. DuckDB reads ahead to hide the latency of a network. On local files, reading ahead
takes a tenth of a query's time."""
# Seconds that connections share an instance of DuckDB. It caches the footers of files, also of those that are gone.
_INSTANCE_LIFETIME_S: Final = 120
_attaching: Final = threading.Lock()
# There are seconds at least between two merges.
_MAX_READ_ATTEMPTS: Final = 5


def retry_after_merge(read: Callable[[], _T]) -> _T:
    """Call a function, again if files that it had listed were merged before it opened them; return its result.

    DuckDB raises "Cannot open file" then, and the next attempt succeeds. It never returns half of a merge.

    Raises:
        BucketError: The object store has stopped answering.
    """
    for attempts_left in reversed(range(_MAX_READ_ATTEMPTS)):
        try:
            return read()
        except duckdb.Error as error:
            # DuckDB's message contains the whole traceback.
            if unavailable := re.search(r"BucketAwayError: (.*)", str(error)):
                raise BucketError(unavailable[1]) from error
            if not attempts_left or not isinstance(error, duckdb.IOException) or "No such file" not in str(error):
                raise
    raise AssertionError


QueryParameters = Sequence[Any] | Mapping[str, Any] | None


def open_warehouse(
    data: Path | str, *, restricted: bool = False, writable: Path | None = None
) -> duckdb.DuckDBPyConnection:
    """Open the views of a data folder, or of s3://bucket/prefix. Close the connection after use.

    The views read the given folder, also if it was copied or moved since they were published. An open connection sees
    new data, but not views that are published later. To read again and again, open a new connection before the earlier
    one is closed: it has the newest views, and shares cached footers with the earlier one.

    Args:
        data: The data folder.
        restricted: Refuse SQL that reads other files, attaches databases or changes settings other than the time zone.
        writable: A folder that restricted SQL may write to.

    Raises:
        NoWarehouseError: Nothing was published there.
        StaleViewsError: The folder was moved, and is from another version.
        BucketError: The object store does not answer, or denies access.
    """
    if is_bucket_address(data):
        bucket_store = open_bucket_store(data)
        connection = bucket_store.open_views()
        folder = str(bucket_store)
    else:
        connection = _open_folder_views(Path(data).resolve(), is_private=restricted)
        connection.execute(LOCAL_FILE_SETTINGS)
        folder = str(Path(data).resolve())
    connection.execute("SET TimeZone = 'UTC'")
    # Files never change, so their footers can be cached.
    connection.execute("SET parquet_metadata_cache = true")
    if restricted:
        _restrict_connection(connection, [folder, escape_glob(folder), *([str(writable)] if writable else [])])
    return connection


def _open_folder_views(folder: Path, *, is_private: bool) -> duckdb.DuckDBPyConnection:
    path = folder / CATALOG_FILE
    if not path.is_file():
        raise NoWarehouseError(folder)
    connection = _open_catalog_file(path, folder, is_private=is_private)
    if read_published_folder(connection) == str(folder):
        return connection
    connection.close()
    # The views name files by absolute path, in the folder from which this one was copied or moved. The new catalog is
    # deleted once it is open: DuckDB does not need its name any more.
    with TemporaryDirectory() as scratch:
        earlier, path = path, Path(scratch) / CATALOG_FILE
        try:
            write_catalog_file(path, create_folder_statements(folder), str(folder), earlier=earlier)
        except OSError as error:
            raise StaleViewsError(folder) from error
        return _open_catalog_file(path, folder, is_private=is_private)


def _open_catalog_file(path: Path, folder: Path, *, is_private: bool) -> duckdb.DuckDBPyConnection:
    """Open a catalog, if private in a DuckDB instance of its own: its settings do not affect other connections."""
    # DuckDB has one instance for each path of a file while any connection is open. That would be the one of a catalog
    # that was replaced, so the catalog is attached to an instance in memory.
    connection = duckdb.connect(":memory:" if is_private else _name_instance(path))
    with _attaching:
        if not connection.execute("FROM duckdb_databases() WHERE database_name = 'smspulse'").fetchall():
            # By default it would be next to the file, or in the current folder.
            connection.execute("SET temp_directory = ?", [str(choose_spill_folder(folder) / f"spill-{uuid4().hex}")])
            connection.execute(f"ATTACH {quote_sql_text(str(path))} AS smspulse (READ_ONLY)")
    connection.execute("USE smspulse")
    return connection


def _name_instance(path: Path) -> str:
    """Return a name of an instance in memory. A catalog that is published later gets another one."""
    found = path.stat()
    period = int(time.monotonic() / _INSTANCE_LIFETIME_S)
    return f":memory:smspulse-{found.st_dev}-{found.st_ino}-{found.st_mtime_ns}-{period}"


def choose_spill_folder(data: Path | str) -> Path:
    """Return the folder for data that exceeds a reader's memory: in the data folder, if it is local and writable."""
    folder = None if is_bucket_address(data) else Path(data).resolve() / TEMPORARY_FOLDER
    return folder if folder and os.access(folder, os.W_OK) else _private_temporary_folder()


def _private_temporary_folder() -> Path:
    """Return a folder for temporary files that no other user can enter. DuckDB creates its own readable by all."""
    folder = Path(gettempdir(), f"smspulse-{os.geteuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077:
        return folder
    # Another user has created a folder of that name.
    return Path(mkdtemp(prefix="smspulse-"))


def _restrict_connection(connection: duckdb.DuckDBPyConnection, folders: list[str]) -> None:
    """Limit a connection to folders. DuckDB compares the text of a path or pattern with their names."""
    allowed = ", ".join(quote_sql_text(f"{folder}/") for folder in folders)
    connection.execute(f"SET allowed_directories = [{allowed}]")
    connection.execute("SET python_enable_replacements = false")
    connection.execute("SET enable_external_access = false")
    # DuckDB allows no exception once the configuration is locked.
    connection.execute("SET allowed_configs = ['TimeZone']")
    connection.execute("SET lock_configuration = true")


def fetch_rows(connection: duckdb.DuckDBPyConnection, sql: str, params: QueryParameters = None) -> list[dict[str, Any]]:
    """Run SQL and return its rows as dicts by column. If files were merged meanwhile, it runs again.

    Raises:
        duckdb.Error: The SQL is wrong, or a file cannot be read.
    """

    def read_rows() -> list[dict[str, Any]]:
        cursor = connection.execute(sql, params)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    return retry_after_merge(read_rows)


@overload
def query(data: Path | str, sql: str, params: QueryParameters = None) -> "pd.DataFrame": ...


@overload
def query(data: Path | str, sql: str, params: QueryParameters = None, *, arrow: Literal[True]) -> "pa.Table": ...


def query(
    data: Path | str, sql: str, params: QueryParameters = None, *, arrow: bool = False
) -> "pd.DataFrame | pa.Table":
    """Run one query and return its rows. Times are in UTC, to the microsecond.

    Args:
        data: The data folder.
        sql: DuckDB's SQL, over the views. `?` or `$name` stands for a parameter.
        params: Values of the parameters.
        arrow: Return an Arrow table, which keeps every type as it is, instead of a pandas frame.

    Raises:
        NoWarehouseError: Nothing was published there.
        duckdb.Error: The query is wrong.
    """
    with open_warehouse(data) as connection:
        if not arrow:
            return retry_after_merge(lambda: connection.execute(sql, params).df())

        def read_arrow_table() -> "pa.Table":
            relation: Any = connection.sql(sql, params=params)
            if relation is None:
                msg = "the statement returns no rows"
                raise duckdb.InvalidInputException(msg)
            table: pa.Table = relation.to_arrow_table()
            return table

        return retry_after_merge(read_arrow_table)
