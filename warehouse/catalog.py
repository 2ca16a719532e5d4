"""The catalog, `{data}/smspulse.duckdb`: the file that holds the views.

The file has no data of its own, only views over the Parquet files by absolute path. Any number of readers can open it
read-only, with any DuckDB from 1.2 on, while the sink writes. It is replaced in one step. Readers who have it open see
new data all the same.
"""

import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import duckdb

from core.atomic_file import lock_folder, write_file_atomically
from core.buckets import is_bucket_address
from core.topics import MESSAGES
from warehouse import status_codes
from warehouse.columns import describe_column, read_column_file
from warehouse.errors import NeedsFolderError, UnreadablePathError
from warehouse.file_names import TEMPORARY_FOLDER
from warehouse.landed_files import list_incarnations_by_age
from warehouse.rollups import first_uncounted_date, has_current_rollups
from warehouse.small_datasets import create_seed_files, refresh_prefixes
from warehouse.sql_text import hash_statements, quote_sql_text
from warehouse.views import CHANGING_VIEWS, VIEWS, create_view_statements
from warehouse.watermark import unmerged_versions_condition

_log = logging.getLogger(__name__)


CATALOG_FILE: Final = "smspulse.duckdb"

# DuckDB 1.2 can open this format. Older versions, and tools built on them, cannot open the default one of DuckDB 2.0.
_STORAGE_VERSION: Final = "v1.2.0"

# Statements that refer to the folder, or to what maintenance has written, with the name of their view or macro. All
# others are those of the release.
_CHANGING_STATEMENT: Final = re.compile(
    rf"(?:CREATE|COMMENT ON) (?:(?:MACRO TABLE|MACRO) (?P<macro>\w+)|VIEW (?P<view>{'|'.join(CHANGING_VIEWS)}) )"
)


def publish_views(data: Path) -> Path:
    """Write the catalog, if it is missing or out of date, and return its path.

    Raises:
        NeedsFolderError: The data folder is a bucket.
        SettingError: The configured meanings of further statuses are invalid.
        UnreadablePathError: DuckDB could not read the folder.
        OSError: The data folder is not writable.
    """
    if is_bucket_address(data):
        raise NeedsFolderError(data)
    data = data.resolve()
    if "\\" in str(data):
        raise UnreadablePathError(data)
    path = data / CATALOG_FILE
    # A view is bound when it is created: DuckDB needs a file of each dataset then.
    create_seed_files(data)
    refresh_prefixes(data)
    status_codes.record_configured_statuses(data)
    sql = create_folder_statements(data)
    # One process at a time compares and replaces the catalog.
    lock = data / TEMPORARY_FOLDER
    lock.mkdir(exist_ok=True)
    with lock_folder(lock):
        if _read_meta(path).get("fingerprint") == _fingerprint(sql):
            return path
        # Not in the data folder: DuckDB takes a `?` in its path for the beginning of parameters, and creates no file.
        with TemporaryDirectory() as scratch:
            written = Path(scratch) / CATALOG_FILE
            write_catalog_file(written, sql, str(data), earlier=path)
            write_file_atomically(path, written.read_bytes(), scratch=lock)
    # Landing publishes again whenever the statements change, which is normal operation.
    _log.debug("published %d views in %s", len(VIEWS), path)
    return path


def create_folder_statements(data: Path) -> list[str]:
    """Return the SQL that creates every view of a folder of this machine.

    Args:
        data: The data folder, resolved.

    Raises:
        WarehouseError: The watermark of the base is damaged.
    """
    return create_view_statements(
        data,
        unmerged_versions_condition(data),
        has_rollups=has_current_rollups(data),
        uncounted_from=first_uncounted_date(data),
        incarnation_order=list_incarnations_by_age(data, MESSAGES),
    )


def read_published_folder(connection: duckdb.DuckDBPyConnection) -> str | None:
    """Return the data folder that the views of an open catalog read; None if an earlier version wrote them.

    Raises:
        duckdb.Error: The file cannot be read.
    """
    return _fetch_meta(connection).get("folder") or None


