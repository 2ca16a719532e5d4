"""The supervisor watches its children also if their lines cannot be shown, and stops if a restart cannot help."""

import asyncio
import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from smspulse.processes.errors import SupervisorError
from smspulse.processes.supervisor import ChildProcess, ProcessSupervisor

PATIENCE_S = 120


def broker(data: Path) -> ChildProcess:
    return ChildProcess("broker", ("broker", "--mode", "memory", "--data", str(data)), 20, PATIENCE_S)


def test_a_child_whose_lines_cannot_be_shown_is_still_restarted(tmp_path: Path) -> None:
    async def scenario() -> None:
        def show(name: str, level: int, text: str) -> None:
            raise OSError(28, "No space left on device")

        supervisor = ProcessSupervisor(show)
        child = broker(tmp_path)
        await supervisor.start(child)
        await supervisor.wait_until_ready(child)
        assert child.process is not None
        first = child.process.pid
        child.ready.clear()
        os.kill(first, signal.SIGKILL)
        await supervisor.wait_until_ready(child)
        assert child.process.pid != first
        await supervisor.stop()
        assert child.process.returncode == 0

    asyncio.run(scenario())


class FirstRecord(logging.Handler):
    """Sets an event with the first record."""

    def __init__(self) -> None:
        super().__init__()
        self.event = asyncio.Event()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = self.text or record.getMessage()
        self.event.set()


def test_a_failed_start_of_a_child_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = sys.executable
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))  # as if the system could create no process

    async def scenario() -> str:
        first = FirstRecord()
        logging.getLogger("smspulse.processes.supervisor").addHandler(first)
        supervisor = ProcessSupervisor(lambda name, level, text: None)
        child = broker(tmp_path / "data")
        await supervisor.start(child)
        await asyncio.wait_for(first.event.wait(), PATIENCE_S)
        logging.getLogger("smspulse.processes.supervisor").removeHandler(first)
        monkeypatch.setattr("sys.executable", python)
        await supervisor.wait_until_ready(child)
        await supervisor.stop()
        return first.text

    assert "broker could not be run (FileNotFoundError" in asyncio.run(scenario())


def test_a_wrong_setting_is_reported_at_once_with_the_child_s_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SMSPULSE_BROKER_HEAP_MB", "none")

    async def scenario() -> None:
        supervisor = ProcessSupervisor(lambda name, level, text: None)
        child = broker(tmp_path)
        await supervisor.start(child)
        with pytest.raises(SupervisorError, match=r"^broker cannot start: BrokerSettings, heap_mb: "):
            await supervisor.wait_until_ready(child)
        await supervisor.stop()

    asyncio.run(scenario())
    assert "it is restarted" not in caplog.text
