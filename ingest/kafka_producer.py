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
from ingest.spool import Webhook

log = logging.getLogger(__name__)

_BATCH_BYTES: Final = 131_072
"""Uncompressed size at which a batch is closed; a larger record gets one of its own."""
_REQUEST_TIMEOUT_MS: Final = 5_000
_CONNECT_TIMEOUT_S: Final = 10.0
_RETRY_EVERY_S: Final = 0.5
_PROBE_EVERY_S: Final = 1.0
_FLUSH_TIMEOUT_S: Final = 2.0


class Waiting(NamedTuple):
    """A webhook that is to be stored, since when on the loop's clock, and what is told that it is."""

    webhook: Webhook
    since: float
    stored: asyncio.Future[None]

    def refuse(self, error: Exception) -> None:
        """Tell that it is not stored, if anybody still waits."""
        if not self.stored.done():
            self.stored.set_exception(error)
            # Looked at, so that asyncio logs no error where nobody waits any more, as when ingest stops.
            self.stored.exception()


class _Request:
    """What is on its way to one broker."""

    def __init__(self) -> None:
        self.batches = 0
        self.done = asyncio.Event()
        self.done.set()

    def begin(self) -> None:
        self.batches += 1
        self.done.clear()

    def end(self) -> None:
        self.batches -= 1
        if not self.batches:
            self.done.set()


class _Lane:
    """The webhooks of one partition: those that wait, and the batch that is on its way."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._waiting: list[Waiting] = []
        self._sent: list[Waiting] = []
        self._sent_at: float | None = None
        self._filled = asyncio.Event()

    def add(self, waiting: Waiting) -> None:
        self._waiting.append(waiting)
        self._filled.set()

    async def run(
        self,
        producer: AIOKafkaProducer,
        requests: dict[int | None, _Request],
        before_request: Callable[[], None],
        on_stored: Callable[[list[Waiting]], None],
    ) -> NoReturn:
        """Send batch after batch.

        Args:
            producer: Sends them.
            requests: By the broker's id; what other lanes send is there too.
            before_request: See `Producer`.
            on_stored: See `Producer`.

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
            request.begin()
            batch = self._next_batch(producer)
            self._sent_at = loop.time()
            delivered = await producer.send_batch(batch, RAW, partition=self._partition)
            # Waited for from the side: a shielded future that is cancelled would leave the failure of its batch
            # unretrieved, and asyncio would log that.
            delivered.add_done_callback(lambda future: future.cancelled() or future.exception())
            await asyncio.wait([delivered])
            delivered.result()
            request.end()
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
        return any(waiting.since < before for waiting in (self._sent or self._waiting)[:1])

    def take_back(self) -> list[Waiting]:
        """Return and forget what is not acknowledged, in order; a batch that is on its way may arrive all the same."""
        taken = self._sent + self._waiting
        self._sent, self._waiting = [], []
        self._filled.clear()
        return taken


class Producer:
    """Kafka's topic `sms.raw`, reached through one idempotent producer.

    Args:
        kafka: Where Kafka is.
        ack_timeout_s: Seconds that a webhook may wait for its acknowledgement.
        on_lost: Called when Kafka is away, does not acknowledge in time, or the producer must be given up. It may take
            back what waits; what it leaves goes on waiting, but in the last case, where it is refused.
        before_request: Called before each request; it may take back what waits.
        on_stored: Called with what every in-sync replica has, to tell it.

    Raises:
        KafkaFilesError: A TLS file of the settings cannot be read.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        ack_timeout_s: float,
        on_lost: Callable[[], None],
        before_request: Callable[[], None],
        on_stored: Callable[[list[Waiting]], None],
    ) -> None:
        try:
            self._options = kafka.aiokafka()
        except OSError as error:
            raise KafkaFilesError(str(error)) from error
        self._where = kafka.bootstrap
        self._ack_timeout = ack_timeout_s
        self._on_lost, self._before_request, self._on_stored = on_lost, before_request, on_stored
        self._loop = asyncio.get_running_loop()
        self._partitioner = DefaultPartitioner()
        self._partitions: list[int] = []
        self._lanes: list[_Lane] = []
        self._lost_at: float | None = None
        self.up = asyncio.Event()
        self.trouble: str | None = "Kafka has not been reached yet"
        """Why nothing can be sent now, in a few words that name no address; None while `up` is set."""

    def send(self, waiting: Waiting) -> None:
        """Send a webhook, behind all others of its key; `on_stored` gets it. Only while up."""
        partition = self._partitioner(waiting.webhook.key, self._partitions, self._partitions)
        self._lanes[partition].add(waiting)

    def take_back(self) -> list[Waiting]:
        """Return all that is not acknowledged, that of each key in order; some of it may arrive all the same."""
        return [waiting for lane in self._lanes for waiting in lane.take_back()]

    async def run(self) -> NoReturn:
        """Keep the link to Kafka until cancelled; what is under way is then flushed, within a time limit."""
        with _hushed() as last_word:
            while True:
                producer = await self._connect(last_word)
                requests = defaultdict[int | None, _Request](_Request)
                try:
                    async with asyncio.TaskGroup() as tasks:
                        for lane in self._lanes:
                            tasks.create_task(lane.run(producer, requests, self._before_request, self._on_stored))
                        tasks.create_task(self._expire())
                        tasks.create_task(self._probe(producer, last_word))
                except* KafkaError as group:
                    # Not retried by aiokafka, so nothing of this producer can be relied on any more.
                    self._lost("the link to Kafka broke", repr(group.exceptions[0]))
                finally:
                    self.up.clear()
                    self.trouble = self.trouble or "ingest is stopping"
                    self._on_lost()
                    for waiting in self.take_back():
                        waiting.refuse(NotStoredError(self.trouble))
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
            before = self._loop.time() - self._ack_timeout
            if any(lane.is_late(before) for lane in self._lanes):
                self._lost(f"Kafka has not acknowledged within {self._ack_timeout:g} s", "slow or away")

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
        self.trouble = trouble
        self.up.clear()
        if self._lost_at is None:
            self._lost_at = self._loop.time()
            log.warning("%s, at %s (%s): webhooks go to the spool until it is back", trouble, self._where, detail)
        self._on_lost()

    def _found(self) -> None:
        if self._lost_at is not None:
            log.info("Kafka is back after %.1f s", self._loop.time() - self._lost_at)
        elif self.trouble is not None:
            log.info("connected to Kafka at %s", self._where)
        self._lost_at = self.trouble = None
        self.up.set()


async def _discard(producer: AIOKafkaProducer) -> None:
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
