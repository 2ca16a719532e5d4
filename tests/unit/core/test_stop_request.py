"""A stop can be requested at any moment, also by a signal that arrives while a thread waits for the request."""

import subprocess
import sys
import threading

import pytest

from core.stop_request import StopRequest, StopRequested, run_until_stopped


def test_each_thread_that_waits_sees_the_request() -> None:
    stop, seen = StopRequest(), []
    threads = [threading.Thread(target=lambda: seen.append(stop.wait(60))) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert not stop.wait(0.001)
    stop.set()
    stop.set()
    for thread in threads:
        thread.join(60)
    assert seen == [True] * 3
    assert stop.is_set()
    assert stop.wait(60), "at once"


SIGNALLED_AT_EACH_LINE = """
import os, signal, sys
from core.stop_request import StopRequest

def wait_with_signal(at):
    stop, lines = StopRequest(), 0

    def trace(frame, event, argument):
        nonlocal lines
        if event == "line":
            lines += 1
            if lines == at:
                os.kill(os.getpid(), signal.SIGUSR1)
        return trace

    signal.signal(signal.SIGUSR1, lambda *_: stop.set())
    sys.settrace(trace)
    stop.wait(0.2)
    sys.settrace(None)
    return lines >= at

at = 1
while wait_with_signal(at):
    at += 1
print(at)
"""


def test_a_signal_handler_may_make_the_request_at_every_line_of_a_wait() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED_AT_EACH_LINE], capture_output=True, text=True, check=True, timeout=120
    )
    assert int(done.stdout) > 3


def test_work_returns_its_result_or_raises_its_error() -> None:
    stop = StopRequest()
    assert run_until_stopped(lambda: threading.current_thread() is threading.main_thread(), stop) is False

    def fail() -> None:
        raise TimeoutError("of the work")  # noqa: EM101

    with pytest.raises(TimeoutError, match="of the work"):
        run_until_stopped(fail, stop)


def test_work_is_left_when_a_stop_is_requested() -> None:
    stop, never = StopRequest(), threading.Event()
    threading.Timer(0.05, stop.set).start()
    with pytest.raises(StopRequested):
        run_until_stopped(never.wait, stop)
    with pytest.raises(StopRequested):
        run_until_stopped(never.wait, stop)
    never.set()
