"""The answers of `smspulse sql`: shown or written, once or whenever they change.

DuckDB writes every value itself, so each of its types has a form that loses nothing (docs/reading.md lists them).
"""

import codecs
import hashlib
import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final, NoReturn

import click
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from duckdb import StatementType
from duckdb.sqltypes import DuckDBPyType
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table

from core.errors import SmspulseError
from smspulse.processes.terminal import escape_controls, make_console
from smspulse.runtime.data_folder import use_export_umask
from warehouse.reader import open_warehouse, retry_after_merge
from warehouse.sql_text import quote_sql_text

_UNLIMITED_WIDTH: Final = 100_000
_COPY_CHUNK_BYTES: Final = 1 << 20
FORMATS: Final = ("table", "csv", "spreadsheet", "json", "parquet")
_TABLE_STATEMENTS: Final = {StatementType.SELECT, StatementType.MULTI}
"""Statements that are a table, and can be a part of another one. The second is PIVOT."""
_HARMLESS_STATEMENTS: Final = _TABLE_STATEMENTS | {
    *(StatementType.SET, StatementType.VARIABLE_SET, StatementType.CREATE, StatementType.INSERT, StatementType.DROP),
    *(StatementType.UPDATE, StatementType.DELETE),
}
"""Statements that write no file: the views are read-only, and what is temporary is in memory."""
_EXPLAIN_PREFIX: Final = re.compile(r"\s*EXPLAIN\b(\s+ANALYZE\b)?(\s*\([^()]*\))?", re.IGNORECASE)


# In UTF-8: control characters that JSON may hold as they are, and DuckDB does not escape.
_UNESCAPED_CONTROLS: Final = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")


# The start of a formula, in ASCII and at full width, with what may stand before it: the start of the text; or what
# separates cells for a spreadsheet that expects no comma, and so divides the text there, for it heeds no quotes either.
_FORMULA_START: Final = r"""(^|[;|\t\r\n])([\s"']*)([=+\-@""" + "\uff1d\uff0b\uff0d\uff20])"
_NUMBERS_AND_TIMES: Final = {
    *("boolean", "tinyint", "smallint", "integer", "bigint", "hugeint", "bignum", "decimal", "float", "double"),
    *("utinyint", "usmallint", "uinteger", "ubigint", "uhugeint", "date", "time", "time with time zone"),
    *("timestamp", "timestamp_s", "timestamp_ms", "timestamp_ns", "timestamp with time zone", "uuid"),
}
"""Types whose texts are never formulas, but for the sign of a number."""
_ZONELESS_TIME_FORMATS: Final = {"timestamp": "%f", "timestamp_s": "%f", "timestamp_ms": "%f", "timestamp_ns": "%n"}
"""Types of times without a zone, and how strftime writes parts of their seconds."""


class StatementError(SmspulseError):
    """The statement cannot be run."""


@dataclass(frozen=True, slots=True)
class _QueryResult:
    """The rows of a statement on an open connection."""

    connection: duckdb.DuckDBPyConnection
    relation: str
    names: list[str]
    types: list[DuckDBPyType]

    def build_select(
        self, expression: Callable[[str, DuckDBPyType], str], rename: Callable[[str], str] = lambda name: name
    ) -> str:
        """Return the SQL of the rows with each column as an expression, by its name and type, makes it; renamed."""
        inner = [f"c{number}" for number in range(len(self.names))]
        columns = ", ".join(
            f"{expression(column, type_)} AS {_quote_column_name(rename(name))}"
            for column, name, type_ in zip(inner, self.names, self.types, strict=True)
        )
        return f"SELECT {columns} FROM ({self.relation}\n) AS answer({', '.join(inner)})"  # noqa: S608 - checked


