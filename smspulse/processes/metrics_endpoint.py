"""The `/metrics` endpoint of each process. The process announces its address in `{data}/run/NAME.json`."""

import asyncio
import http.client
import logging
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from core.atomic_file import write_file_atomically
from ingest.client_limits import HttpLimits
from ingest.http_connection import LINGER_S, HttpServer, error_response
from ingest.listening import ASYNCIO_BACKLOG, start_listening
from ingest.settings import IngestSettings
from smspulse.processes.children import (
    LOOPBACK,
    find_listen_error,
    find_reachable_host,
    is_process_alive,
    raise_file_limit,
)
from smspulse.processes.errors import MetricsPortError
from smspulse.processes.settings import MetricsSettings

_log = logging.getLogger(__name__)

# Name of ingest's endpoint: `find_ingest_endpoint` looks for it.
INGEST: Final = "ingest"
# A refused connection fails at once. An answer on a busy machine takes long.
_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class ProcessEndpoint:
    """The announced endpoint of a process.

    Args:
        name: Name for people, such as `stream-0`.
        pid: Id of the process.
        host, port: Address with which this machine reaches it.
        tls: Whether it answers HTTPS.
    """

    name: str
    pid: int
    host: str
    port: int
    tls: bool = False

    @property
    def is_here(self) -> bool:
        """Whether its host is an address of this machine. Other addresses are never connected to."""
        return find_listen_error(0, self.host) is None

    def read_metrics(self) -> str | None:
        """Return the text of its `/metrics`; None if the process does not answer."""
        if not is_process_alive(self.pid) or not self.is_here:
            return None
        answer = fetch_response(self.host, self.port, "/metrics", tls=self.tls)
        return None if answer is None else answer[1].decode(errors="replace")


def announce_endpoint(data: Path, name: str, port: int, host: str = LOOPBACK, *, tls: bool = False) -> None:
    """Write the endpoint of this process; it replaces that of an earlier process of the same name.

    Only commands such as `status` depend on it, so an error is logged and not raised.

    Args:
        data: The data folder.
        name: Name of the process.
        port: Port of its server.
        host: Address of its server, such as 0.0.0.0.
        tls: Whether it answers HTTPS.
    """
    folder = data / "run"
    endpoint = ProcessEndpoint(name, os.getpid(), find_reachable_host(host), port, tls)
    try:
        write_file_atomically(folder / f"{name}.json", msgspec.json.encode(endpoint))
    except OSError as error:
        _log.warning("`smspulse status` will not find the %s: %s cannot be written: %s", name, folder, error.strerror)


def list_endpoints(data: Path) -> Iterator[ProcessEndpoint]:
    """Yield every announced endpoint in the order of names, whether its process still runs or not.

    A file that no process writes, such as one whose name is not that of its process, is skipped.
    """
    for path in sorted((data / "run").glob("*.json")):
        try:
            endpoint = msgspec.json.decode(path.read_bytes(), type=ProcessEndpoint)
        # A partial file is not valid.
        except (OSError, msgspec.DecodeError):
            continue
        if endpoint.name == path.stem and endpoint.pid > 0 and endpoint.port in range(1, 65_536):
            yield endpoint


def find_ingest_endpoint(data: Path, host: str | None = None, port: int | None = None) -> ProcessEndpoint:
    """Return the endpoint of ingest: the announced one, unless host or port name another one.

    Args:
        data: The data folder.
        host: Address that ingest listens on, if known.
        port: Likewise.
    """
    for endpoint in list_endpoints(data):
        is_other = port not in {None, endpoint.port} or (host and find_reachable_host(host) != endpoint.host)
        if endpoint.name == INGEST and is_process_alive(endpoint.pid) and endpoint.is_here and not is_other:
            return endpoint
    settings = IngestSettings()
    # Process id 0: no process announced this endpoint.
    return ProcessEndpoint(
        INGEST, 0, find_reachable_host(host or settings.host), port or settings.port, settings.tls_cert is not None
    )


def serve_metrics(data: Path | None, name: str, registry: CollectorRegistry) -> None:
    """Answer `/metrics` in a thread as long as the process lives, and announce it if there is a data folder.

    Raises:
        MetricsPortError: The port is taken.
    """
    settings = MetricsSettings()
    ProcessCollector(registry=registry)
    raise_file_limit()
    loop = asyncio.new_event_loop()
    try:
        port = loop.run_until_complete(_start_metrics_server(settings, name, registry))
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        msg = f"/metrics cannot be answered at {where} ({error}): choose another SMSPULSE_METRICS_PORT"
        raise MetricsPortError(msg) from error
    # A daemon: it must not keep the process alive.
    threading.Thread(target=loop.run_forever, name="metrics", daemon=True).start()
    if data is not None:
        announce_endpoint(data, name, port, settings.host)


async def _start_metrics_server(settings: MetricsSettings, name: str, registry: CollectorRegistry) -> int:
    """Answer `/metrics` as long as the event loop runs, and return the port."""

    async def handle_request(request: web.BaseRequest) -> web.StreamResponse:
        if request.path != "/metrics":
            return error_response(404, "nothing is here: this process answers /metrics")
        if request.method not in {"GET", "HEAD"}:
            return error_response(405, "/metrics answers GET and HEAD", Allow="GET, HEAD")
        encode, content_type = choose_encoder(",".join(request.headers.getall(hdrs.ACCEPT, ())))
        return web.Response(body=encode(registry), headers={hdrs.CONTENT_TYPE: content_type})

    runner = web.ServerRunner(HttpServer(handle_request, HttpLimits(), name), shutdown_timeout=LINGER_S)
    await runner.setup()
    return await start_listening(runner, settings.host, settings.port, backlog=ASYNCIO_BACKLOG)


def fetch_response(host: str, port: int, path: str, *, tls: bool = False) -> tuple[int, bytes] | None:
    """Return status and body of a process of this machine; None if it does not answer."""
    connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)
    if tls:
        # The certificate is for the name that gateways use, not for this address. The request has no secret.
        context = ssl._create_unverified_context()  # noqa: S323 - see above
        connection = http.client.HTTPSConnection(host, port, timeout=_TIMEOUT_S, context=context)
    with closing(connection), suppress(OSError, http.client.HTTPException):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    return None
