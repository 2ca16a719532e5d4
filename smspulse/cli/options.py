"""Shared parts of commands: options, exit codes, the data folder."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from core.background_tasks import end_process_if_a_thread_fails
from core.buckets import is_bucket_address
from core.urls import parse_http_url
from smspulse.processes.data_folder import restrict_to_owner, set_private_umask
from smspulse.processes.errors import DataFolderError

# DuckDB cuts a path at the first, and takes the second as a separator. The others stand for bytes that are not UTF-8.
_UNUSABLE_IN_PATHS: Final = re.compile("[?\\\\\ud800-\udfff]")


Command = TypeVar("Command", bound=Callable[..., Any])

# Exit code: a check found a problem.
EXIT_CHECK_FAILED: Final = 1

PORT: Final = click.IntRange(0, 65_535)


class FiniteFloat(click.FloatRange):
    """A finite number within bounds. The bounds of click accept infinity and NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or end the command with an error."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class ParsedType(click.ParamType):
    """A text that a function parses. The function raises ValueError with a text for people."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the parsed value, or end the command with an error."""
        try:
            return self._parse(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


URL: Final = ParsedType("URL", parse_http_url)
SHARE: Final = FiniteFloat(0, 1)
POSITIVE: Final = FiniteFloat(min=0, min_open=True)
OUTPUT_FILE: Final = click.Path(dir_okay=False, path_type=Path)


def _apply_data_umask(context: click.Context, _: click.Parameter, data: Path) -> Path:
    """Make new files of the command as private as the data folder."""
    if not is_bucket_address(data) and not context.resilient_parsing:
        set_private_umask(data)
    return data


data_option: Final = click.option(
    "--data",
    envvar="SMSPULSE_DATA",
    default="./.smspulse",
    # `_apply_data_umask` checks the permissions, with a better error.
    type=click.Path(file_okay=False, readable=False, path_type=Path),
    callback=_apply_data_umask,
    help="Data folder.  [env: SMSPULSE_DATA]",
)
broker_option: Final = click.option(
    "--broker",
    envvar="SMSPULSE_BROKER",
    default="auto",
    help="HOST:PORT, or auto: the one that runs on the data folder.  [env: SMSPULSE_BROKER]",
)


def ingest_options(prefix: str = "") -> Callable[[Command], Command]:
    """Return a decorator that adds `--host` and `--port` of ingest, with a prefix such as `ingest-`."""
    announced = "that of the data folder's ingest"
    add_host = click.option(
        f"--{prefix}host",
        envvar="SMSPULSE_INGEST_HOST",
        help=f"Address of ingest.  [default: {announced}, or 127.0.0.1]",
    )
    add_port = click.option(
        f"--{prefix}port",
        envvar="SMSPULSE_INGEST_PORT",
        type=PORT,
        help=f"Port of ingest.  [default: {announced}, or 8080]",
    )
    return lambda command: add_host(add_port(command))


def require_data_folder(data: Path, *others: str) -> None:
    """Require an existing data folder, so that a mistyped name is an error. Creates nothing.

    Args:
        data: The data folder.
        others: Names in it that identify a data folder, in addition to those of the warehouse.

    Raises:
        NeedsFolderError: The path is a bucket.
        NoWarehouseError: The path is not a data folder.
        SmspulseError: The folder cannot be written.
    """
    from warehouse.catalog import CATALOG_FILE
    from warehouse.datasets import DATASET_NAMES
    from warehouse.errors import NoWarehouseError

    _refuse_unusable_path(data)
    signs = [*others, CATALOG_FILE, *(f"{name}/date=*" for name in DATASET_NAMES)]
    if not any(any(data.glob(sign)) for sign in signs):
        raise NoWarehouseError(data)
    ensure_data_folder(data)


def ensure_data_folder(data: Path) -> None:
    """Create the data folder if it is missing, and remove the permissions of other users.

    Raises:
        NeedsFolderError: The path is a bucket.
        DataFolderError: The folder cannot be created or written, or DuckDB cannot use its path.
        SettingError: The folder cannot be given to the group of the settings.
    """
    _refuse_unusable_path(data)
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"the data folder {data} cannot be created: {error.strerror}; name another with --data"
        raise DataFolderError(msg) from error
    if not os.access(data, os.W_OK | os.X_OK):
        msg = f"the data folder {data} is not writable; fix its permissions or name another with --data"
        raise DataFolderError(msg)
    restrict_to_owner(data)


def prepare_process(data: Path) -> None:
    """Prepare a command that runs on: create its data folder, and end it when a thread fails. Raises as above."""
    ensure_data_folder(data)
    end_process_if_a_thread_fails()


def _refuse_unusable_path(data: Path) -> None:
    if is_bucket_address(data):
        from warehouse.errors import NeedsFolderError

        raise NeedsFolderError(data)
    if found := _UNUSABLE_IN_PATHS.search(f"{data.absolute()} {data.resolve()}"):
        what = f"a `{found[0]}`" if found[0].isascii() else "bytes that are not UTF-8"
        msg = f"the data folder {str(data)!r} has {what} in its path, where DuckDB opens no file"
        msg += "; name another with --data"
        raise DataFolderError(msg)
