"""Runs the pipeline's processes: starts them in order, restarts what ends, stops them in reverse order.

Several of a kind are started together and stopped together; each is restarted for itself.

Each is a command of `smspulse` of its own, so that what runs under the supervisor is what an operator would run by
hand. A process that ends is started again after a pause that doubles from 0.5 s to 10 s, and is back at 0.5 s once it
has run for half a minute. Processes are in sessions of their own, so Ctrl-C reaches the supervisor alone; and they end
when it ends, however it ends. A process that was never ready and reports that a restart cannot help, as with a wrong
setting, is not started again: `ProcessSupervisor.failure` says so.
"""

import asyncio
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from core.errors import SmspulseError
from smspulse.processes.children import die_with_parent
from smspulse.processes.readiness import NEVER_READY, READY, READY_FD_VARIABLE

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
_STABLE_AFTER_S: Final = 30.0
_REPORT_S: Final = 5.0  # the report of a process that has ended is in the pipe, and is only to be taken out
_LINE_LIMIT: Final = 1 << 20
_LEVEL: Final = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) (.*)", re.DOTALL)


class SupervisorError(SmspulseError):
    """A process did not become ready."""

    is_permanent = True


@dataclass(slots=True)
class ChildProcess:
    """One process.

    Args:
        name: For people: the prefix of its log lines.
        arguments: Of `smspulse`.
        stop_timeout_s: Seconds it has to stop before it is killed.
        ready_timeout_s: Seconds it has to become ready.
        environment: Added to ours.
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
    restarts: int = 0
    restart_task: asyncio.Task[Any] | None = None


class ProcessSupervisor:
    """Keeps children running.

    Args:
        show: Called with a child's name, a line's level and its text. What it raises is not the child's problem.

    Attributes:
        failure: Done, with a `SupervisorError`, once a child cannot start and a restart cannot help.
    """

    def __init__(self, show: Callable[[str, int, str], None]) -> None:
        self._show_line = show
        self._started: list[Sequence[ChildProcess]] = []
        self._is_stopping = False
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure.add_done_callback(_retrieve_exception)

    async def start(self, *children: ChildProcess) -> None:
        """Start children, which will be stopped together, and go on; `wait_until_ready` waits."""
        self._started.append(children)
        for child in children:
            child.restart_task = asyncio.create_task(self._keep_child_running(child))

    async def run(self, child: ChildProcess) -> int:
        """Run a child that ends by itself, and return its exit code. It is stopped with the others."""
        alone = (child,)
        self._started.append(alone)
        child.restart_task = running = asyncio.create_task(self._run_once(child))
        code = await asyncio.shield(running)  # who waits may be cancelled: `stop` still ends the process
        self._started.remove(alone)
        return code

    async def wait_until_ready(self, child: ChildProcess) -> None:
        """Wait until a child has said that it is ready.

        Raises:
            SupervisorError: It did not in time, or some child cannot start at all.
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
                how = _describe_exit(await self._run_once(child))
            except Exception as error:  # as when no process can be started: the next try may find room
                how = f"could not be run ({error!r})"
            if self._is_stopping:
                return
            if child.is_permanent_failure and not child.ready.is_set():
                self._set_failure(child)
                return
            if time.monotonic() - started > _STABLE_AFTER_S:
                pause = _FIRST_PAUSE_S
            _log.warning("%s %s; it is started again in %g s", child.name, how, pause)
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)
            child.restarts += 1

    def _set_failure(self, child: ChildProcess) -> None:
        if not self.failure.done():
            why = child.last_error or "see its lines above"
            self.failure.set_exception(SupervisorError(f"{child.name} cannot start: {why}"))

    async def _run_once(self, child: ChildProcess) -> int:
        reading, writing = os.pipe()
        try:
            child.process = process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "smspulse",
                *child.arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                limit=_LINE_LIMIT,
                env={**os.environ, **child.environment, READY_FD_VARIABLE: str(writing)},
                pass_fds=(writing,),
                start_new_session=True,
                preexec_fn=die_with_parent(signal.SIGTERM),
            )
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        listening = asyncio.create_task(self._receive_report(child, reading))
        try:
            await self._relay_output(child, process)
            code = await process.wait()
            await asyncio.wait([listening], timeout=_REPORT_S)
            return code
        finally:
            listening.cancel()
            if process.returncode is None:
                # Not watched any more, it would run next to its successor.
                process.kill()
                await process.wait()

    @staticmethod
    async def _receive_report(child: ChildProcess, descriptor: int) -> None:
        """Note whether a child is ready, or says that it never will be."""
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
        )
        try:
            report = await reader.read(1)
            if report == READY:
                child.ready.set()
            elif report == NEVER_READY:
                child.is_permanent_failure = True
        finally:
            transport.close()

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
        except ValueError:  # longer than any line of ours; the stream has dropped it
            return b"(a line of over 1 MiB)\n"

    async def stop(self) -> None:
        """Stop every child, those started last first, and kill those that take too long."""
        self._is_stopping = True
        for children in reversed(self._started):
            await asyncio.gather(*map(self._stop_child, children))
        self._started.clear()

    @staticmethod
    async def _stop_child(child: ChildProcess) -> None:
        if child.restart_task is None:
            return
        if child.process is not None and child.process.returncode is None:
            child.process.terminate()
        else:
            child.restart_task.cancel()  # between two runs
        _, late = await asyncio.wait([child.restart_task], timeout=child.stop_timeout_s)
        if late and child.process is not None:
            _log.warning("%s did not stop within %g s and is killed", child.name, child.stop_timeout_s)
            child.process.kill()
            await asyncio.wait(late)


def _describe_exit(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"


def _retrieve_exception(failure: "asyncio.Future[None]") -> None:
    """Keep asyncio from logging a failure that nobody waited for: whoever stops first has said why."""
    if not failure.cancelled():
        failure.exception()
