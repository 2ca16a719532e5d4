"""Webhooks into Kafka: each is acknowledged by every in-sync replica, or refused within a deadline.

Guarantee: `KafkaSink.put` returns only after acks=all. A webhook that it refuses may be in Kafka all the same, for an
acknowledgement can be what was lost; the sender's next try is then stored under an ingest_id of its own.

aiokafka is handed whole batches, one a partition at a time: what arrives while one is on its way goes into the next. So
batches grow with load and nothing waits without it, records of a key keep their order of arrival, and a future and a
callback are paid once a batch rather than once a record.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, NoReturn, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.partitioner import DefaultPartitioner

from gateway.kafka import KafkaSettings
from gateway.topics import RAW
from ingest.errors import KafkaFilesError, NotStoredError

log = logging.getLogger(__name__)

_BATCH_BYTES: Final = 131_072
"""Uncompressed size at which a batch is closed; a larger record gets one of its own."""
_REQUEST_TIMEOUT_MS: Final = 5_000
_CONNECT_TIMEOUT_S: Final = 10.0
_RETRY_EVERY_S: Final = 0.5
_PROBE_EVERY_S: Final = 1.0
_FLUSH_TIMEOUT_S: Final = 2.0


class Webhook(NamedTuple):
    """One record of `sms.raw`, see `gateway.records`. `received_at` is in milliseconds since 1970 UTC."""

    key: bytes | None
    body: bytes
    headers: list[tuple[str, bytes]]
    received_at: int


class Sink(Protocol):
    """Where webhooks become safe."""

    @property
    def trouble(self) -> str | None:
        """Why webhooks cannot be stored now, in a few words that name no address; None while they can."""

    async def put(self, webhook: Webhook) -> None:
        """Return when the webhook is safe.

        Raises:
            NotStoredError: It is not, or nobody knows; it comes within the sink's deadline.
        """


class _Waiting(NamedTuple):
    webhook: Webhook
    since: float
    acked: asyncio.Future[None]


class _Lane:
    """The webhooks of one partition: those that wait, and the batch that is on its way."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._waiting: list[_Waiting] = []
        self._sent: list[_Waiting] = []
        self._filled = asyncio.Event()

    def add(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        self._filled.set()

    async def run(self, producer: AIOKafkaProducer) -> NoReturn:
        """Send batch after batch.

        Raises:
            KafkaError: A batch failed for good. The producer is of no more use: its sequence has a gap.
        """
        while True:
            await self._filled.wait()
            batch = self._next_batch(producer)
            delivered = await producer.send_batch(batch, RAW, partition=self._partition)
            # Waited for from the side: a shielded future that is cancelled would leave the failure of its batch
            # unretrieved, and asyncio would log that.
            delivered.add_done_callback(lambda future: future.cancelled() or future.exception())
            await asyncio.wait([delivered])
            delivered.result()
            for _, _, acked in self._sent:
                if not acked.done():
                    acked.set_result(None)
            self._sent = []

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
        """Return whether a webhook that came before that time is still on its way."""
        return bool(self._sent) and self._sent[0].since < before

    def refuse(self, reason: str, before: float = float("inf")) -> bool:
        """Refuse what came before that time, and return whether there was any. What is not sent then never will be."""
        refused = False
        for webhooks in (self._sent, self._waiting):
            for _, since, acked in webhooks:
                if since >= before:
                    break  # they are in order of arrival
                if not acked.done():
                    acked.set_exception(NotStoredError(reason))
                    refused = True
        self._waiting = [waiting for waiting in self._waiting if waiting.since >= before]
        if not self._waiting:
            self._filled.clear()
        return refused


class KafkaSink:
    """A sink that is Kafka's topic `sms.raw`, reached through one idempotent producer that is replaced when it fails.

    Args:
        kafka: Where Kafka is.
        ack_timeout_s: Seconds from `put` to its refusal.

    Raises:
        KafkaFilesError: A TLS file of the settings cannot be read.
    """

    def __init__(self, kafka: KafkaSettings, ack_timeout_s: float) -> None:
        try:
            self._options = kafka.aiokafka()
        except OSError as error:
            raise KafkaFilesError(str(error)) from error
        self._where = kafka.bootstrap
        self._ack_timeout = ack_timeout_s
        self._loop = asyncio.get_running_loop()
        self._partitioner = DefaultPartitioner()
        self._partitions: list[int] = []
        self._lanes: list[_Lane] = []
        self._lost_at: float | None = None
        self._trouble: str | None = "Kafka has not been reached yet"

    @property
    def trouble(self) -> str | None:
        """Why webhooks cannot be stored now, or None."""
        return self._trouble

    async def put(self, webhook: Webhook) -> None:
        """Return when every in-sync replica has the webhook. While Kafka is known to be away, refuse at once.

        Raises:
            NotStoredError: Not acknowledged within the deadline.
        """
        if self._trouble is not None:
            raise NotStoredError(self._trouble)
        acked = self._loop.create_future()
        partition = self._partitioner(webhook.key, self._partitions, self._partitions)
        self._lanes[partition].add(_Waiting(webhook, self._loop.time(), acked))
        await acked

    async def run(self) -> NoReturn:
        """Keep the sink linked to Kafka until cancelled; what is under way is then flushed, within a time limit."""
        with _hushed() as last_word:
            while True:
                producer = await self._connect(last_word)
                try:
                    async with asyncio.TaskGroup() as tasks:
                        for lane in self._lanes:
                            tasks.create_task(lane.run(producer))
                        tasks.create_task(self._expire())
                        tasks.create_task(self._probe(producer, last_word))
                except* KafkaError as group:
                    # Not retried by aiokafka, so nothing of this producer can be relied on any more.
                    self._lost("the link to Kafka broke", repr(group.exceptions[0]))
                finally:
                    self._trouble = self._trouble or "ingest is stopping"
                    for lane in self._lanes:
                        lane.refuse(self._trouble)
                    await _discard(producer)

    async def _connect(self, last_word: "_LastWord") -> AIOKafkaProducer:
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
                        self._lanes = [_Lane(partition) for partition in self._partitions]
                        self._found()
                        return producer
                self._lost(f"Kafka has no topic {RAW}", "`smspulse broker` creates it")
            except (KafkaError, OSError, TimeoutError) as error:
                self._lost("Kafka is not reachable", last_word.text or repr(error))
            except asyncio.CancelledError:
                await _discard(producer)
                raise
            await _discard(producer)
            await asyncio.sleep(_RETRY_EVERY_S)

    async def _expire(self) -> NoReturn:
        while True:
            await asyncio.sleep(self._ack_timeout / 20)
            reason = f"Kafka has not acknowledged within {self._ack_timeout:g} s"
            before = self._loop.time() - self._ack_timeout
            if any([lane.refuse(reason, before) for lane in self._lanes]):  # noqa: C419 - each lane, not up to the first
                self._lost(reason, "slow or away")

    async def _probe(self, producer: AIOKafkaProducer, last_word: "_LastWord") -> NoReturn:
        """Tell loss and recovery, with traffic or without."""
        while True:
            await asyncio.sleep(_PROBE_EVERY_S)
            last_word.text = ""
            try:
                async with asyncio.timeout(self._ack_timeout):
                    cluster = await producer.client.fetch_all_metadata()
            except (KafkaError, OSError, TimeoutError) as error:
                self._lost("Kafka is not reachable", last_word.text or repr(error))
                continue
            if sorted(cluster.partitions_for_topic(RAW) or ()) != self._partitions:
                msg = f"the partitions of {RAW} have changed"
                raise KafkaError(msg)
            if not any(lane.is_stuck(self._loop.time() - self._ack_timeout) for lane in self._lanes):
                self._found()

    def _lost(self, trouble: str, detail: str) -> None:
        self._trouble = trouble
        if self._lost_at is None:
            self._lost_at = self._loop.time()
            log.warning("%s, at %s (%s): webhooks are answered 503 until it is back", trouble, self._where, detail)

    def _found(self) -> None:
        if self._lost_at is not None:
            log.info("Kafka is back after %.1f s: webhooks are accepted again", self._loop.time() - self._lost_at)
        elif self._trouble is not None:
            log.info("connected to Kafka at %s", self._where)
        self._lost_at = self._trouble = None


async def _discard(producer: AIOKafkaProducer) -> None:
    """Stop a producer, in a bounded time whatever its state."""
    with contextlib.suppress(KafkaError, TimeoutError):
        async with asyncio.timeout(_FLUSH_TIMEOUT_S):
            await producer.stop()
            return
    # aiokafka has no way to give up: its stop() waits as long as a batch is retried, which an idempotent producer does
    # for ever. All that is left was refused already.
    if producer._sender.sender_task is not None:
        producer._sender.sender_task.cancel()
    await producer.client.close()


class _LastWord(logging.Handler):
    """Keeps the newest message: it says why aiokafka's exceptions were raised, which they don't."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text = record.getMessage()


@contextlib.contextmanager
def _hushed() -> Iterator[_LastWord]:
    """Keep aiokafka, which logs each failed try, and on debug level bodies, out of the log."""
    logger = logging.getLogger("aiokafka")
    before = logger.level, logger.propagate
    last_word = _LastWord()
    logger.addHandler(last_word)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield last_word
    finally:
        logger.removeHandler(last_word)
        logger.setLevel(before[0])
        logger.propagate = before[1]
