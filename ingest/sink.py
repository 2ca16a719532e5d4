"""Store-and-forward sink: webhooks go to Kafka, or to the spool while Kafka is away, and are forwarded later.

Guarantee: a webhook is answered only when every in-sync replica of Kafka or the disk has it. Webhooks of a key reach
Kafka in order of arrival: when Kafka is lost, all waiting webhooks go to the spool, and while the spool has any
webhook, of this process or another, all webhooks go through it.

A webhook that was sent when Kafka was lost, or when a forwarding process died, can be in Kafka twice, under one
ingest_id. The second copy, and every other webhook that went through the spool, has the header `spooled`.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from core.kafka_settings import KafkaSettings
from core.metrics import GaugeFamily
from core.records import HEADER_SPOOLED, WebhookRecord
from ingest import metrics
from ingest.errors import NotStoredError, SpoolError, SpoolFullError
from ingest.kafka_producer import PendingQueue, WebhookProducer
from ingest.receipts import NEVER_LATE, PendingWebhook, ReceiptLog
from ingest.settings import IngestSettings
from ingest.spool import WebhookSpool

log = logging.getLogger(__name__)

# Webhooks that are read from the spool at once. It bounds memory, and repetitions after a crash.
_CHUNK: Final = 2_000
_RETRY_EVERY_S: Final = 0.25
_SPOOLED: Final = (HEADER_SPOOLED, b"1")


class StoreAndForward:
    """The sink of `smspulse ingest`.

    Args:
        kafka: Settings of the Kafka clients.
        data: The data folder, for spool and receipts.
        settings: Time-out of acknowledgements, and bounds of the spool.

    Raises:
        SettingError: A TLS file of the settings cannot be read.
        SpoolError: The spool cannot be opened.
    """

    def __init__(self, kafka: KafkaSettings, data: Path, settings: IngestSettings) -> None:
        self._spool = WebhookSpool(data, settings)
        self._spool_queue = PendingQueue()
        self._receipts = ReceiptLog(data)
        self._producer = WebhookProducer(kafka, settings.ack_timeout_s, self._spool, self._spool_queue, self._receipts)
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        # All writes of the spool run in this thread.
        self._thread = ThreadPoolExecutor(1, "spool")
        self._write_lock = asyncio.Lock()
        self._is_spool_only = False
        self._last_problem = ""

    @property
    def problem(self) -> str | None:
        """Reason why webhooks cannot be stored now, without an address; None while they can."""
        return None if self._producer.is_open else self._spool.read_state().full_reason

    def read_state(self) -> dict[str, Any]:
        """Return the states of Kafka and spool for `/readyz`."""
        webhooks, size, oldest_s, _ = self._spool.read_state()
        spool = {"webhooks": webhooks, "bytes": size, "oldest_s": round(oldest_s, 1)}
        return {"kafka": self._producer.problem or "ok", "spool": spool}

    def read_gauges(self) -> dict[GaugeFamily, float]:
        """Return the states of Kafka and spool for `/metrics`."""
        state, limit = self._spool.read_state(), self._settings.spool_max_bytes
        return {
            metrics.KAFKA_UP: self._producer.problem is None,
            metrics.SPOOL_WEBHOOKS: state.webhooks,
            metrics.SPOOL_BYTES: state.size,
            metrics.SPOOL_LIMIT: limit,
            metrics.SPOOL_AGE: state.oldest_s,
            metrics.SPOOL_FULL: state.full_reason is not None,
            metrics.SPOOL_OVERDUE: state.is_overdue(limit),
        }

    async def store_webhook(self, webhook: WebhookRecord) -> None:
        """Return when every in-sync replica or the disk of the spool has the webhook, and its receipt is written.

        Raises:
            NotStoredError: Kafka has not acknowledged it, and the spool is full.
        """
        pending = PendingWebhook(webhook, self._loop.time(), self._loop.create_future())
        if self._producer.is_open:
            self._producer.send_webhook(pending)
        else:
            self._spool_queue.add((pending,))
        await pending.stored

    @contextlib.asynccontextmanager
    async def run_in_background(self) -> AsyncIterator[asyncio.Task[None]]:
        """Store and forward for a context. Yields the task, which ends early only after an unexpected error."""

        async def run_tasks() -> None:
            async with asyncio.TaskGroup() as tasks:
                for task in (self._producer.run(), self._write_spool(), self._forward_spool()):
                    tasks.create_task(task)

        task = self._loop.create_task(run_tasks())
        try:
            yield task
        finally:
            task.cancel()
            # Any exception other than this cancellation is a fault, and is raised.
            with contextlib.suppress(asyncio.CancelledError):
                await task
            self._thread.shutdown()
            if left := self._spool.read_state().webhooks:
                log.info("%d webhooks stay in the spool and are forwarded when ingest runs again", left)
            self._spool.close()
            self._receipts.close()

    def switch_to_spool_permanently(self) -> None:
        """Route all webhooks through the spool until the process ends, with or without Kafka."""
        self._is_spool_only = True
        self._producer.close()

    async def _write_spool(self) -> NoReturn:
        """Write waiting webhooks to the spool, those of each round with one fsync."""
        while True:
            await self._spool_queue.filled.wait()
            async with self._write_lock:
                await self._write_pending()

    async def _write_pending(self) -> None:
        group = [pending for pending in self._spool_queue.take_all() if not pending.stored.done()]
        if not group:
            return
        webhooks = [pending.webhook for pending in group]
        # With an empty spool, no older webhook waits, and Kafka can take these without a change of the order of a key.
        may_skip = self._producer.connected.is_set() and not self._is_spool_only
        try:
            spooled = await self._run_in_thread(self._spool.append, webhooks, unless_empty=may_skip)
        except SpoolFullError as error:
            self._log_problem(f"{error}: webhooks are answered 503 until there is room or Kafka is back")
            for pending in group:
                pending.fail_with(error)
            return
        self._last_problem = ""
        if not spooled:
            # Ahead of those that came during the attempt.
            self._spool_queue.add(group + self._spool_queue.take_all())
            self._switch_to_kafka()
            return
        metrics.SPOOLED.inc(len(group))
        self._receipts.confirm_webhooks(group)

    async def _forward_spool(self) -> NoReturn:
        """Forward the spool whenever Kafka is connected and the spool has webhooks."""
        while True:
            await self._producer.connected.wait()
            try:
                with self._spool.lock_forwarding() as ours:
                    if ours:
                        await self._drain_spool()
                        # Few webhooks arrived meanwhile.
                        await self._drain_without_writers()
            except NotStoredError:
                # Kafka is lost again.
                continue
            except (SpoolError, TimeoutError) as error:
                self._log_problem(str(error) or "Kafka is too slow for what is in the spool")
            await asyncio.sleep(_RETRY_EVERY_S)
            while self._producer.is_open:
                # Another process can have spooled webhooks, and died.
                self._producer.close_if_spooled()
                await asyncio.sleep(_RETRY_EVERY_S)

    async def _drain_without_writers(self) -> None:
        """Forward the rest of the spool, which ends because no process can write to it, and switch to Kafka."""
        async with self._write_lock, asyncio.timeout(self._settings.ack_timeout_s):
            try:
                await self._run_in_thread(self._spool.block_writers)
                await self._drain_spool()
                self._switch_to_kafka()
            finally:
                # Runs after the present work of the thread.
                self._thread.submit(self._spool.unblock_writers)

    def _switch_to_kafka(self) -> None:
        """Route all webhooks to Kafka, first those that wait for the spool, if the spool is empty."""
        if self._producer.connected.is_set() and self._spool.is_empty() and not self._is_spool_only:
            self._producer.is_open = True
            for pending in self._spool_queue.take_all():
                self._producer.send_webhook(pending)

    async def _drain_spool(self) -> None:
        """Forward until the spool is empty or Kafka is lost.

        Raises:
            NotStoredError: Kafka was lost before it acknowledged webhooks.
            SpoolError: The spool cannot be read.
        """
        # Webhooks up to `done` are in Kafka, and not deleted yet.
        count = done = 0
        while self._producer.connected.is_set():
            seq, webhooks = await self._run_in_thread(self._spool.read_webhooks, done, _CHUNK)
            if not webhooks and not done:
                break
            await self._forward_webhooks(webhooks)
            count += len(webhooks)
            metrics.FORWARDED.inc(len(webhooks))
            done = seq
            try:
                await self._run_in_thread(self._spool.delete_forwarded, done)
                done = 0
            except SpoolError as error:
                self._log_problem(f"{error} (forwarded webhooks cannot be deleted)")
                await asyncio.sleep(_RETRY_EVERY_S)
        if count:
            log.info("%d webhooks of the spool were forwarded", count)

    async def _forward_webhooks(self, webhooks: list[WebhookRecord]) -> None:
        sent = []
        for webhook in webhooks:
            marked = webhook._replace(headers=[*webhook.headers, _SPOOLED])
            sent.append(PendingWebhook(marked, NEVER_LATE, self._loop.create_future()))
            self._producer.send_webhook(sent[-1])
        await asyncio.gather(*(pending.stored for pending in sent))

    def _log_problem(self, problem: str) -> None:
        """Log a problem of the spool once while it lasts."""
        if problem != self._last_problem:
            log.error("%s", problem)
        self._last_problem = problem

    async def _run_in_thread(self, work: Any, *arguments: Any, **options: Any) -> Any:
        return await self._loop.run_in_executor(self._thread, partial(work, *arguments, **options))
