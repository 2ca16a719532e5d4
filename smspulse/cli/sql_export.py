"""The export formats of `smspulse sql`: rows of a query to a file.

DuckDB writes every value itself, so each of its types has an exact form (docs/reading.md lists them).
"""

import codecs
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb.sqltypes import DuckDBPyType

from warehouse.sql_text import quote_sql_text

# 1 MiB keeps memory small and system calls few.
COPY_CHUNK_BYTES: Final = 1 << 20


# Control characters, in UTF-8, that JSON allows and DuckDB does not escape.
_UNESCAPED_CONTROLS: Final = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")


# The start of a formula, in ASCII and at full width, after the start of the text or a separator of cells. A spreadsheet
# that expects another separator than a comma splits the text there, because it ignores quotes, too.
_FORMULA_START: Final = r"""(^|[;|\t\r\n])([\s"']*)([=+\-@""" + "\uff1d\uff0b\uff0d\uff20])"
# Types whose texts are never formulas, except for the sign of a number.
_NUMBERS_AND_TIMES: Final = {
    *("boolean", "tinyint", "smallint", "integer", "bigint", "hugeint", "bignum", "decimal", "float", "double"),
    *("utinyint", "usmallint", "uinteger", "ubigint", "uhugeint", "date", "time", "time with time zone"),
    *("timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone", "uuid"),
}
# Types of times without a zone, with the format of the fractions of their seconds in strftime.
_ZONELESS_TIME_FORMATS: Final = {"timestamp": "%f", "timestamp_s": "%f", "timestamp_ms": "%f", "timestamp_ns": "%n"}


@dataclass(frozen=True, slots=True)
class QueryResult:
    """The rows of a statement on an open connection."""

    connection: duckdb.DuckDBPyConnection
    relation: str
    columns: list[tuple[str, DuckDBPyType]]

    def build_select(
        self, expression: Callable[[str, DuckDBPyType], str], rename: Callable[[str], str] = lambda name: name
    ) -> str:
        """Return SQL that selects each column through an expression of its name and type, under a new name."""
        # Column names of a result need not be unique, so they are numbered inside.
        inner = [f"c{number}" for number in range(len(self.columns))]
        selected = ", ".join(
            f"{expression(column, type_)} AS {_quote_column_name(rename(name))}"
            for column, (name, type_) in zip(inner, self.columns, strict=True)
        )
        return f"SELECT {selected} FROM ({self.relation}\n) AS answer({', '.join(inner)})"  # noqa: S608 - checked


def _export_table(result: QueryResult, path: Path) -> None:
    """Write names and rows as a JSON list of lists of text. Null is an empty text."""
    sql = result.build_select(lambda column, _: f"coalesce({column}::VARCHAR, '')")
    rows = result.connection.execute(sql).fetchall()
    path.write_text(json.dumps([[name for name, _ in result.columns], *rows]), "utf-8")


def _export_csv(result: QueryResult, path: Path) -> None:
    # The text of a union, or of a value that contains one, does not name the member of its value.
    sql = result.build_select(lambda column, type_: f"to_json({column})" if "UNION" in str(type_) else column)
    result.connection.execute(f"COPY ({sql}) TO {quote_sql_text(str(path))} (FORMAT csv, HEADER true)")


def _export_spreadsheet(result: QueryResult, path: Path) -> None:
    """Write CSV in which no text is a formula, with a mark by which Excel reads UTF-8."""
    rows = path.with_suffix(".rows")
    quote_formula = f"regexp_replace({{}}::VARCHAR, {quote_sql_text(_FORMULA_START)}, '\\1\\2''\\3', 'g')"
    sql = result.build_select(
        lambda column, type_: column if type_.id in _NUMBERS_AND_TIMES else quote_formula.format(column),
        lambda name: re.sub(_FORMULA_START, r"\1\2'\3", name),
    )
    result.connection.execute(f"COPY ({sql}) TO {quote_sql_text(str(rows))} (FORMAT csv, HEADER true)")
    with rows.open("rb") as source, path.open("wb") as target:
        target.write(codecs.BOM_UTF8)
        shutil.copyfileobj(source, target, COPY_CHUNK_BYTES)


