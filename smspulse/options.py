"""Options that several commands have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

_Command = TypeVar("_Command", bound=Callable[..., Any])


def data_option(command: _Command) -> _Command:
    """Add `--data`."""
    return click.option(
        "--data",
        envvar="SMSPULSE_DATA",
        default="./.smspulse",
        show_default=True,
        type=click.Path(file_okay=False, path_type=Path),
        help="Data folder.  [env: SMSPULSE_DATA]",
    )(command)


def broker_option(command: _Command) -> _Command:
    """Add `--broker`."""
    return click.option(
        "--broker",
        envvar="SMSPULSE_BROKER",
        default="auto",
        show_default=True,
        help="HOST:PORT, or auto: the one that runs on the data folder.  [env: SMSPULSE_BROKER]",
    )(command)
