"""Runs the processes of the pipeline: starts them in order, restarts those that end, stops them in reverse order.

Several processes of a kind are started and stopped together. Each is restarted by itself.

Each process is a command of `smspulse`, the same that an operator would run by hand. A process that ends is restarted
after a pause, which doubles from 0.5 s to 10 s and is 0.5 s again once the process has run for half a minute. Processes
have sessions of their own, so Ctrl-C reaches the supervisor alone. They end when it ends, however it ends. A process
that was never ready and reports that a restart cannot help, such as for a wrong setting, is not restarted:
`ProcessSupervisor.failure` has the error.
"""

import asyncio
import io
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from smspulse.processes.children import NEVER_READY, READY, READY_FD_VARIABLE, describe_exit, die_with_parent
from smspulse.processes.errors import SupervisorError

_log = logging.getLogger(__name__)

# The pause before a restart doubles from the first to the longest.
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
# After so long, the next failure counts as the first one.
_STABLE_AFTER_S: Final = 30.0
# A longer line is replaced, so that a process cannot fill the supervisor's memory.
_LINE_LIMIT: Final = 1 << 20
# The log level at the start of a child's line; see `log_setup`.
_LEVEL: Final = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) (.*)", re.DOTALL)


@dataclass(slots=True)
class ChildProcess:
    """One process under the supervisor.

    Args:
        name: Prefix of its log lines.
        arguments: Arguments of `smspulse`.
        stop_timeout_s: Seconds to stop before it is killed.
        ready_timeout_s: Seconds to become ready.
        environment: Variables in addition to those of the supervisor.
    """

    name: str
    arguments: Sequence[str]
    stop_timeout_s: float
    ready_timeout_s: float = 60
    environment: dict[str, str] = field(default_factory=dict)
    process: asyncio.subprocess.Process | None = None
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    is_permanent_failure: bool = False
    last_error: str = ""
    restart_task: asyncio.Task[Any] = field(init=False)


