"""Webhooks into Kafka, acknowledged by every in-sync replica, through one producer that is replaced when it fails.

aiokafka is handed whole batches, one a partition at a time: what arrives while one is on its way goes into the next. So
batches grow with load and nothing waits without it, records of a key keep their order of arrival, and a future and a
callback are paid once a batch rather than once a record. It has one request to a broker under way at a time, and a
batch that waits for that would not grow any more: so batches for one broker are made together, for one request.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple, NoReturn

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from core.kafka_settings import KafkaSettings
from core.topics import RAW
from ingest.errors import KafkaFilesError, NotStoredError
from ingest.webhook_record import WebhookRecord

log = logging.getLogger(__name__)

_BATCH_BYTES: Final = 131_072
"""Uncompressed size at which a batch is closed; a larger record gets one of its own."""
_REQUEST_TIMEOUT_MS: Final = 5_000
_CONNECT_TIMEOUT_S: Final = 10.0
_RETRY_EVERY_S: Final = 0.5
_PROBE_EVERY_S: Final = 1.0
_FLUSH_TIMEOUT_S: Final = 2.0


class PendingWebhook(NamedTuple):
    """A webhook that is to be stored, since when on the loop's clock, and what is told that it is."""

    webhook: WebhookRecord
    queued_at: float
    stored: asyncio.Future[None]

    def fail_with(self, error: Exception) -> None:
        """Tell that it is not stored, if anybody still waits."""
        if not self.stored.done():
            self.stored.set_exception(error)
            # Looked at, so that asyncio logs no error where nobody waits any more, as when ingest stops.
            self.stored.exception()


class _BrokerRequest:
    """What is on its way to one broker."""

    def __init__(self) -> None:
        self.batches = 0
        self.done = asyncio.Event()
        self.done.set()

    def begin_batch(self) -> None:
        self.batches += 1
        self.done.clear()

    def end_batch(self) -> None:
        self.batches -= 1
        if not self.batches:
            self.done.set()


