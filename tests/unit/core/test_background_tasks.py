"""Background work does not end unobserved, and is started again."""

import asyncio
import logging
import subprocess
import sys

import pytest

from core.background_tasks import keep_running
from core.errors import SmspulseError


def test_work_that_fails_is_logged_and_starts_again_after_growing_pauses(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcomes = iter([ValueError("no such row"), SmspulseError("the disk is full: free some"), *([OSError()] * 7), None])
    pauses: list[float] = []

    async def work() -> None:
        if (outcome := next(outcomes)) is not None:
            raise outcome

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    with caplog.at_level(logging.ERROR):
        asyncio.run(keep_running("the reader", work))
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    first, second, *_ = caplog.records
    assert first.getMessage() == "the reader failed and starts again in 1 s: ValueError('no such row')"
    assert first.exc_info, "a fault of the program is found by its traceback"
    assert second.getMessage() == "the reader failed and starts again in 2 s: the disk is full: free some"
    assert not second.exc_info


def test_work_that_is_cancelled_ends() -> None:
    async def scenario() -> None:
        task = asyncio.create_task(keep_running("the reader", lambda: asyncio.sleep(3600)))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())


def test_a_thread_that_fails_is_logged_and_ends_its_process() -> None:
    program = """
import logging, threading
from core.background_tasks import end_process_if_a_thread_fails
logging.basicConfig(format="%(levelname)s %(message)s")
end_process_if_a_thread_fails()
threading.Thread(target=lambda: 1 / 0, name="reader").start()
threading.Event().wait()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("CRITICAL the thread reader failed, and the process ends: ZeroDivisionError(")
