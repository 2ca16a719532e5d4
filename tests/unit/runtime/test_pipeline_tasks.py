"""Tasks behind `smspulse up`: one that fails starts again, and one on which all depends ends the pipeline."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from failing_once import FailingOnce

from core import background_tasks
from smspulse.broker.lockfile import BrokerFile
from smspulse.dashboard.settings import PageSettings
from smspulse.processes.terminal import make_console
from smspulse.runtime import pipeline
from smspulse.runtime.errors import PipelineError
from smspulse.runtime.pipeline import PipelineOptions

PATIENCE_S = 20
WATCH_BROKER = pipeline._watch_broker


async def started(*_: object) -> str:
    """Stand for the start of the pipeline's processes."""
    return "http://127.0.0.1:8080"


async def nothing_to_do(*_: object) -> None:
    """Stand for a task that has nothing to do."""


async def run_up(data: Path) -> int:
    options = PipelineOptions(data, "memory", 0, 1, (), PageSettings(port=0), demo=False, seconds=None)
    return await pipeline.run_pipeline(options, make_console(quiet=True))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a pipeline whose processes are said to have started, and whose tasks do nothing."""
    monkeypatch.setattr(pipeline, "_start_processes", started)
    for task in ("_watch_broker", "check_periodically", "run_maintenance"):
        monkeypatch.setattr(pipeline, task, nothing_to_do)
    monkeypatch.setattr(background_tasks, "_FIRST_PAUSE_S", 0)
    return tmp_path


@pytest.mark.parametrize(
    ("task", "name"),
    [("check_periodically", "the regular check"), ("run_maintenance", "the upkeep")],
    ids=["check", "upkeep"],
)
async def test_a_task_that_fails_is_logged_and_starts_again(
    data: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, task: str, name: str
) -> None:
    work = FailingOnce()
    monkeypatch.setattr(pipeline, task, work)
    running = asyncio.create_task(run_up(data))
    again = asyncio.create_task(work.started_again.wait())
    try:
        await asyncio.wait({running, again}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        assert again.done(), f"{name} did not start again"
        assert not running.done()
    finally:
        again.cancel()
        if not running.done():
            os.kill(os.getpid(), signal.SIGTERM)
        code = await running
    assert code == 0
    assert f"{name} failed and starts again in 0 s: RuntimeError('an unforeseen error')" in caplog.messages


async def test_a_watch_of_the_broker_that_fails_ends_the_pipeline_with_its_error(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        msg = "an unforeseen error"
        raise RuntimeError(msg)

    monkeypatch.setattr(pipeline, "_watch_broker", fail)
    with pytest.raises(RuntimeError, match="an unforeseen error"):
        await asyncio.wait_for(run_up(data), PATIENCE_S)


@pytest.mark.parametrize(
    ("back", "what"),
    [
        (BrokerFile("127.0.0.1:2", "memory", 1, "first"), "at 127.0.0.1:2, not at 127.0.0.1:1"),
        (BrokerFile("127.0.0.1:1", "memory", 1, "second"), "empty"),
    ],
    ids=["elsewhere", "empty"],
)
async def test_a_broker_that_comes_back_as_another_one_ends_the_pipeline(
    data: Path, monkeypatch: pytest.MonkeyPatch, back: BrokerFile, what: str
) -> None:
    # Once a second.
    found = iter([BrokerFile("127.0.0.1:1", "memory", 1, "first"), None, back])
    monkeypatch.setattr(pipeline, "read_broker_file", lambda _: next(found))
    monkeypatch.setattr(pipeline, "_watch_broker", WATCH_BROKER)
    with pytest.raises(PipelineError, match=f"the broker came back {what}; all was stopped, start again"):
        await asyncio.wait_for(run_up(data), PATIENCE_S)
