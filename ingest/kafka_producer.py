"""Producer of webhooks to Kafka, acknowledged by every in-sync replica. It is replaced when it fails.

aiokafka gets whole batches, one per partition at a time. Webhooks that arrive during its request go into the next one.
So batches grow with load, nothing waits without load, records of a key keep their order of arrival, and the cost of a
future and a callback is paid once per batch. aiokafka has one request per broker at a time, and a batch that waits for
it does not grow. So batches for one broker are built together, for one request.
"""

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import Iterable
from math import inf
from typing import Any, Final, NoReturn

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from core.errors import SettingError
from core.kafka_settings import KafkaSettings
from core.topics import RAW
from ingest.errors import NotStoredError
from ingest.receipts import PendingWebhook, ReceiptLog
from ingest.spool import WebhookSpool

log = logging.getLogger(__name__)

# Uncompressed size at which a batch is closed. A larger record gets a batch of its own.
_BATCH_BYTES: Final = 131_072
_REQUEST_TIMEOUT_MS: Final = 5_000
_CONNECT_TIMEOUT_S: Final = 10.0
_RETRY_EVERY_S: Final = 0.5
# Requests for metadata at this interval detect the loss of Kafka without traffic.
_PROBE_EVERY_S: Final = 1.0
# It delays the end of ingest, and the connection of the next producer.
_FLUSH_TIMEOUT_S: Final = 2.0


class PendingQueue:
    """Webhooks that wait for one writer, in order of arrival. `filled` is set while there are any."""

    def __init__(self) -> None:
        self.waiting: list[PendingWebhook] = []
        self.filled = asyncio.Event()

    def add(self, webhooks: Iterable[PendingWebhook]) -> None:
        """Add webhooks at the end."""
        self.waiting += webhooks
        if self.waiting:
            self.filled.set()

    def take_all(self) -> list[PendingWebhook]:
        """Remove and return all webhooks."""
        taken, self.waiting = self.waiting, []
        self.filled.clear()
        return taken


class _BrokerRequest:
    """The batches of one request to a broker."""

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


class _PartitionQueue(PendingQueue):
    """The webhooks of one partition: those that wait, and those of the batch that was sent."""

    def __init__(self, partition: int) -> None:
        super().__init__()
        self.partition = partition
        self.sent: list[PendingWebhook] = []
        # Time when the batch was sent, or infinity without one.
        self.sent_at = inf

    def next_batch(self, producer: AIOKafkaProducer) -> Any:
        """Return a batch of waiting webhooks, which count as sent from now on."""
        batch = producer.create_batch()
        taken = 0
        for (key, body, headers, received_at), _, _ in self.waiting:
            if batch.append(timestamp=received_at, key=key, value=body, headers=headers) is None:
                break
            taken += 1
        batch.close()
        waiting = self.take_all()
        self.sent = waiting[:taken]
        self.add(waiting[taken:])
        return batch

    def is_late(self, before: float) -> bool:
        """Return whether a webhook has waited since before that time."""
        return any(pending.queued_at < before for pending in (self.sent or self.waiting)[:1])

    def take_unacknowledged(self) -> list[PendingWebhook]:
        """Remove and return unacknowledged webhooks, in order. A batch that was sent can still arrive."""
        sent, self.sent = self.sent, []
        return sent + self.take_all()


