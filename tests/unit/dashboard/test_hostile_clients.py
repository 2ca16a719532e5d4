"""The page and the endpoints for metrics in front of hostile clients: as protected as ingest."""

import asyncio
import contextlib
import itertools
import json
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from http_attacks import BY_ANYONE, ask, attack, rss_mb, wait_until_served
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from smspulse.dashboard.queries import PageSnapshot
from smspulse.dashboard.server import PageRequestHandler
from smspulse.dashboard.settings import PageSettings
from smspulse.processes import metrics_endpoint
from smspulse.processes.children import find_free_port, raise_file_limit

LIMIT_FILES = """
import asyncio, resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))
from smspulse.processes import log_setup
log_setup.set_up_logging(verbose=False, supervised=True)
data, port = Path(sys.argv[1]), int(sys.argv[2])
"""
PAGE = """
from smspulse.dashboard.queries import PageSnapshot
from smspulse.dashboard.server import serve_page
from smspulse.dashboard.settings import PageSettings
numbers = PageSnapshot(data, lambda: {"processes": [], "lag": None})
asyncio.run(serve_page(numbers, PageSettings(port=port), asyncio.Event(), lambda host, port: None))
"""
METRICS = """
import os, threading
from prometheus_client import CollectorRegistry
from smspulse.processes.metrics_endpoint import serve_metrics
os.environ["SMSPULSE_METRICS_PORT"] = str(port)
serve_metrics(data, "test", CollectorRegistry())
threading.Event().wait()
"""
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"


@contextmanager
def process(program: str, data: Path) -> Iterator[tuple[int, int, Path]]:
    """Run a program that may open 1,024 files; give its process, port and log."""
    port, log = find_free_port(), data / "log"
    with log.open("wb") as output:
        running = subprocess.Popen([sys.executable, "-c", LIMIT_FILES + program, str(data), str(port)], stderr=output)
    try:
        wait_until_served(running, port)
        yield running.pid, port, log
    finally:
        running.terminate()
        running.wait()


@pytest.mark.parametrize(
    ("program", "addresses"), [(PAGE, 1), (PAGE, 200), (METRICS, 1)], ids=["page", "page-addresses", "metrics"]
)
async def test_more_halves_of_requests_than_open_files_hang_nothing_and_fill_no_log(
    tmp_path: Path, program: str, addresses: int
) -> None:
    assert raise_file_limit() > 2_000
    with process(program, tmp_path) as (pid, port, log):
        before = rss_mb(pid)

        async def half(number: int) -> None:
            address = f"127.0.1.{number % addresses}"
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
                halves.append(writer)
                writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
                await reader.read()

        halves: list[asyncio.StreamWriter] = []
        closed = [asyncio.create_task(half(number)) for number in range(1_100)]
        async with asyncio.timeout(60):
            # So many are closed at once: those over the limit.
            for ended in itertools.islice(asyncio.as_completed(closed), 500):
                await ended
        begun = time.monotonic()
        if addresses == 1:
            waited, problem = await ask(port, REQUEST, b" 200 ")
            assert problem == ""
        else:
            # A well-meaning client looks the same. But each half is closed when it is late.
            async with asyncio.timeout(120):
                while (await ask(port, REQUEST, b" 200 "))[1]:  # noqa: ASYNC110 - no event is there
                    await asyncio.sleep(0.1)
            waited = time.monotonic() - begun
        print(  # noqa: T201
            f"{addresses} addresses: {before:.0f} MB before, {rss_mb(pid):.0f} MB after; "
            f"another client waited {waited * 1e3:.0f} ms; {log.stat().st_size} bytes of log"
        )
        assert log.stat().st_size < 20_000
        for writer in halves:
            writer.transport.abort()
        await asyncio.wait(closed)


async def test_an_attack_from_one_address_costs_the_page_little_memory_and_others_no_answer(tmp_path: Path) -> None:
    with process(PAGE, tmp_path) as (pid, port, log):
        before = rss_mb(pid)
        measured = await attack(pid, port, BY_ANYONE, 2, bystander=(REQUEST, b" 200 "))
        print(f"{before:.0f} MB before; {measured}; {log.stat().st_size} bytes of log")  # noqa: T201
        assert measured.rss_mb < before + 200
        assert measured.failures == []
        assert log.stat().st_size < 20_000


