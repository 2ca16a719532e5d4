"""What several commands share: options, exit codes, the data folder."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from smspulse.runtime.data_folder import DataFolderError, restrict_to_owner, set_private_umask

_DUCKDB_PATH_CHARACTERS: Final = "?\\"
"""It cuts a path at the first, and takes the second for a separator."""


Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_CHECK_FAILED: Final = 1
"""Exit code: the thing checked is not so."""

PORT: Final = click.IntRange(0, 65_535)


class FiniteFloat(click.FloatRange):
    """A number within bounds; neither infinity nor NaN, which no bound keeps out."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or end the command with what is wrong."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def data_option(command: Command) -> Command:
    """Add `--data`. What the command makes is as private as that folder."""
    return click.option(
        "--data",
        envvar="SMSPULSE_DATA",
        default="./.smspulse",
        show_default=True,
        type=click.Path(file_okay=False, readable=False, path_type=Path),  # `_apply_data_umask` says who may read it
        callback=_apply_data_umask,
        help="Data folder.  [env: SMSPULSE_DATA]",
    )(command)


def _apply_data_umask(context: click.Context, _: click.Parameter, data: Path) -> Path:
    if not is_bucket_path(data) and not context.resilient_parsing:
        set_private_umask(data)
    return data


def broker_option(command: Command) -> Command:
    """Add `--broker`."""
    return click.option(
        "--broker",
        envvar="SMSPULSE_BROKER",
        default="auto",
        show_default=True,
        help="HOST:PORT, or auto: the one that runs on the data folder.  [env: SMSPULSE_BROKER]",
    )(command)


class UrlType(click.ParamType):
    """An http or https URL."""

    name = "URL"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return it without a slash at its end."""
        from smspulse.runtime.urls import parse_http_url

        try:
            return parse_http_url(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def require_data_folder(data: Path, *others: str) -> None:
    """Refuse a folder that holds no data of smspulse, such as one whose name was mistyped. Make nothing.

    Args:
        data: The data folder.
        others: Names in it, next to those of the warehouse, that show that it is one.

    Raises:
        NeedsFolderError: It is no folder but a bucket.
        NoWarehouseError: It is not a data folder.
        SmspulseError: It cannot be written.
    """
    from warehouse.catalog import CATALOG_FILE
    from warehouse.datasets import DATASET_NAMES
    from warehouse.errors import NoWarehouseError

    if not is_bucket_path(data):
        _refuse_unusable_path(data)
        is_found = any((data / name).exists() for name in (CATALOG_FILE, *others))
        if not is_found and not any(any((data / name).glob("date=*")) for name in DATASET_NAMES):
            raise NoWarehouseError(data)
    ensure_data_folder(data)


def is_bucket_path(data: Path) -> bool:
    """Return whether a data folder is the address of a bucket, which as a path has lost a slash."""
    return str(data).startswith("s3:/")


def ingest_options(command: Command) -> Command:
    """Add `--host` and `--port`: where ingest listens."""
    return _add_ingest_options(command, "--host", "--port")


def named_ingest_options(command: Command) -> Command:
    """Add `--ingest-host` and `--ingest-port`, for a command that listens itself."""
    return _add_ingest_options(command, "--ingest-host", "--ingest-port")


def _add_ingest_options(command: Command, host: str, port: str) -> Command:
    announced = "where the ingest of the data folder listens"
    with_port = click.option(
        port, envvar="SMSPULSE_INGEST_PORT", type=PORT, help=f"Port of ingest.  [default: {announced}, or 8080]"
    )(command)
    return click.option(
        host, envvar="SMSPULSE_INGEST_HOST", help=f"Address of ingest.  [default: {announced}, or 127.0.0.1]"
    )(with_port)


def ensure_data_folder(data: Path) -> None:
    """Make the data folder if it is missing, and keep other users out of it.

    Raises:
        NeedsFolderError: It is no folder but a bucket.
        DataFolderError: It cannot be made or written, or DuckDB cannot work in it.
        SettingError: It cannot be given to the group that is to read it.
    """
    if is_bucket_path(data):
        from warehouse.errors import NeedsFolderError

        raise NeedsFolderError(data)
    _refuse_unusable_path(data)
    try:
        data.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        msg = f"the data folder {data} cannot be made: {error.strerror}; name another with --data"
        raise DataFolderError(msg) from error
    if not os.access(data, os.W_OK | os.X_OK):
        msg = f"the data folder {data} is not writable; mend its rights or name another with --data"
        raise DataFolderError(msg)
    restrict_to_owner(data)


def _refuse_unusable_path(data: Path) -> None:
    if problem := _describe_unusable_path(str(data.absolute())) or _describe_unusable_path(str(data.resolve())):
        msg = (
            f"the data folder {str(data)!r} has {problem} in its path, where DuckDB opens no file; "
            "name another with --data"
        )
        raise DataFolderError(msg)


def _describe_unusable_path(path: str) -> str:
    """Return what keeps DuckDB from opening files below a path, in words; empty if nothing does."""
    for character in _DUCKDB_PATH_CHARACTERS:
        if character in path:
            return f"a `{character}`"
    try:
        path.encode()
    except UnicodeEncodeError:
        return "bytes that are not UTF-8"
    return ""
