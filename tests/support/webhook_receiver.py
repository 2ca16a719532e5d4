"""A small HTTP server that accepts webhooks as ingest does, and can fail on demand."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple
from uuid import uuid4

from aiohttp import web

Answer = Literal["accept", "busy", "drop", "store_and_drop", "unauthorized", "too_large"]


class Receipt(NamedTuple):
    received_at: int
    ingest_id: str
    body: bytes
    content_type: str
    answered: bool


class Receiver:
    """A receiver of webhooks. `answer` returns the answer for the number and body of a request."""

    def __init__(self) -> None:
        self.url = ""
        self.requests = 0
        self.receipts: list[Receipt] = []
        self.retry_after = "0.01"
        self.success_status = 202
        self.answer: Callable[[int, bytes], Answer] = lambda _, __: "accept"

    async def handle(self, request: web.Request) -> web.Response:
        body = await request.read()
        answer = self.answer(self.requests, body)
        self.requests += 1
        if answer == "busy":
            return web.Response(status=503, headers={"Retry-After": self.retry_after})
        if answer == "unauthorized":
            return web.Response(status=401)
        if answer == "too_large":
            return web.Response(status=413)
        receipt = Receipt(
            time.time_ns() // 1_000_000, str(uuid4()), body, request.headers["Content-Type"], answer == "accept"
        )
        if answer != "drop":
            self.receipts.append(receipt)
        if answer != "accept":
            assert request.transport is not None
            request.transport.close()
        return web.json_response({"ingest_id": receipt.ingest_id}, status=self.success_status)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/webhooks/{source}/{token}", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    receiver.url = f"http://{host}:{port}/webhooks/acme/secret-token"
    try:
        yield receiver
    finally:
        await runner.cleanup()