@asynccontextmanager
async def page(tmp_path: Path, **settings: object) -> AsyncIterator[int]:
    served = PageRequestHandler(PageSnapshot(tmp_path, dict), PageSettings.model_validate(settings))
    runner = web.ServerRunner(served.build_server(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield site.port
    finally:
        await runner.cleanup()


@pytest.mark.parametrize("password", ["", "secret"])
async def test_every_answer_of_the_page_has_the_security_headers_and_no_version(tmp_path: Path, password: str) -> None:
    login = {"Authorization": aiohttp.encode_basic_auth("me", "secret")}
    seen = set()
    async with page(tmp_path, password=password) as port, aiohttp.ClientSession(f"http://127.0.0.1:{port}") as http:
        for method, path, headers in (
            ("GET", "/", login),
            ("GET", "/page.css", login),
            ("GET", "/nothing", login),
            ("POST", "/", login),
            ("GET", "/", {}),
            ("GET", "/", {"Host": "evil.example"}),
            ("GET", "/", {"Host": "[", **login}),
            ("GET", "/", login | {"X": "x" * 9_000}),
            ("GET", "/", login | {f"X{number}": "x" * 5_000 for number in range(9)}),
            *[("GET", "/", {"Authorization": "Basic wrong"})] * 7,
        ):
            async with http.request(method, path, headers=headers) as answer:
                seen.add(answer.status)
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'none';"), answer.status
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Cache-Control"] == "no-store"
                assert "Server" not in answer.headers
    assert seen == {200, 400, 404, 405, 431} | ({401, 429} if password else {403})


async def test_the_page_slows_who_guesses_its_password_and_nobody_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)

    async def get(address: str, password: str, forwarded: str = "") -> tuple[int, str]:
        connector = aiohttp.TCPConnector(local_addr=(address, 0))
        headers = {"Authorization": aiohttp.encode_basic_auth("me", password), "X-Forwarded-For": forwarded}
        async with (
            aiohttp.ClientSession(connector=connector) as http,
            http.get(f"http://127.0.0.1:{port}/page.css", headers=headers) as answer,
        ):
            return answer.status, answer.headers.get("Retry-After", "")

    async with page(tmp_path, password="secret", trusted_proxies="127.0.0.3") as port:  # noqa: S106
        guesses = [await get("127.0.0.2", f"guess{number}") for number in range(50)]
        assert [status for status, _ in guesses] == [401] * 5 + [429] * 45
        assert 1 <= int(guesses[-1][1]) <= 10
        assert (await get("127.0.0.2", "secret"))[0] == 429
        assert (await get("127.0.0.1", "secret"))[0] == 200
        # Of a proxy each client counts for itself, and nobody else is believed.
        assert [(await get("127.0.0.3", "wrong", "192.0.2.1"))[0] for _ in range(6)] == [401] * 5 + [429]
        assert (await get("127.0.0.3", "secret", "192.0.2.2"))[0] == 200
        assert (await get("127.0.0.2", "secret", "192.0.2.2"))[0] == 429
    assert "a wrong password for the page came from 127.0.0.2" in caplog.text
    assert "guess" not in caplog.text


def test_metrics_are_served_in_both_formats_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = CollectorRegistry()
    Counter("things", "Things.", registry=registry).inc(3)
    metrics_endpoint.serve_metrics(tmp_path, "test", registry)
    (endpoint,) = metrics_endpoint.list_endpoints(tmp_path)
    assert "things_total 3.0" in (endpoint.read_metrics() or "")

    async def ask_for_others() -> None:
        base = f"http://127.0.0.1:{endpoint.port}"
        accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
        async with aiohttp.ClientSession(base) as http:
            async with http.get("/metrics", headers=accept) as answer:
                assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
                assert "things" in {family.name for family in text_string_to_metric_families(await answer.text())}
            for method, path, status in (("GET", "/", 404), ("POST", "/metrics", 405), ("HEAD", "/metrics", 200)):
                async with http.request(method, path) as answer:
                    assert answer.status == status
                    assert "Server" not in answer.headers

    asyncio.run(ask_for_others())
    monkeypatch.setenv("SMSPULSE_METRICS_PORT", str(endpoint.port))
    with pytest.raises(metrics_endpoint.MetricsPortError, match="choose another SMSPULSE_METRICS_PORT"):
        metrics_endpoint.serve_metrics(tmp_path, "other", CollectorRegistry())
    assert json.loads((tmp_path / "run" / "test.json").read_bytes())["port"] == endpoint.port
