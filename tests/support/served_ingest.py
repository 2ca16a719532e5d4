"""The HTTP side of ingest on a real socket, with a sink that stores webhooks in a list."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from core.metrics import GaugeFamily
from core.records import WebhookRecord
from ingest import metrics
from ingest.errors import NotStoredError
from ingest.handlers import IngestHandler
from ingest.settings import IngestSettings
from ingest.sources import SourceRegistry

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "webhooks").glob("*.json"))
TOKEN = "a-long-secret-token"  # noqa: S105 - used in tests only
PATH = f"/webhooks/acme/{TOKEN}"
STATUS = b'{"sms_id": 17, "status_id": 7}'


class ListSink:
    """A sink that stores webhooks in a list once its gate is open, and refuses them while it has a problem."""

    def __init__(self) -> None:
        self.kept: list[WebhookRecord] = []
        self.problem: str | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    def read_state(self) -> dict[str, object]:
        return {"kept": len(self.kept)}

    def read_gauges(self) -> dict[GaugeFamily, float]:
        return {metrics.SPOOL_WEBHOOKS: len(self.kept)}

    async def store_webhook(self, webhook: WebhookRecord) -> None:
        if self.problem is not None:
            raise NotStoredError(self.problem)
        self.entered.set()
        await self.gate.wait()
        self.kept.append(webhook)


class Running:
    def __init__(
        self, sink: ListSink, receiver: IngestHandler, server: web.Server, port: int, http: aiohttp.ClientSession
    ) -> None:
        self.sink, self.receiver, self.server, self.port, self.http = sink, receiver, server, port, http

    async def raw(self, text: bytes) -> bytes:
        """Send bytes; return the answer until the connection is closed, or nothing if it is reset."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(text)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(60):
                answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def receiving(tmp_path: Path, **settings: object) -> AsyncIterator[Running]:
    sink = ListSink()
    running_settings = IngestSettings.model_validate(settings)
    receiver = IngestHandler(running_settings, SourceRegistry(tmp_path, f"acme={TOKEN}"), sink)
    server = receiver.build_server()
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{site.port}") as http:
        yield Running(sink, receiver, server, site.port, http)
    await runner.cleanup()


async def error_of(response: aiohttp.ClientResponse) -> str:
    body = await response.json()
    assert list(body) == ["error"]
    assert "\n" not in body["error"]
    return str(body["error"])


async def counter_value(running: Running, name: str, **labels: str) -> float:
    """Return the value of a counter in `/metrics`, 0 if it is missing."""
    text = await (await running.http.get("/metrics")).text()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    return sum(each.value for each in samples if each.name == name and each.labels == labels)
