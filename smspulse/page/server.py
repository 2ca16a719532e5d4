"""Serves the live page: `/`, its changing part `/content`, its two files, and `/metrics`."""

import asyncio
import base64
import hmac
import ipaddress
import logging
import signal
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, ProcessCollector, generate_latest
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.background import keep_running
from gateway.errors import SmspulseError
from ingest.listening import listen
from smspulse.endpoints import announce
from smspulse.page.metrics import REGISTRY
from smspulse.page.numbers import Choice, Numbers
from smspulse.page.render import content, page
from smspulse.processes import base_url

_log = logging.getLogger(__name__)

_REST: Final = 10
"""Reading takes one part in so many of the time at most."""
_LARGEST: Final = 2**63
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class PageError(SmspulseError):
    """The page cannot be served. The text says why, and what to do."""


class NoPasswordError(PageError):
    """Others than this machine would reach the page, and there is no password."""

    is_permanent = True


class PageSettings(BaseSettings):
    """Environment: `SMSPULSE_PAGE_` and the field's name in capitals."""

    model_config = SettingsConfigDict(env_prefix="SMSPULSE_PAGE_", frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8081, ge=0, le=65535, description="Port; 0 is any free one.")
    password: SecretStr = Field(
        SecretStr(""), description="Asked of everybody, with any user name; needed unless the address is loopback."
    )
    refresh_s: float = Field(5, gt=0, description="Seconds between two readings of the warehouse, at least.")


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def build(numbers: Numbers, settings: PageSettings) -> web.Application:
    """Return the application.

    Raises:
        NoPasswordError: Others than this machine would reach it, and there is no password.
    """
    password = settings.password.get_secret_value().encode()
    if not password and not is_loopback(settings.host):
        msg = f"the page on {settings.host} needs a password: set SMSPULSE_PAGE_PASSWORD, or listen on 127.0.0.1"
        raise NoPasswordError(msg)

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if password:
            if not hmac.compare_digest(_password(request), password):
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="smspulse", charset="UTF-8"'})
        elif not is_loopback(request.url.host or ""):
            # A name of somebody else that leads here: a page of theirs could read ours.
            return web.Response(status=403, text="open this page as http://127.0.0.1 or localhost\n")
        response = await handler(request)
        response.headers.update(_HEADERS)
        return response

    async def whole(request: web.Request) -> web.Response:
        text = await asyncio.to_thread(page, numbers, _choice(request), settings.refresh_s)
        return web.Response(text=text, content_type="text/html")

    async def part(request: web.Request) -> web.Response:
        return web.Response(text=await asyncio.to_thread(content, numbers, _choice(request)), content_type="text/html")

    async def told(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(REGISTRY), headers={hdrs.CONTENT_TYPE: CONTENT_TYPE_PLAIN_0_0_4})

    app = web.Application(middlewares=[guard])
    app.add_routes([web.get("/", whole), web.get("/content", part), web.get("/metrics", told)])
    for name, kind in (("page.css", "text/css"), ("page.js", "text/javascript")):
        app.router.add_get(f"/{name}", _file(name, kind))
    return app


def _file(name: str, kind: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    text = files("smspulse.page").joinpath(name).read_text("utf-8")

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text, content_type=kind)

    return answer


def _choice(request: web.Request) -> Choice:
    device = request.query.get("device", "")
    number = int(device) if device.isascii() and device.isdecimal() and len(device) < len(str(_LARGEST)) else None
    return Choice(request.query.get("source", ""), number)


def _password(request: web.Request) -> bytes:
    scheme, _, credentials = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    try:
        return base64.b64decode(credentials).partition(b":")[2] if scheme.lower() == "basic" else b""
    except ValueError:
        return b""


async def serve(
    numbers: Numbers, settings: PageSettings, stop: asyncio.Event, ready: Callable[[str, int], None]
) -> None:
    """Serve the page until `stop` is set. `ready` is called with host and port once it has numbers.

    Raises:
        PageError: It may not, or cannot, listen there.
    """
    runner = web.AppRunner(build(numbers, settings), access_log=None)
    await runner.setup()
    took = await asyncio.to_thread(numbers.refresh)
    reading = asyncio.create_task(
        keep_running("the reader of the page's numbers", lambda: _read(numbers, settings.refresh_s, took))
    )
    try:
        try:
            _, port = await listen(runner, settings.host, settings.port)
        except OSError as error:
            msg = f"the page cannot listen on {settings.host}:{settings.port} ({error.strerror}): choose another --port"
            raise PageError(msg) from error
        ready(settings.host, port)
        await stop.wait()
    finally:
        reading.cancel()
        await runner.cleanup()


async def _read(numbers: Numbers, least_s: float, took: float) -> None:
    while True:
        await asyncio.sleep(max(least_s, took * _REST))
        took = await asyncio.to_thread(numbers.refresh)


def run(data: Path, numbers: Numbers, settings: PageSettings, ready: Callable[[str], None]) -> None:
    """Serve the page until SIGTERM or SIGINT. `ready` is called with its URL.

    Raises:
        PageError: As `serve`.
    """

    def announced(host: str, port: int) -> None:
        announce(data, "page", port, host)
        ready(base_url(host, port))

    async def until_signalled() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(numbers, settings, stop, announced)

    ProcessCollector(registry=REGISTRY)
    asyncio.run(until_signalled())