def _export_json(result: QueryResult, path: Path) -> None:
    """Write one line with a list of objects."""
    lines = path.with_suffix(".lines")
    sql = result.build_select(_make_json_expression)
    result.connection.execute(f"COPY ({sql}) TO {quote_sql_text(str(lines))} (FORMAT json)")
    with lines.open("rb") as source, path.open("wb") as target:
        target.write(b"[")
        for number, line in enumerate(source):
            written = _UNESCAPED_CONTROLS.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), line.rstrip(b"\n"))
            target.write((b"," if number else b"") + written)
        target.write(b"]\n")


def _export_parquet(result: QueryResult, path: Path) -> None:
    table: pa.Table = result.connection.sql(result.build_select(lambda column, _: column)).to_arrow_table()
    pq.write_table(table, path, compression="zstd")


ENCODERS: Final[dict[str, Callable[[QueryResult, Path], None]]] = {
    "table": _export_table,
    "csv": _export_csv,
    "spreadsheet": _export_spreadsheet,
    "json": _export_json,
    "parquet": _export_parquet,
}


def _make_json_expression(expression: str, type_: DuckDBPyType, depth: int = 0) -> str:
    """Return SQL for the JSON value of an expression. Only times, and numbers that JSON does not have, are converted.

    Times become ISO 8601, with a Z if they have a zone. `nan`, `inf` and `-inf` become texts.
    """
    if not _needs_json_conversion(type_):
        return expression
    if type_.id in {"float", "double"}:
        finite = f"isfinite({expression}) OR {expression} IS NULL"
        return f"CASE WHEN {finite} THEN to_json({expression}) ELSE to_json({expression}::VARCHAR) END"
    if type_.id == "timestamp with time zone":
        return f"strftime({expression} AT TIME ZONE 'UTC', '%Y-%m-%dT%H:%M:%S.%fZ')"
    if type_.id in _ZONELESS_TIME_FORMATS:
        return f"strftime({expression}, '%Y-%m-%dT%H:%M:%S.{_ZONELESS_TIME_FORMATS[type_.id]}')"
    return _make_nested_json_expression(expression, type_, depth)


def _make_nested_json_expression(expression: str, type_: DuckDBPyType, depth: int) -> str:
    name = f"x{depth}"
    if type_.id in {"list", "array"}:
        element = _make_json_expression(name, _list_child_types(type_)[0][1], depth + 1)
        return f"list_transform({expression}, lambda {name}: {element})"
    if type_.id == "map":
        value = _make_json_expression(f"{name}.value", _list_child_types(type_)[1][1], depth + 1)
        entries = f"list_transform(map_entries({expression}), lambda {name}: {{'key': {name}.key, 'value': {value}}})"
        return f"map_from_entries({entries})"
    fields = []
    for field, child in _list_child_types(type_):
        element = f"struct_extract({expression}, {quote_sql_text(field)})"
        fields.append(f"{_quote_column_name(field)} := {_make_json_expression(element, child, depth + 1)}")
    return f"CASE WHEN {expression} IS NULL THEN NULL ELSE struct_pack({', '.join(fields)}) END"


def _needs_json_conversion(type_: DuckDBPyType) -> bool:
    if type_.id in {"float", "double", "timestamp with time zone", *_ZONELESS_TIME_FORMATS}:
        return True
    if type_.id not in {"list", "array", "map", "struct"}:
        return False
    return any(_needs_json_conversion(child) for _, child in _list_child_types(type_))


def _list_child_types(type_: DuckDBPyType) -> list[tuple[str, DuckDBPyType]]:
    """Return the types in a nested type, by name. The children of an array include its size, which is left out."""
    return [(name, child) for name, child in type_.children if isinstance(child, DuckDBPyType)]


def _quote_column_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