def run_sql_command(
    data: Path, statement: str, form: str, output: Path | None, watch: float | None, *, unrestricted: bool = False
) -> None:
    """Run a statement, and show its rows or write them to a file, which is replaced in one step.

    Args:
        data: The data folder.
        statement: SQL. Of several statements, the last one has the rows.
        form: One of `FORMATS`.
        output: The file; standard output if None.
        watch: Seconds until it is asked again, until Ctrl-C; None to ask once.
        unrestricted: Whether it may read and write other files, attach databases and change settings.

    Raises:
        NoWarehouseError: There is nothing to ask.
        StatementError: There is no statement, or it is not allowed.
        click.ClickException: The statement is wrong, the file cannot be written, or the options exclude each other.
    """
    if form == "table" and output:
        msg = "a table is for people: give --output a --format of csv, spreadsheet, json or parquet"
        raise click.UsageError(msg)
    stdout = click.get_binary_stream("stdout")
    if form == "parquet" and not output and stdout.isatty():
        msg = "Parquet is not for people: name a file with --output"
        raise click.UsageError(msg)
    try:
        statements = _parse_statements(statement, unrestricted=unrestricted)
        with suppress(KeyboardInterrupt), ExitStack() as stack:
            scratch = Path(stack.enter_context(TemporaryDirectory(prefix="smspulse-sql.")))
            show = _make_table_printer(stack, live=watch is not None) if form == "table" else None
            for path in _watch_result_files(data, statements, form, scratch, watch, unrestricted=unrestricted):
                if show:
                    show(json.loads(path.read_bytes()))
                elif output:
                    part = output.with_name(f".{output.name}.part")
                    with use_export_umask(output, data):
                        shutil.copyfile(path, part)
                    part.replace(output)
                else:
                    with path.open("rb") as file:
                        _copy_to_stdout(file, stdout)
    except duckdb.PermissionException as error:
        refused = str(error).partition("\n")[0]
        msg = f"{refused}: a statement reads files of the data folder alone; --unrestricted allows others"
        raise StatementError(msg) from error
    except duckdb.Error as error:
        raise click.ClickException(str(error).strip()) from error
    except OSError as error:
        msg = f"cannot write to {output or 'standard output'}: {error.strerror}"
        raise click.ClickException(msg) from error


def _parse_statements(sql: str, *, unrestricted: bool) -> list[duckdb.Statement]:
    """Return the statements of a text.

    Raises:
        StatementError: There is none, or one is not allowed.
        duckdb.Error: It is no SQL.
    """
    statements = duckdb.extract_statements(sql)
    if not statements:
        msg = 'there is no SQL to run: give a statement, such as smspulse sql "FROM freshness"'
        raise StatementError(msg)
    for statement in statements:
        if not unrestricted and not _is_harmless(statement):
            msg = (
                f"{statement.query.split()[0].upper()} is not allowed here, for this only reads: write rows to a file "
                "with --format and --output, or allow other files, databases and settings with --unrestricted"
            )
            raise StatementError(msg)
    return statements


def _is_harmless(statement: duckdb.Statement) -> bool:
    if statement.type != StatementType.EXPLAIN:
        return statement.type in _HARMLESS_STATEMENTS
    # EXPLAIN ANALYZE runs what it explains.
    try:
        explained = duckdb.extract_statements(_EXPLAIN_PREFIX.sub("", statement.query, count=1))
    except duckdb.Error:
        return False
    return [each.type in _TABLE_STATEMENTS for each in explained] == [True]


def _watch_result_files(
    data: Path,
    statements: list[duckdb.Statement],
    form: str,
    scratch: Path,
    watch: float | None,
    *,
    unrestricted: bool,
) -> Iterator[Path]:
    """Yield a file with the rows in the format, and one for each later time that they differ from the time before."""
    last: bytes | None = None
    stopped = False

    def stop_watching(*_: object) -> NoReturn:
        nonlocal stopped
        stopped = True  # DuckDB can lose the exception: it cannot be raised out of what it calls while it answers
        raise KeyboardInterrupt

    if watch is not None:
        signal.signal(signal.SIGINT, stop_watching)
    path = scratch / "answer"

    def write_result() -> None:
        with open_warehouse(data, restricted=not unrestricted, writable=scratch) as connection:
            _write_result_file(connection, statements, form, path)

    while not stopped:
        retry_after_merge(write_result)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        if digest != last:
            yield path
        if watch is None:
            return
        last = digest
        time.sleep(watch)


def _write_result_file(
    connection: duckdb.DuckDBPyConnection, statements: list[duckdb.Statement], form: str, path: Path
) -> None:
    """Run the statements, and write the rows of the last one to a file."""
    *before, last = statements
    for statement in before:
        connection.execute(statement)
    if last.type in _TABLE_STATEMENTS:
        relation = _strip_semicolon(last.query)
    else:
        executed = connection.execute(last)
        names, rows = [column[0] for column in executed.description or ()], executed.fetchall()
        columns_of = {name: [row[number] for row in rows] for number, name in enumerate(names)}
        connection.register("answer_of_statement", pa.table(columns_of or {"done": [True]}))
        relation = "FROM answer_of_statement"
    described = connection.execute(f"SELECT * FROM ({relation}\n) LIMIT 0")  # noqa: S608 - it was parsed
    columns = described.description or []
    result = _QueryResult(connection, relation, [column[0] for column in columns], [column[1] for column in columns])
    _ENCODERS[form](result, path)


def _strip_semicolon(sql: str) -> str:
    """Return a statement without what ends it, so that it can stand in brackets; comments may follow it."""
    text = sql.encode()
    for offset, kind in reversed(duckdb.tokenize(sql)):
        if kind == duckdb.token_type.comment:
            continue
        return (text[:offset] if text[offset : offset + 1] == b";" else text).decode()
    return sql