def write_catalog_file(
    path: Path, sql: list[str], folder: str, *, earlier: Path | None = None, file_system: Any = None
) -> None:
    """Write a catalog.

    Args:
        path: A path where no file is yet.
        sql: The statements of `create_view_statements`.
        folder: The data folder, or the address of a bucket's, that the views read.
        earlier: A catalog. If it has the same views, they are copied: to create them takes five times as long.
        file_system: File system of fsspec that has the files, if they are not on this machine.

    Raises:
        OSError: It cannot be written.
    """
    views = _fingerprint([statement for statement in sql if not _CHANGING_STATEMENT.match(statement)])
    changing = _group_changing_statements(sql)
    hashes = {name: hash_statements(group)[:12] for name, group in changing.items()}
    columns = (
        f"'{_fingerprint(sql)}' AS fingerprint, '{views}' AS views, '{' '.join(hashes.values())}' AS changing, "
        f"{quote_sql_text(folder)} AS folder"
    )
    try:
        copied = _copy_catalog(earlier, path, views)
        statements: list[str] = sql
        described: Sequence[str] = VIEWS
        if copied:
            known = copied.get("changing", "").split()
            changed = [name for name in changing if hashes[name] not in known]
            statements = [statement for name in changed for statement in changing[name]]
            described = [name for name in CHANGING_VIEWS if name in changed]
        with duckdb.connect() as connection:
            if file_system is not None:
                connection.register_filesystem(file_system)
            # Each view is bound when it is created, and reads the seeds again.
            connection.execute("SET parquet_metadata_cache = true")
            connection.execute(
                f"ATTACH {quote_sql_text(str(path))} AS published (STORAGE_VERSION '{_STORAGE_VERSION}')"
            )
            connection.execute("USE published")
            for statement in statements:
                connection.execute(re.sub("^CREATE", "CREATE OR REPLACE", statement))
            # Before `meta`, whose columns are not for people.
            _comment_columns(connection, described)
            connection.execute(f"CREATE OR REPLACE VIEW meta AS SELECT {columns}")
            # A database that is in use cannot be detached.
            connection.execute("USE memory")
            connection.execute("DETACH published")
    except duckdb.IOException as error:
        raise OSError(" ".join(str(error).split())) from error


def _group_changing_statements(sql: list[str]) -> dict[str, list[str]]:
    """Return the statements that differ from folder to folder, by the name of the view or macro that they create."""
    groups: dict[str, list[str]] = {}
    for statement in sql:
        if found := _CHANGING_STATEMENT.match(statement):
            groups.setdefault(found["macro"] or found["view"], []).append(statement)
    return groups


def _copy_catalog(earlier: Path | None, path: Path, views: str) -> dict[str, str]:
    """Copy a catalog that has these views, and return what it says about itself; nothing if it has not."""
    if earlier is None or not earlier.exists():
        return {}
    shutil.copyfile(earlier, path)
    copied = _read_meta(path)
    if copied.get("views") == views:
        return copied
    path.unlink()
    return {}


def _comment_columns(connection: duckdb.DuckDBPyConnection, views: Sequence[str]) -> None:
    """Give each column of these views its description, which DuckDB's and other tools show."""
    if not views:
        return
    columns = connection.execute("SELECT table_name, column_name FROM duckdb_columns() WHERE NOT internal").fetchall()
    statements = [
        f'COMMENT ON COLUMN {view}."{column}" IS {quote_sql_text(describe_column(view, column))}'
        for view, column in columns
        if view in views
    ]
    # In one transaction, which takes a fraction of the time of one for each.
    connection.execute("; ".join(["BEGIN", *statements, "COMMIT"]))


def _fingerprint(sql: list[str]) -> str:
    return hash_statements([*sql, read_column_file()])


def _fetch_meta(connection: duckdb.DuckDBPyConnection) -> dict[str, str]:
    found = connection.execute("FROM meta")
    return dict(zip([column[0] for column in found.description or ()], found.fetchall()[0], strict=True))


def _read_meta(path: Path) -> dict[str, str]:
    """Return what a catalog says about itself; nothing if it is missing, damaged, locked or from another release."""
    if not path.exists():
        return {}
    try:
        with duckdb.connect(path, read_only=True) as connection:
            return _fetch_meta(connection)
    except duckdb.Error:
        return {}