class ProcessSupervisor:
    """Keeps children running.

    Args:
        show: Called with a child's name, and the level and text of a line. Its errors do not affect the child.

    Attributes:
        failure: Done, with a `SupervisorError`, once a child cannot start and a restart cannot help.
    """

    def __init__(self, show: Callable[[str, int, str], None]) -> None:
        self._show_line = show
        self._started: list[Sequence[ChildProcess]] = []
        self._is_stopping = False
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Else asyncio logs a failure that nobody awaits; the first task that stops has logged the reason.
        self.failure.add_done_callback(lambda failure: failure.cancelled() or failure.exception())

    async def start(self, *children: ChildProcess) -> None:
        """Start children that stop together. Does not wait; `wait_until_ready` does."""
        self._started.append(children)
        for child in children:
            child.restart_task = asyncio.create_task(self._keep_child_running(child))

    async def run(self, child: ChildProcess) -> int:
        """Run a child that ends by itself; return its exit code. `stop` stops it, too."""
        alone = (child,)
        self._started.append(alone)
        child.restart_task = running = asyncio.create_task(self._run_once(child))
        # The caller may be cancelled; `stop` still ends the process.
        code = await asyncio.shield(running)
        self._started.remove(alone)
        return code

    async def wait_until_ready(self, child: ChildProcess) -> None:
        """Wait until a child reports that it is ready.

        Raises:
            SupervisorError: The child did not in time, or some child cannot start at all.
        """
        ready = asyncio.create_task(child.ready.wait())
        try:
            waiting: set[asyncio.Future[Any]] = {ready, self.failure}
            await asyncio.wait(waiting, timeout=child.ready_timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if self.failure.done():
                self.failure.result()
            if not ready.done():
                msg = f"{child.name} did not become ready within {child.ready_timeout_s:g} s: see its lines above"
                raise SupervisorError(msg)
        finally:
            ready.cancel()

    async def _keep_child_running(self, child: ChildProcess) -> None:
        pause = _FIRST_PAUSE_S
        while True:
            started = time.monotonic()
            try:
                how = describe_exit(await self._run_once(child))
            # Such as when no process can be started. The next try may succeed.
            except Exception as error:
                how = f"could not be run ({error!r})"
            if self._is_stopping:
                return
            # A child that was ready once may recover, so it is restarted in any case.
            if child.is_permanent_failure and not child.ready.is_set():
                if not self.failure.done():
                    why = child.last_error or "see its lines above"
                    self.failure.set_exception(SupervisorError(f"{child.name} cannot start: {why}"))
                return
            # A process that ran well for a while gets a short pause again.
            if time.monotonic() - started > _STABLE_AFTER_S:
                pause = _FIRST_PAUSE_S
            _log.warning("%s %s; it is restarted in %g s", child.name, how, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    async def _run_once(self, child: ChildProcess) -> int:
        loop = asyncio.get_running_loop()
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        with os.fdopen(reading, "rb", buffering=0) as reports:
            with os.fdopen(writing, "wb"):
                child.process = process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "smspulse", *child.arguments),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.STDOUT,
                    limit=_LINE_LIMIT,
                    env={**os.environ, **child.environment, READY_FD_VARIABLE: str(writing)},
                    pass_fds=(writing,),
                    start_new_session=True,
                    preexec_fn=die_with_parent(signal.SIGTERM),
                )
            loop.add_reader(reports, self._receive_report, child, reports)
            try:
                await self._relay_output(child, process)
                return await process.wait()
            finally:
                loop.remove_reader(reports)
                if process.returncode is None:
                    # No longer watched, it would run next to its successor.
                    process.kill()
                    await process.wait()
                # The report of an ended process may still be in the pipe.
                self._receive_report(child, reports)

    @staticmethod
    def _receive_report(child: ChildProcess, reports: io.RawIOBase) -> None:
        """Record the report of a child if there is one: ready, or never ready."""
        report = reports.read(1)
        # At the end of the pipe, too, of which the loop would call this without end.
        if report is not None:
            asyncio.get_running_loop().remove_reader(reports)
        if report == READY:
            child.ready.set()
        elif report == NEVER_READY:
            child.is_permanent_failure = True

    async def _relay_output(self, child: ChildProcess, process: asyncio.subprocess.Process) -> None:
        level = logging.INFO
        while line := await self._read_line(process.stdout):  # type: ignore[arg-type] # it is a pipe
            text = line.decode(errors="replace").rstrip()
            if found := _LEVEL.match(text):
                level = logging.getLevelNamesMapping()[found[1]]
                text = found[2]
            if not text:
                continue
            if level >= logging.ERROR:
                child.last_error = text
            try:
                self._show_line(child.name, level, text)
            except Exception as error:
                _log.debug("a line of %s could not be shown: %r", child.name, error)

    @staticmethod
    async def _read_line(stream: asyncio.StreamReader) -> bytes:
        try:
            return await stream.readline()
        # Longer than any line of smspulse. The stream has dropped it.
        except ValueError:
            return b"(a line of over 1 MiB)\n"

    async def stop(self) -> None:
        """Stop every child in reverse order of start, and kill those that take too long."""
        # From here on, no ended child is restarted.
        self._is_stopping = True
        # In reverse order, a consumer ends before its broker.
        for children in reversed(self._started):
            await asyncio.gather(*map(self._stop_child, children))
        self._started.clear()

    @staticmethod
    async def _stop_child(child: ChildProcess) -> None:
        if child.process is not None and child.process.returncode is None:
            child.process.terminate()
        else:
            # Between two runs, there is no process to stop.
            child.restart_task.cancel()
        _, late = await asyncio.wait([child.restart_task], timeout=child.stop_timeout_s)
        if late and child.process is not None:
            _log.warning("%s did not stop within %g s and is killed", child.name, child.stop_timeout_s)
            child.process.kill()
            await asyncio.wait(late)
