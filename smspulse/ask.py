"""The answers of `smspulse sql`: shown or written, once or whenever they change."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.live import Live
from rich.measure import Measurement
from rich.table import Table

from warehouse.read import query

_ENDLESS: Final = 100_000


def ask(data: Path, statement: str, form: str, output: Path | None, watch: float | None) -> None:
    """Run a statement, and show its rows or write them to a file, which is replaced in one step.

    Args:
        data: The data folder.
        statement: SQL.
        form: `table`, or one of `ENCODERS`.
        output: The file; standard output if None.
        watch: Seconds until it is asked again, until Ctrl-C; None to ask once.

    Raises:
        NoWarehouseError: There is nothing to ask.
        click.ClickException: The statement is wrong, the file cannot be written, or the options exclude each other.
    """
    if form == "table" and output:
        msg = "a table is for people: give --output a --format of csv, json or parquet"
        raise click.UsageError(msg)
    stdout = click.get_binary_stream("stdout")
    if form == "parquet" and not output and stdout.isatty():
        msg = "Parquet is not for people: name a file with --output"
        raise click.UsageError(msg)
    try:
        with suppress(KeyboardInterrupt), ExitStack() as stack:
            show = _shower(stack, live=watch is not None) if form == "table" else None
            for answer in _answers(data, statement, watch, arrow=form == "parquet"):
                if show:
                    show(answer)
                elif output:
                    part = output.with_name(f".{output.name}.part")
                    part.write_bytes(ENCODERS[form](answer))
                    part.replace(output)
                else:
                    stdout.write(ENCODERS[form](answer))
                    stdout.flush()
    except duckdb.Error as error:
        raise click.ClickException(str(error).strip()) from error
    except OSError as error:
        msg = f"cannot write to {output or 'standard output'}: {error.strerror}"
        raise click.ClickException(msg) from error


def _answers(data: Path, statement: str, watch: float | None, *, arrow: bool) -> Iterator[Any]:
    """Yield the rows, and those of each later time that differ from the time before."""
    last: Any = None
    stopped = False

    def stop(*_: object) -> NoReturn:
        nonlocal stopped
        stopped = True  # DuckDB can lose the exception: it cannot be raised out of what it calls while it answers
        raise KeyboardInterrupt

    if watch is not None:
        signal.signal(signal.SIGINT, stop)
    while not stopped:
        answer: Any = query(data, statement, arrow=True) if arrow else query(data, statement)
        if last is None or not answer.equals(last):
            yield answer
        if watch is None:
            return
        last = answer
        time.sleep(watch)


def _shower(stack: ExitStack, *, live: bool) -> Callable[[pd.DataFrame], None]:
    console = Console()
    if not live or not console.is_terminal:
        return lambda frame: console.print(_table(frame, console))
    screen = stack.enter_context(Live(console=console, auto_refresh=False))
    return lambda frame: screen.update(_table(frame, console), refresh=True)


def _table(frame: pd.DataFrame, console: Console) -> Table:
    """Return rows as they are, or one below the other, a line a column, where the columns do not fit."""
    names = [str(column) for column in frame.columns]
    found = frame.astype(object).where(frame.notna(), "").itertuples(index=False)
    rows = [[str(value) for value in row] for row in found]
    table = Table(*names)
    for row in rows:
        table.add_row(*row)
    needed = Measurement.get(console, console.options.update(width=_ENDLESS), table).minimum
    if not rows or needed <= console.width:
        return table
    tall = Table(show_header=False)
    for row in rows:
        for name, value in zip(names, row, strict=True):
            tall.add_row(name, value)
        tall.add_section()
    return tall


def _csv(frame: pd.DataFrame) -> bytes:
    return frame.to_csv(index=False).encode()


def _json(frame: pd.DataFrame) -> bytes:
    return f"{frame.to_json(orient='records', date_format='iso', date_unit='ms', force_ascii=False)}\n".encode()


def _parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return bytes(sink.getvalue())


ENCODERS: Final[dict[str, Callable[[Any], bytes]]] = {"csv": _csv, "json": _json, "parquet": _parquet}
"""By format: how rows become bytes."""
