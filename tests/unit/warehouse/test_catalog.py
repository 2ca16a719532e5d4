"""The catalog, whose views are copied from the last one when only macros differ."""

from pathlib import Path
from typing import Any

import duckdb
import pytest
from landing import land_records
from warehouse_records import version

from warehouse import reader
from warehouse.catalog import CATALOG_FILE, create_folder_statements, write_catalog_file
from warehouse.reader import open_warehouse
from warehouse.views import create_view_statements

# Publications of a month, with maintenance once an hour, are 720.
PUBLICATIONS = 30


def contents(path: Path) -> list[Any]:
    """Return all views, macros and columns of a catalog, with their comments."""
    with duckdb.connect(path, read_only=True) as connection:
        return [
            connection.execute(f"SELECT {columns} FROM {relation} WHERE NOT internal ORDER BY ALL").fetchall()  # noqa: S608
            for relation, columns in (
                ("duckdb_views()", "view_name, sql, comment"),
                ("duckdb_functions()", "function_name, parameters, macro_definition, comment"),
                ("duckdb_columns()", "table_name, column_name, data_type, comment"),
            )
        ]


def statements(data: Path, offset: int) -> list[str]:
    """Return the statements of a folder whose base files hold all versions up to an offset."""
    unmerged = f'"offset" >= {offset}' if offset % 3 else "true"
    return create_view_statements(
        data, unmerged, has_rollups=offset % 2 == 0, incarnation_order=[f"topic{offset}"] * (offset > 0)
    )


def test_a_catalog_made_from_the_last_one_many_times_equals_a_new_one_and_does_not_grow(
    published: Path, tmp_path: Path
) -> None:
    last, sizes = published / CATALOG_FILE, set[int]()
    for number in range(PUBLICATIONS):
        path = tmp_path / f"{number}.duckdb"
        write_catalog_file(path, statements(published, number), str(published), earlier=last)
        last = path
        sizes.add(path.stat().st_size)
    new = tmp_path / "new.duckdb"
    write_catalog_file(new, statements(published, PUBLICATIONS - 1), str(published))
    assert contents(last) == contents(new)
    assert max(sizes) <= 3 * new.stat().st_size


@pytest.mark.parametrize("fault", ["other views", "no catalog", "damaged"])
def test_a_catalog_that_cannot_be_used_is_not_copied(published: Path, tmp_path: Path, fault: str) -> None:
    earlier, path, new = published / CATALOG_FILE, tmp_path / "made.duckdb", tmp_path / "new.duckdb"
    sql = create_folder_statements(published)
    if fault == "other views":
        with duckdb.connect(earlier) as connection:
            connection.execute("CREATE OR REPLACE VIEW messages AS SELECT 1 AS one")
            connection.execute("CREATE OR REPLACE VIEW meta AS SELECT 'others' AS views")
    elif fault == "no catalog":
        earlier.unlink()
    else:
        earlier.write_bytes(earlier.read_bytes()[:5_000])
    write_catalog_file(path, sql, str(published), earlier=earlier)
    write_catalog_file(new, sql, str(published))
    assert contents(path) == contents(new)


def cached_bytes(connection: duckdb.DuckDBPyConnection) -> int:
    """Return the memory of the cached footers in a connection's instance."""
    sql = "SELECT memory_usage_bytes FROM duckdb_memory() WHERE tag = 'OBJECT_CACHE'"
    return int(connection.execute(sql).fetchall()[0][0])


def test_a_connection_has_the_newest_catalog_while_an_earlier_one_is_open(published: Path, tmp_path: Path) -> None:
    with open_warehouse(published) as earlier:
        path = tmp_path / "later.duckdb"
        sql = [*create_folder_statements(published), "CREATE VIEW later AS SELECT 1 AS one"]
        write_catalog_file(path, sql, str(published))
        path.replace(published / CATALOG_FILE)
        with open_warehouse(published) as connection:
            assert connection.execute("FROM later").fetchall() == [(1,)]
        with pytest.raises(duckdb.CatalogException):
            earlier.execute("FROM later")


def test_connections_share_cached_footers_for_a_limited_time(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0
    monkeypatch.setattr(reader.time, "monotonic", lambda: seconds)
    for number in range(40):
        land_records(published, number, [version(number, number)])
    with open_warehouse(published) as first:
        first.execute("FROM messages").fetchall()
        filled = cached_bytes(first)
        with open_warehouse(published) as second:
            assert cached_bytes(second) == filled
            seconds += reader._INSTANCE_LIFETIME_S
            with open_warehouse(published) as third:
                assert cached_bytes(third) < filled / 2
