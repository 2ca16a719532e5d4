"""The command `sql`: results of a query, shown or written, once or at each change."""

import hashlib
import json
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NoReturn

import click
import duckdb
import pyarrow as pa
from duckdb import StatementType
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table

from smspulse.cli.errors import StatementError
from smspulse.cli.sql_export import COPY_CHUNK_BYTES, ENCODERS, QueryResult
from smspulse.processes.data_folder import use_original_umask
from smspulse.processes.terminal import escape_controls, make_console
from warehouse.reader import open_warehouse, retry_after_merge

# Wider than any terminal, to measure the width that a table needs.
_UNLIMITED_WIDTH: Final = 100_000
# Statements that return a table, and can be part of another statement. The second is PIVOT.
_TABLE_STATEMENTS: Final = {StatementType.SELECT, StatementType.MULTI}
# Statements that write no file: the views are read-only, and temporary objects are in memory.
_HARMLESS_STATEMENTS: Final = _TABLE_STATEMENTS | {
    *(StatementType.SET, StatementType.VARIABLE_SET, StatementType.CREATE, StatementType.INSERT, StatementType.DROP),
    *(StatementType.UPDATE, StatementType.DELETE),
}
# EXPLAIN with its options, in front of the explained statement.
_EXPLAIN_PREFIX: Final = re.compile(r"\s*EXPLAIN\b(\s+ANALYZE\b)?(\s*\([^()]*\))?", re.IGNORECASE)


def run_sql_command(
    data: Path, statement: str, form: str, output: Path | None, watch: float | None, *, unrestricted: bool = False
) -> None:
    """Run a statement, and show its rows or write them to a file, which is replaced in one step.

    Args:
        data: The data folder.
        statement: SQL. Of several statements, the last one has the rows.
        form: A key of `ENCODERS`.
        output: Output file; standard output if None.
        watch: Seconds between two runs, until Ctrl-C; None for one run.
        unrestricted: Whether it may read and write other files, attach databases and change settings.

    Raises:
        NoWarehouseError: The data folder has no warehouse.
        StatementError: There is no statement, or it is not allowed.
        click.ClickException: The statement is wrong, the file cannot be written, or the options exclude each other.
    """
    if form == "table" and output:
        msg = "a table is for people: give --output a --format of csv, spreadsheet, json or parquet"
        raise click.UsageError(msg)
    if form == "parquet" and not output and click.get_binary_stream("stdout").isatty():
        msg = "Parquet is not for people: name a file with --output"
        raise click.UsageError(msg)
    try:
        statements = _parse_statements(statement, unrestricted=unrestricted)
        with suppress(KeyboardInterrupt), TemporaryDirectory(prefix="smspulse-sql.") as folder:
            path = Path(folder, "answer")

            def write_result() -> None:
                with open_warehouse(data, restricted=not unrestricted, writable=path.parent) as connection:
                    _write_result_file(connection, statements, form, path)

            runs = _repeat_until_stopped(write_result, path, watch)
            if form == "table":
                _show_tables(path, runs, live=watch is not None)
            for _ in runs:
                if output:
                    _replace_output(data, path, output)
                else:
                    _copy_to_stdout(path)
    except duckdb.PermissionException as error:
        refused = str(error).partition("\n")[0]
        msg = f"{refused}: a statement reads files of the data folder alone; --unrestricted allows others"
        raise StatementError(msg) from error
    except duckdb.Error as error:
        raise click.ClickException(str(error).strip()) from error
    except OSError as error:
        msg = f"cannot write to {output or 'standard output'}: {error.strerror}"
        raise click.ClickException(msg) from error


def _replace_output(data: Path, path: Path, output: Path) -> None:
    # In the same folder, so that the last step is a rename.
    part = output.with_name(f".{output.name}.part")
    with use_original_umask(output, data):
        shutil.copyfile(path, part)
    part.replace(output)


def _parse_statements(sql: str, *, unrestricted: bool) -> list[duckdb.Statement]:
    """Return the statements of a text.

    Raises:
        StatementError: There is none, or one is not allowed.
        duckdb.Error: The text is not SQL.
    """
    statements = duckdb.extract_statements(sql)
    if not statements:
        msg = 'there is no SQL to run: give a statement, such as smspulse sql "FROM freshness"'
        raise StatementError(msg)
    for statement in statements:
        if not unrestricted and not _is_harmless(statement):
            msg = (
                f"{statement.query.split()[0].upper()} is not allowed here, because the command only reads: write rows "
                "to a file with --format and --output, or allow other files, databases and settings with --unrestricted"
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


def _repeat_until_stopped(write_result: Callable[[], None], path: Path, watch: float | None) -> Iterator[None]:
    """Write a result file, and again after so many seconds; yield after each run whose rows differ from the last."""
    last: bytes | None = None
    stopped = False

    def stop_watching(*_: object) -> NoReturn:
        nonlocal stopped
        # DuckDB can lose the exception, because it cannot be raised out of its callbacks.
        stopped = True
        raise KeyboardInterrupt

    if watch is not None:
        signal.signal(signal.SIGINT, stop_watching)
    while not stopped:
        retry_after_merge(write_result)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        # Compared by digest, because a result can be larger than the memory.
        if digest != last:
            yield
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
    columns = [(column[0], column[1]) for column in described.description or ()]
    ENCODERS[form](QueryResult(connection, relation, columns), path)


def _strip_semicolon(sql: str) -> str:
    """Return a statement without its semicolon, so that it can be a subquery. Comments may follow."""
    text = sql.encode()
    for offset, kind in reversed(duckdb.tokenize(sql)):
        if kind == duckdb.token_type.comment:
            continue
        return (text[:offset] if text[offset : offset + 1] == b";" else text).decode()
    return sql


def _copy_to_stdout(path: Path) -> None:
    """Copy a file to standard output; on a terminal, without control characters."""
    stdout = click.get_binary_stream("stdout")
    with path.open("rb") as file:
        if stdout.isatty():
            for line in file:
                stdout.write(escape_controls(line.decode(errors="replace")).encode())
        else:
            shutil.copyfileobj(file, stdout, COPY_CHUNK_BYTES)
    stdout.flush()


def _show_tables(path: Path, runs: Iterator[None], *, live: bool) -> None:
    """Show the result file after each run, on a live terminal in place of the last one."""
    console = make_console()
    with Live(console=console, auto_refresh=False) if live and console.is_terminal else nullcontext() as screen:
        for _ in runs:
            names, *rows = json.loads(path.read_bytes())
            table = _build_result_table(names, rows, console)
            if screen:
                screen.update(table, refresh=True)
            else:
                console.print(table)


def _build_result_table(names: list[str], rows: list[list[str]], console: Console) -> Table:
    """Return a table of the rows. Where the columns do not fit, each column is a line."""
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
