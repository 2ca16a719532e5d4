"""Upkeep of the warehouse in `smspulse up`: on a timer, what an operator would run by hand or by cron."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

_log = logging.getLogger(__name__)

_COMMANDS: Final = ("rebuild", "compact", "retain")
_DONE: Final = {0, 1}  # 1: the rebuild found a difference, which its lines say


class UpkeepSettings(BaseSettings):
    """Environment: `SMSPULSE_UPKEEP_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_UPKEEP_", frozen=True, extra="forbid")

    minutes: float = Field(60, ge=0, description="Minutes between two runs; 0: never.")


async def keep_up(
    minutes: float,
    run: Callable[[Sequence[str]], Awaitable[int]],
    wait: Callable[[float], Awaitable[None]],
) -> None:
    """Rebuild what is not closed, merge files, and drop what is too old, over and over. A run that fails is no end.

    Args:
        minutes: Between two runs; 0 ends this at once.
        run: Runs a command of `smspulse` and returns its exit code.
        wait: Waits so many seconds.
    """
    while minutes:
        await wait(minutes * 60)
        for command in _COMMANDS:
            try:
                failed = await run((command,)) not in _DONE
            except OSError as error:  # no process could be started
                failed = True
                _log.warning("%s: %s", command, error)
            if failed:
                _log.warning("%s failed: see its lines above; it is tried again in %g minutes", command, minutes)
