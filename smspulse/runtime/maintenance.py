"""Periodic maintenance and checks of the warehouse in `smspulse up`."""

import asyncio
import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from smspulse.processes.children import die_with_parent

_log = logging.getLogger(__name__)

# In this order: the base is rebuilt before its files are merged, and days are dropped last.
_COMMANDS: Final = ("rebuild", "compact", "retain")
# 1: the rebuild found a difference. Its own log lines have it.
_DONE_CODES: Final = {0, 1}


async def run_maintenance(minutes: float, run: Callable[[str], Awaitable[int]]) -> None:
    """Rebuild open days, merge files and drop expired days, without end. A failed run is repeated next time.

    Args:
        minutes: Minutes between two runs; 0 returns at once.
        run: Runs a command of `smspulse` and returns its exit code.
    """
    while minutes:
        await asyncio.sleep(minutes * 60)
        for command in _COMMANDS:
            try:
                failed = await run(command) not in _DONE_CODES
            # No process could be started.
            except OSError as error:
                failed = True
                _log.warning("%s: %s", command, error)
            if failed:
                _log.warning("%s failed: see its lines above; it runs again in %g minutes", command, minutes)


async def check_periodically(data: Path, broker: str, every_s: float) -> None:
    """Check a data folder every so many seconds, each time in its own process, and log changes of the results."""
    if find_spec("great_expectations") is None:
        _log.warning("the data is not checked regularly: pip install 'smspulse[expectations]'")
        return
    known: set[str] = set()
    while True:
        await asyncio.sleep(every_s)
        known = await _run_check_process(data, broker, known)


async def _run_check_process(data: Path, broker: str, known: set[str]) -> set[str]:
    tie = die_with_parent(signal.SIGTERM)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "smspulse", "check", "--data", str(data), "--broker", broker, "--format", "json"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
        # A lower priority than the pipeline's.
        preexec_fn=lambda: (tie(), os.nice(10)),
    )
    try:
        out, err = await process.communicate()
    finally:
        # Cancelled at the end of the pipeline.
        if process.returncode is None:
            process.kill()
    if process.returncode not in {0, 1}:
        last = (err.decode(errors="replace").strip().splitlines() or [f"it ended with {process.returncode}"])[-1]
        _log.error("the data could not be checked: %s", last)
        return known
    return _log_changes(json.loads(out)["expectations"], known)


def _log_changes(results: list[dict[str, Any]], known: set[str]) -> set[str]:
    """Log the expectations that newly fail or hold again; return those that fail."""
    failed = {row["expectation"]: row for row in results if not row["success"]}
    levels = {"critical": logging.ERROR, "warning": logging.WARNING, "info": logging.INFO}
    for name, row in failed.items():
        if name not in known:
            details = (row["severity"], name, row["observed"], row["meaning"], row["action"])
            _log.log(levels[row["severity"]], "check: %s: %s: %s. %s %s", *details)
    for name in known - failed.keys():
        _log.info("check: %s holds again", name)
    return set(failed)
