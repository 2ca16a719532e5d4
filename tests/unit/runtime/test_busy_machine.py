"""Processes of a busy machine count as running, and a reader that fails once reads again."""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.consumer_lag import read_group_lag
from core.kafka_settings import KafkaSettings
from core.topics import RAW
from smspulse.broker.embedded import MemoryBroker
from smspulse.broker.topic_admin import ensure_topics
from smspulse.dashboard.queries import PageSnapshot
from smspulse.dashboard.server import serve_page
from smspulse.dashboard.settings import PageSettings
from smspulse.processes.children import find_free_port
from smspulse.runtime.status import collect_pipeline_status

LATER_S = 2
"""Delay of the broker's answer after the log line about waiting. In total, it takes more than 3 s."""


class LogLine(logging.Handler):
    """Sets an event once a message with a given beginning is logged."""

    def __init__(self, beginning: str) -> None:
        super().__init__()
        self.beginning, self.event = beginning, threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(self.beginning):
            self.event.set()


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Copy all bytes of a socket to another one until either is closed; then shut down both."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serving_late(listener: socket.socket, target: tuple[str, int], when: threading.Event) -> Iterator[None]:
    """Accept every connection, and forward its bytes some time after an event. All threads end at the end.

    The frames of a thread that still waits when the interpreter exits keep all that they refer to, and DuckDB's binding
    reports its types among that as leaked.
    """

    def serve_one(connection: socket.socket) -> None:
        when.wait()
        time.sleep(LATER_S)  # the delay
        with connection, socket.create_connection(target) as behind:
            back = threading.Thread(target=pass_on, args=(behind, connection))
            back.start()
            pass_on(connection, behind)
            back.join()

    def accept_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threads.append(threading.Thread(target=serve_one, args=(connection,)))
                threads[-1].start()

    threads: list[threading.Thread] = []
    accepting = threading.Thread(target=accept_all)
    accepting.start()
    try:
        yield
    finally:
        when.set()
        # Only this ends an `accept` of another thread. Closing the socket does not.
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        for thread in threads:
            thread.join()


def test_a_slow_broker_is_waited_for_with_a_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = LogLine("waiting for Kafka at 127.0.0.1:")
    logger = logging.getLogger("core.consumer_lag")
    logger.addHandler(line)
    with caplog.at_level(logging.INFO), MemoryBroker(tmp_path) as broker, socket.create_server(("", 0)) as listener:
        host, _, port = broker.address.rpartition(":")
        ensure_topics(KafkaSettings(bootstrap=broker.address, in_memory=True))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with serving_late(listener, (host, int(port)), line.event):
            found = collect_pipeline_status(tmp_path, address, find_free_port())
            was_logged = line.event.is_set()
    logger.removeHandler(line)
    assert found["processes"][0] == {"name": "broker", "ok": True, "what": f"at {address}"}
    assert set(found["lag"].values()) == {0}
    assert was_logged, "the answer came only after the line"


def test_a_broker_without_a_listener_is_unreachable_without_a_wait(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        assert read_group_lag(KafkaSettings(bootstrap=f"127.0.0.1:{find_free_port()}"), {"nobody": [RAW]}) is None
    assert caplog.messages == [], "no wait was announced"


def test_the_page_reads_again_after_a_failed_query(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> str:
        stop, readings = asyncio.Event(), 0
        loop = asyncio.get_running_loop()
        while_broken = ""

        def pipeline() -> dict[str, Any]:
            nonlocal readings, while_broken
            readings += 1
            if readings == 2:
                msg = "an unforeseen error"
                raise RuntimeError(msg)
            if readings == 3:
                while_broken = str(numbers.current_values["trouble"])
                loop.call_soon_threadsafe(stop.set)
            return {"processes": [], "lag": None}

        numbers = PageSnapshot(tmp_path, pipeline)
        settings = PageSettings(host="127.0.0.1", port=0, refresh_s=0.01)
        async with asyncio.timeout(120):
            await serve_page(numbers, settings, stop, lambda host, port: None)
        return while_broken

    assert asyncio.run(scenario()) == "the numbers cannot be read: an unforeseen error"
    assert "the reader of the page's numbers failed and starts again in 1 s: RuntimeError(" in caplog.text
