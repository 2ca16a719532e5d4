"""Maintenance runs on a timer, and continues after a failed run."""

import asyncio
import logging
from pathlib import Path

import pytest

from smspulse.processes.supervisor import ChildProcess, ProcessSupervisor
from smspulse.runtime.maintenance import run_maintenance


def test_each_command_runs_after_each_wait_also_after_failures(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []
    codes = iter([0, 1, 2, -9])

    async def run(command: str) -> int:
        done.append(command)
        if (code := next(codes, None)) is None:
            message = "no more processes"
            raise OSError(message)
        return code

    async def wait(seconds: float) -> None:
        if len(done) == 8:
            raise asyncio.CancelledError
        done.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", wait)
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        asyncio.run(run_maintenance(30, run))
    assert done == [1800, "rebuild", "compact", "retain"] * 2
    failed = [message.split()[0] for message in caplog.messages if "failed" in message]
    assert failed == ["retain", "rebuild", "compact", "retain"]
    assert "compact: no more processes" in caplog.messages


def test_without_an_interval_nothing_runs() -> None:
    asyncio.run(run_maintenance(0, None))  # type: ignore[arg-type]


def test_a_running_command_is_stopped_with_the_others(tmp_path: Path) -> None:
    lines: list[str] = []

    async def scenario() -> int | None:
        spoken = asyncio.Event()

        def show(name: str, level: int, text: str) -> None:
            lines.append(text)
            spoken.set()

        supervisor = ProcessSupervisor(show)
        assert await supervisor.run(ChildProcess("version", ("--version",), 1)) == 0
        spoken.clear()
        child = ChildProcess("broker", ("broker", "--mode", "memory", "--data", str(tmp_path)), 10)
        waiting = asyncio.create_task(supervisor.run(child))
        await asyncio.wait_for(spoken.wait(), 60)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await supervisor.stop()
        return child.process.returncode if child.process else None

    assert asyncio.run(scenario()) == 0
    assert "smspulse, version" in lines[0]
