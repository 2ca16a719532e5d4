"""Store and forward: webhooks go to Kafka, and while it is away to the spool, from which they are forwarded later.

Guarantee: a webhook is answered only when every in-sync replica of Kafka has it, or the disk. Webhooks of a key reach
Kafka in order of arrival: all that waits for Kafka goes to the spool the moment that Kafka is lost, and as long as
anything is in the spool, of this process or another, everything goes through it.

What was on its way to Kafka when it was lost, or when a forwarding process died, can be there twice, under one
ingest_id; the second copy, and every other webhook that went through the spool, has the header `spooled`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, Protocol

from core.kafka_settings import KafkaSettings
from core.records import HEADER_SPOOLED
from ingest import metrics
from ingest.errors import NotStoredError, SpoolError, SpoolFullError
from ingest.kafka_producer import Producer, Waiting
from ingest.receipts import Accepted
from ingest.settings import IngestSettings
from ingest.spool import Spool, Webhook

log = logging.getLogger(__name__)

_CHUNK: Final = 2_000
_LOOK_EVERY_S: Final = 1.0
_RETRY_EVERY_S: Final = 0.25
_NEVER_LATE: Final = float("inf")
_SPOOLED: Final = (HEADER_SPOOLED, b"1")


class Sink(Protocol):
    """Where webhooks become safe."""

    @property
    def trouble(self) -> str | None:
        """Why webhooks cannot be stored now, in a few words that name no address; None while they can."""

    def state(self) -> dict[str, Any]:
        """Return what `/readyz` shows beside that."""

    def gauges(self) -> metrics.Gauges:
        """Return what `/metrics` shows beside what is counted."""

    async def put(self, webhook: Webhook) -> None:
        """Return when the webhook is safe.

        Raises:
            NotStoredError: It is not, or nobody knows.
        """


class StoreAndForward:
    """The sink of `smspulse ingest`.

    Args:
        kafka: Where Kafka is.
        data: The data folder, for the spool.
        settings: Deadline and bounds.

    Raises:
        KafkaFilesError: A TLS file of the settings cannot be read.
        SpoolError: The spool cannot be opened.
    """

    def __init__(self, kafka: KafkaSettings, data: Path, settings: IngestSettings) -> None:
        self._producer = Producer(kafka, settings.ack_timeout_s, self.divert, self._divert_if_spooled, self._stored)
        self._spool = Spool(data, settings)
        self._accepted = Accepted(data)
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        # The spool's one thread.
        self._thread = ThreadPoolExecutor(1, "spool")
        self._pending: list[Waiting] = []
        self._filled = asyncio.Event()
        self._turn = asyncio.Lock()
        self._direct = self._for_good = False
        self._diverted = asyncio.Event()
        self._complaint = ""

    @property
    def trouble(self) -> str | None:
        """Why webhooks cannot be stored now, or None."""
        return None if self._direct else self._spool.state().full

    def state(self) -> dict[str, Any]:
        """Return the states of Kafka and spool."""
        webhooks, size, oldest_s, _ = self._spool.state()
        spool = {"webhooks": webhooks, "bytes": size, "oldest_s": round(oldest_s, 1)}
        return {"kafka": self._producer.trouble or "ok", "spool": spool}

    def gauges(self) -> metrics.Gauges:
        """Return the same for Prometheus."""
        webhooks, size, oldest_s, full = self._spool.state()
        return {
            "kafka_up": ("Whether Kafka takes webhooks: 1 or 0.", self._producer.trouble is None),
            "spool_webhooks": ("Webhooks in the spool.", webhooks),
            "spool_bytes": ("Size of what is in the spool.", size),
            "spool_limit_bytes": ("Size from which the spool takes no more.", self._settings.spool_max_bytes),
            "spool_oldest_seconds": ("Age of the oldest webhook in the spool.", oldest_s),
            "spool_full": ("Whether the spool takes no more: 1 or 0.", full is not None),
        }

    async def put(self, webhook: Webhook) -> None:
        """Return when every in-sync replica has the webhook, or the spool's disk.

        Raises:
            NotStoredError: Kafka has not acknowledged it, and the spool is full.
        """
        waiting = Waiting(webhook, self._loop.time(), self._loop.create_future())
        if self._direct:
            self._producer.send(waiting)
        else:
            self._to_spool(waiting)
        await waiting.stored

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[None]]:
        """Store and forward, for a context; give the task, which ends early only by a fault."""

        async def run() -> None:
            async with asyncio.TaskGroup() as tasks:
                for task in (self._producer.run(), self._write(), self._forward()):
                    tasks.create_task(task)

        task = self._loop.create_task(run())
        try:
            yield task
        finally:
            task.cancel()
            # Ended by anything else than this cancellation, it is a fault that must be seen.
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._thread.shutdown()
            if left := self._spool.state().webhooks:
                log.info("%d webhooks stay in the spool and are forwarded when ingest runs again", left)
            self._spool.close()
            self._accepted.close()

    def _to_spool(self, waiting: Waiting) -> None:
        self._pending.append(waiting)
        self._filled.set()

    def divert(self) -> None:
        """Send everything through the spool from now on, and first what waits for Kafka."""
        if self._direct:
            self._direct = False
            self._diverted.set()
            for waiting in self._producer.take_back():
                self._to_spool(waiting)

    def divert_for_good(self) -> None:
        """Send everything through the spool until the end, whether Kafka is there or not."""
        self._for_good = True
        self.divert()

    def _divert_if_spooled(self) -> None:
        if self._direct and not self._spool.is_empty():
            self.divert()

    async def _write(self) -> NoReturn:
        """Write to the spool: all that waits, with one fsync, and then all that came meanwhile."""
        while True:
            await self._filled.wait()
            async with self._turn:
                await self._write_pending()

    async def _write_pending(self) -> None:
        self._filled.clear()
        group, self._pending = [each for each in self._pending if not each.stored.done()], []
        if not group:
            return
        webhooks, may_skip = [each.webhook for each in group], self._producer.up.is_set() and not self._for_good
        try:
            spooled = await self._in_thread(self._spool.append, webhooks, unless_empty=may_skip)
        except SpoolFullError as error:
            self._complain(f"{error}: webhooks are answered 503 until there is room or Kafka is back")
            for waiting in group:
                waiting.refuse(error)
            return
        self._complaint = ""
        if spooled:
            metrics.SPOOLED.inc(len(group))
            self._stored(group)
        else:
            self._pending[:0] = group
            self._filled.set()
            self._go_direct()

    def _stored(self, group: list[Waiting]) -> None:
        """Note what is stored, unless it was when it came to the spool, and tell those who wait for it."""
        self._accepted.note(each.webhook for each in group if each.since < _NEVER_LATE and not each.stored.done())
        for each in group:
            if not each.stored.done():
                each.stored.set_result(None)

    async def _forward(self) -> NoReturn:
        """Forward the spool whenever Kafka is up and there is anything in it."""
        while True:
            await self._producer.up.wait()
            try:
                with self._spool.forwarding() as ours:
                    if ours:
                        await self._forward_all()
                        # What came meanwhile is little. Until it is forwarded nobody writes more, or it may never end.
                        async with self._turn, asyncio.timeout(self._settings.ack_timeout_s), self._held():
                            await self._forward_all()
                            self._go_direct()
            except NotStoredError:
                continue  # Kafka is lost again
            except (SpoolError, TimeoutError) as error:
                self._complain(str(error) or "Kafka is too slow for what is in the spool")
            while self._direct:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_EVERY_S):
                        await self._diverted.wait()
                self._divert_if_spooled()  # another process may have left it, and died
            await asyncio.sleep(_RETRY_EVERY_S)

    @contextlib.asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        """Have what other processes would write to the spool wait, for a context."""
        try:
            await self._in_thread(self._spool.hold)
            yield
        finally:
            self._thread.submit(self._spool.release)  # behind what the thread still does

    def _go_direct(self) -> None:
        """Send everything straight to Kafka from now on, and first what waits for the spool, if that is empty."""
        if self._producer.up.is_set() and self._spool.is_empty() and not self._for_good:
            self._direct = True
            self._diverted.clear()
            self._filled.clear()
            for waiting in self._pending:
                self._producer.send(waiting)
            self._pending = []

    async def _forward_all(self) -> None:
        """Forward until the spool is empty, or Kafka is lost.

        Raises:
            NotStoredError: It was lost for the webhooks that were on their way.
            SpoolError: The spool cannot be read.
        """
        count = done = 0  # up to `done` it is in Kafka, though not deleted yet
        while self._producer.up.is_set():
            seq, webhooks = await self._in_thread(self._spool.read, done, _CHUNK)
            if not webhooks and not done:
                break
            await self._forward_these(webhooks)
            count += len(webhooks)
            metrics.FORWARDED.inc(len(webhooks))
            done = seq
            try:
                await self._in_thread(self._spool.forget, done)
                done = 0
            except SpoolError as error:
                self._complain(f"{error} (what was forwarded cannot be deleted)")
                await asyncio.sleep(_LOOK_EVERY_S)
        if count:
            log.info("%d webhooks of the spool were forwarded", count)

    async def _forward_these(self, webhooks: list[Webhook]) -> None:
        waiting = [
            Waiting(each._replace(headers=[*each.headers, _SPOOLED]), _NEVER_LATE, self._loop.create_future())
            for each in webhooks
        ]
        for each in waiting:
            self._producer.send(each)
        await asyncio.gather(*(each.stored for each in waiting))

    def _complain(self, complaint: str) -> None:
        """Log what goes wrong with the spool, once as long as it does."""
        if complaint != self._complaint:
            log.error("%s", complaint)
        self._complaint = complaint

    async def _in_thread(self, work: Any, *arguments: Any, **options: Any) -> Any:
        return await self._loop.run_in_executor(self._thread, partial(work, *arguments, **options))
