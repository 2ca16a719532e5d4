"""The server of the live page: `/`, its changing part `/content`, its two files, and `/metrics`."""

import asyncio
import ipaddress
from collections.abc import Callable
from importlib.resources import files
from math import ceil
from pathlib import Path
from typing import Final

from aiohttp import hdrs, web
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, ProcessCollector, generate_latest

from core.background_tasks import keep_running
from core.memory import return_large_blocks_at_once
from ingest.client_limits import ClientFilter, HttpLimits
from ingest.http_connection import LINGER_S, HttpServer
from ingest.listening import ASYNCIO_BACKLOG, start_listening
from smspulse.dashboard.errors import NoPasswordError, PageError
from smspulse.dashboard.login import PasswordGuard
from smspulse.dashboard.metrics import REGISTRY
from smspulse.dashboard.queries import PageFilter, PageSnapshot
from smspulse.dashboard.rendering import render_content, render_page
from smspulse.dashboard.settings import PageSettings
from smspulse.processes.children import build_server_url, make_stop_event
from smspulse.processes.metrics_endpoint import announce_endpoint

# Reading the warehouse takes at most one part in so many of the time.
_MAX_REFRESH_PART: Final = 10
# DuckDB's BIGINT ends here.
_MAX_DEVICE_ID: Final = 2**63
_CONNECTIONS_ADVICE: Final = (
    "if they are people, raise the limit of open files, or name their proxy in SMSPULSE_PAGE_TRUSTED_PROXIES"
)
# The page loads only its own files. Other pages cannot embed it, and no cache keeps it.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
# Read once: they do not change while the process runs, and a request must not read files.
_STYLES, _SCRIPT = (files("smspulse.dashboard").joinpath(name).read_text("utf-8") for name in ("page.css", "page.js"))


