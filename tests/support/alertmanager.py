"""A real Alertmanager with the routes of the example, and a receiver of notifications."""

import asyncio
import json
import subprocess
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from smspulse.processes.children import die_with_parent, find_free_port

EXAMPLE = Path(__file__).parents[2] / "examples" / "alertmanager.yml"
WITHIN_S = 120


class Receiver:
    """An HTTP server that stores requests. It sends the next of `answers`, or 200."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[tuple[str, dict[str, str], bytes]] = asyncio.Queue()
        self.answers: list[web.Response] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        await self.requests.put((request.path, dict(request.headers), await request.read()))
        return self.answers.pop(0) if self.answers else web.Response()

    async def next(self, within_s: float = 120) -> Any:
        """Return the JSON of the next request."""
        _, _, body = await asyncio.wait_for(self.requests.get(), within_s)
        return json.loads(body)


def unsilenced(_: float) -> frozenset[str]:
    """Stand for silences of which there are none."""
    return frozenset()


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    """Run a receiver."""
    made, app = Receiver(), web.Application()
    app.router.add_route("*", "/{path:.*}", made.handle)
    async with TestServer(app) as server:
        made.url = str(server.make_url("/")).rstrip("/")
        yield made


def configured(folder: Path, receiver: str, wait: str, interval: str) -> Path:
    """Write the example with another receiver and other intervals; return the file.

    Args:
        folder: Folder of the file.
        receiver: URL that receives notifications.
        wait: Time before the first notification of a group.
        interval: Time between two notifications of a group.
    """
    text = EXAMPLE.read_text()
    for is_, becomes in (
        ("http://127.0.0.1:8099/", receiver),
        ("group_wait: 10s", f"group_wait: {wait}"),
        ("group_interval: 1m", f"group_interval: {interval}"),
    ):
        assert text.count(is_) == 1, f"the example has no {is_!r} any more"
        text = text.replace(is_, becomes)
    path = folder / "alertmanager.yml"
    path.write_text(text)
    return path


@contextmanager
def alertmanager(program: str, config: Path, port: int = 0) -> Iterator[str]:
    """Run an Alertmanager with its data next to its configuration; yield its URL."""
    port = port or find_free_port()
    log = config.with_suffix(".log")
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={config}",
                f"--storage.path={config.parent / 'alertmanager'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - made to be safe there
        )
    url = f"http://127.0.0.1:{port}"
    try:
        while not _is_ready(url):
            if process.poll() is not None:
                raise AssertionError(log.read_text())
            time.sleep(0.05)  # no event is available across processes
        yield url
    finally:
        process.terminate()
        process.wait(60)


def _is_ready(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/-/ready", timeout=1).close()  # noqa: S310 - loopback
    except OSError:
        return False
    return True


async def alerts(url: str, is_so: Callable[[list[Any]], Any]) -> list[Any]:
    """Wait until the alerts of an Alertmanager fulfil a condition, and return them."""
    deadline = time.monotonic() + WITHIN_S
    found: list[Any] = []
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < deadline:
            async with session.get(f"{url}/api/v2/alerts") as answer:
                found = await answer.json()
            if is_so(found):
                return found
            await asyncio.sleep(0.1)  # no event is available across processes
    raise AssertionError([(each["labels"], each["status"]) for each in found])