class _PartitionQueue:
    """The webhooks of one partition: those that wait, and the batch that is on its way."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._waiting: list[PendingWebhook] = []
        self._sent: list[PendingWebhook] = []
        self._sent_at: float | None = None
        self._filled = asyncio.Event()

    def add_webhook(self, waiting: PendingWebhook) -> None:
        self._waiting.append(waiting)
        self._filled.set()

    async def send_batches(
        self,
        producer: AIOKafkaProducer,
        requests: dict[int | None, _BrokerRequest],
        before_request: Callable[[], None],
        on_stored: Callable[[list[PendingWebhook]], None],
    ) -> NoReturn:
        """Send batch after batch.

        Args:
            producer: Sends them.
            requests: By the broker's id; what other queues send is there too.
            before_request: See `WebhookProducer`.
            on_stored: See `WebhookProducer`.

        Raises:
            KafkaError: A batch failed for good. The producer is of no more use: its sequence has a gap.
        """
        loop, tp = asyncio.get_running_loop(), TopicPartition(RAW, self._partition)
        while True:
            await self._filled.wait()
            request = requests[producer.client.cluster.leader_for_partition(tp)]
            await request.done.wait()
            if not request.batches:
                before_request()
            if not self._waiting:
                continue  # taken back
            request.begin_batch()
            batch = self._next_batch(producer)
            self._sent_at = loop.time()
            delivered = await producer.send_batch(batch, RAW, partition=self._partition)
            # Waited for from the side: a shielded future that is cancelled would leave the failure of its batch
            # unretrieved, and asyncio would log that.
            delivered.add_done_callback(lambda future: future.cancelled() or future.exception())
            await asyncio.wait([delivered])
            delivered.result()
            request.end_batch()
            self._sent_at = None
            sent, self._sent = self._sent, []
            on_stored(sent)

    def _next_batch(self, producer: AIOKafkaProducer) -> Any:
        batch = producer.create_batch()
        taken = 0
        for (key, body, headers, received_at), _, _ in self._waiting:
            if batch.append(timestamp=received_at, key=key, value=body, headers=headers) is None:
                break
            taken += 1
        batch.close()
        self._sent, self._waiting = self._waiting[:taken], self._waiting[taken:]
        if not self._waiting:
            self._filled.clear()
        return batch

    def is_stuck(self, before: float) -> bool:
        """Return whether a batch that was sent before that time is still on its way."""
        return self._sent_at is not None and self._sent_at < before

    def is_late(self, before: float) -> bool:
        """Return whether a webhook waits since before that time."""
        return any(waiting.queued_at < before for waiting in (self._sent or self._waiting)[:1])

    def take_unacknowledged(self) -> list[PendingWebhook]:
        """Return and forget what is not acknowledged, in order; a batch that is on its way may arrive all the same."""
        taken = self._sent + self._waiting
        self._sent, self._waiting = [], []
        self._filled.clear()
        return taken


class WebhookProducer:
    """Kafka's topic `sms.raw`, reached through one idempotent producer.

    Args:
        kafka: Where Kafka is.
        ack_timeout_s: Seconds that a webhook may wait for its acknowledgement.
        on_disconnected: Called when Kafka is away, does not acknowledge in time, or the producer must be given up. It
            may take back what waits. What it leaves goes on waiting; in the last case it is refused.
        before_request: Called before each request; it may take back what waits.
        on_stored: Called with what every in-sync replica has, to tell it.

    Raises:
        KafkaFilesError: A TLS file of the settings cannot be read.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        ack_timeout_s: float,
        on_disconnected: Callable[[], None],
        before_request: Callable[[], None],
        on_stored: Callable[[list[PendingWebhook]], None],
    ) -> None:
        try:
            self._options = kafka.aiokafka_options()
        except OSError as error:
            raise KafkaFilesError(str(error)) from error
        self._address = kafka.bootstrap
        self._ack_timeout = ack_timeout_s
        self._on_disconnected, self._before_request, self._on_stored = on_disconnected, before_request, on_stored
        self._loop = asyncio.get_running_loop()
        self._partitioner = DefaultPartitioner()
        self._partitions: list[int] = []
        self._queues: list[_PartitionQueue] = []
        self._disconnected_at: float | None = None
        self.connected = asyncio.Event()
        self.problem: str | None = "Kafka has not been reached yet"
        """Why nothing can be sent now, in a few words that name no address; None while `connected` is set."""

    def send_webhook(self, waiting: PendingWebhook) -> None:
        """Send a webhook, behind all others of its key; `on_stored` gets it. Only while up."""
        partition = self._partitioner(waiting.webhook.key, self._partitions, self._partitions)
        self._queues[partition].add_webhook(waiting)

    def take_unacknowledged(self) -> list[PendingWebhook]:
        """Return all that is not acknowledged, that of each key in order; some of it may arrive all the same."""
        return [waiting for queue in self._queues for waiting in queue.take_unacknowledged()]

    async def run(self) -> NoReturn:
        """Keep the link to Kafka until cancelled; what is under way is then flushed, within a time limit."""
        with _silence_aiokafka() as last_message:
            while True:
                producer = await self._connect_producer(last_message)
                requests = defaultdict[int | None, _BrokerRequest](_BrokerRequest)
                try:
                    async with asyncio.TaskGroup() as tasks:
                        for queue in self._queues:
                            tasks.create_task(
                                queue.send_batches(producer, requests, self._before_request, self._on_stored)
                            )
                        tasks.create_task(self._check_acknowledgements())
                        tasks.create_task(self._probe_kafka(producer, last_message))
                except* KafkaError as group:
                    # Not retried by aiokafka, so nothing of this producer can be relied on any more.
                    self._mark_disconnected("the link to Kafka broke", repr(group.exceptions[0]))
                finally:
                    self.connected.clear()
                    self.problem = self.problem or "ingest is stopping"
                    self._on_disconnected()
                    for waiting in self.take_unacknowledged():
                        waiting.fail_with(NotStoredError(self.problem))
                    await _discard_producer(producer)

    async def _connect_producer(self, last_message: "_LastMessageHandler") -> AIOKafkaProducer:
        """Return a producer that has spoken to Kafka, however long that takes."""
        while True:
            producer = AIOKafkaProducer(
                **self._options,
                client_id="smspulse-ingest",
                acks="all",
                enable_idempotence=True,
                compression_type="lz4",
                max_batch_size=_BATCH_BYTES,
                request_timeout_ms=_REQUEST_TIMEOUT_MS,
            )
            try:
                async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                    await producer.start()
                    # Asking for this topic alone could create it, with whatever the broker's defaults are.
                    cluster = await producer.client.fetch_all_metadata()
                    if RAW in cluster.topics():
                        self._partitions = sorted(await producer.partitions_for(RAW))
                        self._queues = [_PartitionQueue(partition) for partition in self._partitions]
                        self._mark_connected()
                        return producer
                self._mark_disconnected(f"Kafka has no topic {RAW}", "`smspulse broker` creates it")
            except (KafkaError, OSError, TimeoutError) as error:
                self._mark_disconnected("Kafka is not reachable", last_message.text or repr(error))
            except asyncio.CancelledError:
                await _discard_producer(producer)
                raise
            await _discard_producer(producer)
            await asyncio.sleep(_RETRY_EVERY_S)

    async def _check_acknowledgements(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._ack_timeout / 20)
            before = self._loop.time() - self._ack_timeout
            if any(queue.is_late(before) for queue in self._queues):
                self._mark_disconnected(f"Kafka has not acknowledged within {self._ack_timeout:g} s", "slow or away")

    async def _probe_kafka(self, producer: AIOKafkaProducer, last_message: "_LastMessageHandler") -> NoReturn:
        """Tell loss and recovery, with traffic or without."""
        while True:
            await asyncio.sleep(_PROBE_EVERY_S)
            last_message.text = ""
            try:
                async with asyncio.timeout(self._ack_timeout):
                    cluster = await producer.client.fetch_all_metadata()
            except (KafkaError, OSError, TimeoutError) as error:
                self._mark_disconnected("Kafka is not reachable", last_message.text or repr(error))
                continue
            if sorted(cluster.partitions_for_topic(RAW) or ()) != self._partitions:
                msg = f"the partitions of {RAW} have changed"
                raise KafkaError(msg)
            if not any(queue.is_stuck(self._loop.time() - self._ack_timeout) for queue in self._queues):
                self._mark_connected()

    def _mark_disconnected(self, problem: str, detail: str) -> None:
        self.problem = problem
        self.connected.clear()
        if self._disconnected_at is None:
            self._disconnected_at = self._loop.time()
            log.warning("%s, at %s (%s): webhooks go to the spool until it is back", problem, self._address, detail)
        self._on_disconnected()

    def _mark_connected(self) -> None:
        if self._disconnected_at is not None:
            log.info("Kafka is back after %.1f s", self._loop.time() - self._disconnected_at)
        elif self.problem is not None:
            log.info("connected to Kafka at %s", self._address)
        self._disconnected_at = self.problem = None
        self.connected.set()


async def _discard_producer(producer: AIOKafkaProducer) -> None:
    """Stop a producer, in a bounded time whatever its state."""
    with contextlib.suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(_FLUSH_TIMEOUT_S):
            await producer.stop()
            return
    # aiokafka has no way to give up: its stop() waits as long as a batch is retried, which an idempotent producer does
    # for ever. All that is left was taken back already.
    if producer._sender.sender_task is not None:
        producer._sender.sender_task.cancel()
    await producer.client.close()


class _LastMessageHandler(logging.Handler):
    """Keeps the newest message: it says why aiokafka's exceptions were raised, which they don't."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


@contextlib.contextmanager
def _silence_aiokafka() -> Iterator[_LastMessageHandler]:
    """Keep aiokafka, which logs each failed try, and on debug level bodies, out of the log."""
    logger = logging.getLogger("aiokafka")
    before = logger.level, logger.propagate
    last_message = _LastMessageHandler()
    logger.addHandler(last_message)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield last_message
    finally:
        logger.removeHandler(last_message)
        logger.setLevel(before[0])
        logger.propagate = before[1]