def is_loopback_host(host: str) -> bool:
    """Return whether only this machine reaches a host."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class PageRequestHandler:
    """Request handler of the page.

    Args:
        snapshot: Data of the page.
        settings: Settings of the page.

    Raises:
        NoPasswordError: Other machines would reach the page without a password.
    """

    def __init__(self, snapshot: PageSnapshot, settings: PageSettings) -> None:
        password = settings.password.get_secret_value()
        if not password and not is_loopback_host(settings.host):
            msg = f"the page on {settings.host} needs a password: set SMSPULSE_PAGE_PASSWORD, or listen on 127.0.0.1"
            raise NoPasswordError(msg)
        self._snapshot, self._settings = snapshot, settings
        self._password_guard = PasswordGuard(password)
        self._senders = ClientFilter((), settings.trusted_proxies)

    def build_server(self) -> web.Server:
        """Return an HTTP server with this handler; the caller gives it an address."""
        limits = HttpLimits(proxies=self._settings.trusted_proxies, advice=_CONNECTIONS_ADVICE)
        return HttpServer(self.handle_request, limits, "the page", answer_headers=_HEADERS)

    async def handle_request(self, request: web.BaseRequest) -> web.Response:
        """Answer one request."""
        if (refusal := self._refuse_access(request)) is not None:
            return refusal
        if request.method not in {"GET", "HEAD"}:
            return _plain_text_answer(405, "the page answers GET and HEAD", Allow="GET, HEAD")
        snapshot, kind = self._snapshot, "text/html"
        match request.path:
            case "/":
                page_filter, every_s = _requested_filter(request), self._settings.refresh_s
                text = await asyncio.to_thread(render_page, snapshot, page_filter, every_s)
            case "/content":
                text = await asyncio.to_thread(render_content, snapshot, _requested_filter(request))
            case "/page.css":
                text, kind = _STYLES, "text/css"
            case "/page.js":
                text, kind = _SCRIPT, "text/javascript"
            case "/metrics":
                headers = {hdrs.CONTENT_TYPE: CONTENT_TYPE_PLAIN_0_0_4}
                return web.Response(body=generate_latest(REGISTRY), headers=headers)
            case _:
                return _plain_text_answer(404, "nothing is here: the page is at /")
        return web.Response(text=text, content_type=kind)

    def _refuse_access(self, request: web.BaseRequest) -> web.Response | None:
        """Return the answer to an unauthorized request, or None."""
        # Without a password, only this machine may see the page.
        if not self._settings.password.get_secret_value():
            if is_loopback_host(_requested_host(request)):
                return None
            # A foreign host name that resolves to this machine: a page of that host could read this one.
            return _plain_text_answer(403, "open this page as http://127.0.0.1 or localhost")
        address = self._senders.find_sender(request.remote or "", request.headers.getall(hdrs.X_FORWARDED_FOR, ()))
        if wait := ceil(self._password_guard.wait_s(address)):
            why = f"too many wrong passwords from your address: try again in {wait} s"
            return _plain_text_answer(429, why, Retry_After=str(wait))
        if self._password_guard.is_authorized(request.headers.get(hdrs.AUTHORIZATION, ""), address):
            return None
        return _plain_text_answer(
            401, "the page has a password", WWW_Authenticate='Basic realm="smspulse", charset="UTF-8"'
        )


def _requested_host(request: web.BaseRequest) -> str:
    """Return the host of a request; empty without a valid one."""
    try:
        return request.url.host or ""
    except ValueError:
        return ""


def _plain_text_answer(status: int, text: str, **headers: str) -> web.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return web.Response(status=status, text=f"{text}\n", headers=named)


def _requested_filter(request: web.BaseRequest) -> PageFilter:
    device = request.query.get("device", "")
    number = int(device) if device.isascii() and device.isdecimal() and len(device) < len(str(_MAX_DEVICE_ID)) else None
    return PageFilter(request.query.get("source", ""), number)


async def serve_page(
    snapshot: PageSnapshot, settings: PageSettings, stop: asyncio.Event, ready: Callable[[str, int], None]
) -> None:
    """Serve the page until `stop` is set. `ready` is called with host and port after the first refresh.

    Raises:
        PageError: The page may not, or cannot, listen there.
    """
    runner = web.ServerRunner(PageRequestHandler(snapshot, settings).build_server(), shutdown_timeout=LINGER_S)
    await runner.setup()
    # Before it listens, so that the first answer has numbers.
    took = await asyncio.to_thread(snapshot.refresh)
    reading = asyncio.create_task(
        keep_running("the reader of the page's numbers", lambda: _refresh_forever(snapshot, settings.refresh_s, took))
    )
    try:
        try:
            port = await start_listening(runner, settings.host, settings.port, backlog=ASYNCIO_BACKLOG)
        except OSError as error:
            msg = f"the page cannot listen on {settings.host}:{settings.port} ({error.strerror}): choose another --port"
            raise PageError(msg) from error
        ready(settings.host, port)
        await stop.wait()
    finally:
        reading.cancel()
        await runner.cleanup()


async def _refresh_forever(snapshot: PageSnapshot, least_s: float, took: float) -> None:
    while True:
        # A slow warehouse is read less often.
        await asyncio.sleep(max(least_s, took * _MAX_REFRESH_PART))
        took = await asyncio.to_thread(snapshot.refresh)


def run_page(data: Path, snapshot: PageSnapshot, settings: PageSettings, ready: Callable[[str], None]) -> None:
    """Serve the page until SIGTERM or SIGINT. `ready` is called with its URL.

    Raises:
        PageError: As `serve_page`.
    """

    def on_listening(host: str, port: int) -> None:
        announce_endpoint(data, "page", port, host)
        ready(build_server_url(host, port))

    async def serve_until_signal() -> None:
        await serve_page(snapshot, settings, make_stop_event(), on_listening)

    return_large_blocks_at_once()
    ProcessCollector(registry=REGISTRY)
    asyncio.run(serve_until_signal())