def _copy_to_stdout(file: IO[bytes], stdout: IO[bytes]) -> None:
    """Copy a file to standard output; on a terminal, without control characters."""
    if stdout.isatty():
        for line in file:
            stdout.write(escape_controls(line.decode(errors="replace")).encode())
    else:
        shutil.copyfileobj(file, stdout, _COPY_CHUNK_BYTES)
    stdout.flush()


def _make_table_printer(stack: ExitStack, *, live: bool) -> Callable[[list[Any]], None]:
    console = make_console()
    if not live or not console.is_terminal:
        return lambda found: console.print(_build_result_table(found[0], found[1:], console))
    screen = stack.enter_context(Live(console=console, auto_refresh=False))
    return lambda found: screen.update(_build_result_table(found[0], found[1:], console), refresh=True)


def _build_result_table(names: list[str], rows: list[list[str]], console: Console) -> Table:
    """Return rows as they are, or one below the other, a line a column, where the columns do not fit."""
    table = Table(*names)
    for row in rows:
        table.add_row(*row)
    needed = Measurement.get(console, console.options.update(width=_UNLIMITED_WIDTH), table).minimum
    if not rows or needed <= console.width:
        return table
    vertical_table = Table(show_header=False)
    for row in rows:
        for name, value in zip(names, row, strict=True):
            vertical_table.add_row(name, value)
        vertical_table.add_section()
    return vertical_table


def _export_table(result: _QueryResult, path: Path) -> None:
    """Write names and rows as a JSON list of lists of text; null is no text."""
    sql = result.build_select(lambda column, _: f"coalesce({column}::VARCHAR, '')")
    rows = result.connection.execute(sql).fetchall()
    path.write_text(json.dumps([result.names, *rows]), "utf-8")


def _export_csv(result: _QueryResult, path: Path) -> None:
    # The text of a union, or of what holds one, does not say of which kind its value is.
    sql = result.build_select(lambda column, type_: f"to_json({column})" if "UNION" in str(type_) else column)
    result.connection.execute(f"COPY ({sql}) TO {quote_sql_text(str(path))} (FORMAT csv, HEADER true)")


def _export_spreadsheet(result: _QueryResult, path: Path) -> None:
    """Write CSV in which no text is a formula, and that Excel takes for UTF-8."""
    rows = path.with_suffix(".rows")
    quote_formula = f"regexp_replace({{}}::VARCHAR, {quote_sql_text(_FORMULA_START)}, '\\1\\2''\\3', 'g')"
    sql = result.build_select(
        lambda column, type_: column if type_.id in _NUMBERS_AND_TIMES else quote_formula.format(column),
        lambda name: re.sub(_FORMULA_START, r"\1\2'\3", name),
    )
    result.connection.execute(f"COPY ({sql}) TO {quote_sql_text(str(rows))} (FORMAT csv, HEADER true)")
    with rows.open("rb") as source, path.open("wb") as target:
        target.write(codecs.BOM_UTF8)
        shutil.copyfileobj(source, target, _COPY_CHUNK_BYTES)


def _export_json(result: _QueryResult, path: Path) -> None:
    """Write one line with a list of objects."""
    lines = path.with_suffix(".lines")
    sql = result.build_select(_make_json_expression)
    result.connection.execute(f"COPY ({sql}) TO {quote_sql_text(str(lines))} (FORMAT json)")
    with lines.open("rb") as source, path.open("wb") as target:
        target.write(b"[")
        for number, line in enumerate(source):
            written = _UNESCAPED_CONTROLS.sub(_escape_json_character, line.rstrip(b"\n"))
            target.write((b"," if number else b"") + written)
        target.write(b"]\n")


def _escape_json_character(found: re.Match[bytes]) -> bytes:
    return b"\\u%04x" % ord(found[0].decode())


def _export_parquet(result: _QueryResult, path: Path) -> None:
    table: pa.Table = result.connection.sql(result.build_select(lambda column, _: column)).to_arrow_table()
    pq.write_table(table, path, compression="zstd")


_ENCODERS: Final[dict[str, Callable[[_QueryResult, Path], None]]] = {
    "table": _export_table,
    "csv": _export_csv,
    "spreadsheet": _export_spreadsheet,
    "json": _export_json,
    "parquet": _export_parquet,
}


def _make_json_expression(expression: str, type_: DuckDBPyType, depth: int = 0) -> str:
    """Return SQL of what DuckDB shall write as JSON: itself, but for times and for numbers that JSON does not have.

    Times become ISO 8601, with a Z where they have a zone; `nan`, `inf` and `-inf` become texts.
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
    """Return the types within a nested one, by name; an array has its size next to them."""
    return [(name, child) for name, child in type_.children if isinstance(child, DuckDBPyType)]


def _quote_column_name(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