class WebhookProducer:
    """Writer of Kafka's topic `sms.raw` with one idempotent producer at a time.

    It is open while webhooks may come directly from requests. It closes when Kafka is away, does not acknowledge in
    time, or the producer must be replaced, and before a request if the spool has older webhooks.

    Args:
        kafka: Settings of the Kafka clients.
        ack_timeout_s: Seconds for the acknowledgement of a webhook.
        spool: The spool of all processes.
        spool_queue: Gets the unacknowledged webhooks when the producer closes.
        receipts: Gets the acknowledged webhooks.

    Raises:
        SettingError: A TLS file of the settings cannot be read.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        ack_timeout_s: float,
        spool: WebhookSpool,
        spool_queue: PendingQueue,
        receipts: ReceiptLog,
    ) -> None:
        try:
            self._options = kafka.aiokafka_options()
        except OSError as error:
            msg = f"a TLS file for Kafka cannot be read: {error}; see SMSPULSE_KAFKA_SSL_CAFILE, _CERTFILE and _KEYFILE"
            raise SettingError(msg) from error
        self._address = kafka.bootstrap
        self._ack_timeout, self._spool, self._spool_queue = ack_timeout_s, spool, spool_queue
        self._receipts = receipts
        self._last_message = _LastMessageHandler()
        self._loop = asyncio.get_running_loop()
        self._partitioner = DefaultPartitioner()
        self._partitions: list[int] = []
        self._queues: list[_PartitionQueue] = []
        self._disconnected_at: float | None = None
        self.connected = asyncio.Event()
        self.is_open = False
        self.problem: str | None = "Kafka has not been reached yet"
        """Reason why nothing can be sent now, without an address; None while `connected` is set."""

    def send_webhook(self, pending: PendingWebhook) -> None:
        """Send a webhook, behind all others of its key, while `connected` is set. Confirms it when it is stored."""
        partition = self._partitioner(pending.webhook.key, self._partitions, self._partitions)
        self._queues[partition].add((pending,))

    def close(self) -> None:
        """Pass the webhooks without an acknowledgement to the spool, those of each key in order.

        Some of them can still arrive. Webhooks that come from the spool stay.
        """
        if self.is_open:
            self.is_open = False
            self._spool_queue.add(self._take_unacknowledged())

    def close_if_spooled(self) -> None:
        """Close if the spool has webhooks, of this process or another: they are older."""
        if self.is_open and not self._spool.is_empty():
            self.close()

    def _take_unacknowledged(self) -> list[PendingWebhook]:
        return [pending for queue in self._queues for pending in queue.take_unacknowledged()]

    async def run(self) -> NoReturn:
        """Keep the connection to Kafka until cancelled. Then flush open requests within a time limit."""
        while True:
            producer = await self._connect_producer()
            requests = defaultdict[int | None, _BrokerRequest](_BrokerRequest)
            try:
                async with asyncio.TaskGroup() as tasks:
                    for queue in self._queues:
                        tasks.create_task(self._send_batches(queue, producer, requests))
                    tasks.create_task(self._check_acknowledgements())
                    tasks.create_task(self._probe_kafka(producer))
            except* KafkaError as group:
                # aiokafka does not retry these, so the state of this producer is unknown.
                self._mark_disconnected("the connection to Kafka broke", repr(group.exceptions[0]))
            finally:
                self.connected.clear()
                self.problem = self.problem or "ingest is stopping"
                self.close()
                # What is left comes from the spool, and stays there.
                for pending in self._take_unacknowledged():
                    pending.fail_with(NotStoredError(self.problem))
                await _discard_producer(producer)

    async def _send_batches(
        self, queue: _PartitionQueue, producer: AIOKafkaProducer, requests: dict[int | None, _BrokerRequest]
    ) -> NoReturn:
        """Send batch after batch of a partition, and confirm the webhooks that every in-sync replica has.

        Raises:
            KafkaError: A batch failed permanently. The producer cannot be used any more: its sequence has a gap.
        """
        tp = TopicPartition(RAW, queue.partition)
        while True:
            await queue.filled.wait()
            request = requests[producer.client.cluster.leader_for_partition(tp)]
            await request.done.wait()
            if not request.batches:
                self.close_if_spooled()
            if not queue.waiting:
                # The spool has them now.
                continue
            request.begin_batch()
            batch = queue.next_batch(producer)
            queue.sent_at = self._loop.time()
            delivered = await producer.send_batch(batch, RAW, partition=queue.partition)
            # Not awaited directly: a cancelled shielded future would leave the exception of its batch unretrieved, and
            # asyncio would log it.
            delivered.add_done_callback(lambda future: future.cancelled() or future.exception())
            await asyncio.wait([delivered])
            delivered.result()
            request.end_batch()
            queue.sent_at = inf
            sent, queue.sent = queue.sent, []
            self._receipts.confirm_webhooks(sent)

    async def _connect_producer(self) -> AIOKafkaProducer:
        """Return a connected producer. Retries without a limit."""
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
                    # A request for this topic alone could create it with the defaults of the broker.
                    cluster = await producer.client.fetch_all_metadata()
                    if RAW in cluster.topics():
                        self._partitions = sorted(await producer.partitions_for(RAW))
                        self._queues = [_PartitionQueue(partition) for partition in self._partitions]
                        self._mark_connected()
                        return producer
                self._mark_disconnected(f"Kafka has no topic {RAW}", "`smspulse broker` creates it")
            except (KafkaError, OSError, TimeoutError) as error:
                self._mark_disconnected("Kafka is not reachable", self._last_message.text or repr(error))
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

    async def _probe_kafka(self, producer: AIOKafkaProducer) -> NoReturn:
        """Detect loss and recovery of the connection, with traffic or without."""
        while True:
            await asyncio.sleep(_PROBE_EVERY_S)
            self._last_message.text = ""
            try:
                async with asyncio.timeout(self._ack_timeout):
                    cluster = await producer.client.fetch_all_metadata()
            except (KafkaError, OSError, TimeoutError) as error:
                self._mark_disconnected("Kafka is not reachable", self._last_message.text or repr(error))
                continue
            if sorted(cluster.partitions_for_topic(RAW) or ()) != self._partitions:
                msg = f"the partitions of {RAW} have changed"
                raise KafkaError(msg)
            # While a batch of any partition is late, Kafka counts as away.
            if all(queue.sent_at >= self._loop.time() - self._ack_timeout for queue in self._queues):
                self._mark_connected()

    def _mark_disconnected(self, problem: str, detail: str) -> None:
        self.problem = problem
        self.connected.clear()
        if self._disconnected_at is None:
            self._disconnected_at = self._loop.time()
            log.warning("%s, at %s (%s): webhooks go to the spool until it is back", problem, self._address, detail)
        self.close()

    def _mark_connected(self) -> None:
        if self._disconnected_at is not None:
            log.info("Kafka is back after %.1f s", self._loop.time() - self._disconnected_at)
        elif self.problem is not None:
            log.info("connected to Kafka at %s", self._address)
        self._disconnected_at = self.problem = None
        self.connected.set()


async def _discard_producer(producer: AIOKafkaProducer) -> None:
    """Stop a producer in a bounded time, whatever its state."""
    with contextlib.suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(_FLUSH_TIMEOUT_S):
            await producer.stop()
            return
    # aiokafka cannot abort: its stop() waits while a batch is retried, which an idempotent producer does for ever. The
    # webhooks of the batch were taken back before.
    if producer._sender.sender_task is not None:
        producer._sender.sender_task.cancel()
    await producer.client.close()


class _LastMessageHandler(logging.Handler):
    """Keeps the newest message of aiokafka. It has the cause of an exception of aiokafka, which the exception lacks.

    Nothing of aiokafka is logged: it logs each failed attempt, and bodies on debug level.
    """

    text = ""

    def __init__(self) -> None:
        super().__init__()
        logger = logging.getLogger("aiokafka")
        logger.handlers, logger.propagate = [self], False
        logger.setLevel(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()
