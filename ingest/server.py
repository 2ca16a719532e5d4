"""The ingest process: it listens, stores and forwards until it is stopped."""

import asyncio
import errno
import gc
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import uvloop
from aiohttp import web

from core.background_tasks import keep_running
from core.kafka_settings import KafkaSettings
from ingest.errors import PORT_TAKEN, CannotListenError
from ingest.handlers import IngestHandler
from ingest.http_connection import LINGER_S
from ingest.listening import load_tls_context, renew_certificate, start_listening
from ingest.settings import IngestSettings
from ingest.sink import StoreAndForward
from ingest.sources import SourceRegistry

log = logging.getLogger(__name__)

# Seconds for Kafka's acknowledgements when ingest stops. Then the remaining webhooks go to the spool.
_ACKS_ON_STOP_S: Final = 0.5


async def serve_ingest(
    settings: IngestSettings, kafka: KafkaSettings, data: Path, ready: Callable[[str], None], stop: asyncio.Event
) -> None:
    """Receive webhooks until `stop` is set; then finish those in flight.

    Listens at once, with or without Kafka.

    Args:
        settings: Settings of ingest.
        kafka: Settings of the Kafka clients.
        data: The data folder, for sources, spool and receipts.
        ready: Called with the base URL, such as `http://127.0.0.1:8080`, once the server listens on it.
        stop: Ends the service.

    Raises:
        CannotListenError: The address is taken or not available.
        SourcesError: The sources cannot be read.
        SettingError: A TLS file for Kafka cannot be read, or the certificate or its key cannot be used.
        SpoolError: The spool cannot be opened.
    """
    context = load_tls_context(settings)
    sources = SourceRegistry(data, settings.sources.get_secret_value())
    sink = StoreAndForward(kafka, data, settings)
    handler = IngestHandler(settings, sources, sink)
    async with sink.run_in_background() as storing:
        runner = web.ServerRunner(handler.build_server(context), shutdown_timeout=LINGER_S)
        await runner.setup()
        try:
            port = await _listen(runner, settings)
            if not sources.table:
                log.warning("no source may send yet: add one with `smspulse source add NAME`")
            host = f"[{settings.host}]" if ":" in settings.host else settings.host
            ready(f"{'https' if context else 'http'}://{host}:{port}")
            # It ends early only after an unexpected error, which is raised at the end.
            storing.add_done_callback(lambda _: stop.set())
            renewing = asyncio.create_task(
                keep_running("the renewal of the certificate", lambda: renew_certificate(context, settings))
            )
            await stop.wait()
            renewing.cancel()
            for site in runner.sites:
                await site.stop()
            # The webhooks in flight finish. After a moment, the spool takes them.
            asyncio.get_running_loop().call_later(_ACKS_ON_STOP_S, sink.switch_to_spool_permanently)
            drained = asyncio.create_task(handler.wait_until_drained())
            await asyncio.wait({drained}, timeout=settings.stop_timeout_s)
        finally:
            await runner.cleanup()


async def _listen(runner: web.BaseRunner, settings: IngestSettings) -> int:
    try:
        return await start_listening(runner, settings.host, settings.port, share_port=settings.share_port)
    except OSError as error:
        why = {
            errno.EADDRINUSE: PORT_TAKEN,
            errno.EACCES: "this user may not take the port",
            errno.EADDRNOTAVAIL: "this machine has no such address",
        }.get(error.errno or 0, os.strerror(error.errno) if error.errno and error.errno > 0 else str(error))
        raise CannotListenError(settings.host, settings.port, why) from error


def run_ingest(settings: IngestSettings, kafka: KafkaSettings, data: Path, ready: Callable[[str], None]) -> None:
    """Receive webhooks until SIGTERM or SIGINT. Arguments and errors are those of `serve_ingest`."""

    async def until_signalled() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_ingest(settings, kafka, data, ready, stop)

    # Requests create few reference cycles, and frequent collections take a twentieth of the time. Requests to Kafka
    # create some: at 500 webhooks a second, 10,000 objects, of 3 MB, are collected every four minutes.
    gc.freeze()
    gc.set_threshold(10_000)
    uvloop.run(until_signalled())
