"""One partition: owned by one worker at a time, folded run by run, each run in one Kafka transaction.

Guarantees
    Exactly once: the outputs of a run and the offset behind it become visible together or not at all.
    Fenced: each partition has a transactional id of its own. A new owner's `init_transactions` ends every transaction
    of earlier owners and makes their producers useless *before* the new owner reads the offset and the state, so what
    it reads is final. A worker that was stopped, lost its partition and wakes up cannot write anything.
    Recoverable: the local store is written after the commit and holds the offset it reached, so it is never ahead of
    `sms.messages`, and what it lacks is read from there.
    Gapless: a run that does not begin where the committed offset stands is noticed, whoever lost the records.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from gateway.kafka import KafkaSettings
from gateway.payloads import parse_zone
from gateway.statuses import parse_meanings, status_table
from gateway.topics import DEADLETTERS, MESSAGES, RAW
from streams.errors import LostRecordsError, OwnershipLostError, StreamError
from streams.fold import Fold, Outputs, Record
from streams.lifecycle import Lifecycle
from streams.settings import StreamSettings
from streams.store import Store

_log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 10.0
# The calls have time-outs, but sending the offsets ignores its own, and after a restart of the broker it can wait for
# ever (librdkafka's issues 5456 and 5511). Only a new process gets out of that.
_PUBLISH_TIMEOUT_S = 15.0
_RETRIES = 5
_CLIENT = {
    "log_level": 2,  # what matters is raised
    "reconnect.backoff.max.ms": 1000,
    "retry.backoff.ms": 10,  # small transactions wait out several of these: 28 ms each in place of 110
}
_RECOVERY_BATCH = 10_000
_RECOVERY_WAIT_S = 0.05  # the client waits this long for a full batch, also at the end

T = TypeVar("T")


class Partition:
    """A partition of `sms.raw` and what belongs to it. Its methods are called one at a time.

    Args:
        number: The partition, the same in every topic.
        settings: The worker's.
        kafka: How to reach Kafka.
    """

    def __init__(self, number: int, settings: StreamSettings, kafka: KafkaSettings) -> None:
        self.number = number
        self._settings = settings
        self._kafka = kafka
        self._generation: int | None = None
        self._store: Store | None = None
        self._next: int | None = None  # the offset behind the last committed run; None before the first
        table = status_table(parse_meanings(settings.status_meanings))
        self._fold = Fold(Lifecycle(table), self._load, parse_zone(settings.zone), settings.cache_messages)

    def _load(self, key: bytes) -> bytes | None:
        return self._open_store.get(key)

    @property
    def _open_store(self) -> Store:
        if self._store is None:
            msg = f"partition {self.number} is used before it is owned"
            raise StreamError(msg)
        return self._store

    async def own(self, generation: int) -> None:
        """Take the partition over for a generation of the consumer group: fence earlier owners, recover the state.

        Raises:
            KafkaException: Kafka did not answer, after retries.
            StateError: The local state cannot be used.
        """
        if self._generation != generation:
            await asyncio.to_thread(self._own)
            self._generation = generation

    async def process(self, run: Sequence[Record]) -> None:
        """Fold one run and commit what it makes.

        Args:
            run: Records of this partition, by offset, fetched in the generation that it is owned for.

        Raises:
            OwnershipLostError: Another worker owns the partition.
            LostRecordsError: The run begins behind records that Kafka still has.
            StreamError: Kafka did not take the transaction, after retries.
        """
        for _ in range(_RETRIES):
            run = await self._unprocessed(run)
            if not run:
                return
            outputs = self._fold.run(run)
            try:
                publishing = asyncio.to_thread(self._publish, outputs, run[-1].offset + 1)
                offset = await asyncio.wait_for(publishing, _PUBLISH_TIMEOUT_S)
                break
            except TimeoutError as error:
                msg = f"Kafka did not commit a run of partition {self.number} within {_PUBLISH_TIMEOUT_S:g} s"
                raise StreamError(msg) from error
            except KafkaException as error:
                if error.args[0].fatal():
                    msg = f"partition {self.number} belongs to another worker: {error.args[0].str()}"
                    raise OwnershipLostError(msg) from error
                # Whether it was committed is open. A new producer settles that, and the committed offset tells.
                _log.warning("partition %d is taken over anew: %s", self.number, error.args[0].str())
                await asyncio.to_thread(self._own)
        else:
            msg = f"Kafka took no transaction of partition {self.number} in {_RETRIES} tries; see the broker's log"
            raise StreamError(msg)
        self._next = run[-1].offset + 1
        if outputs.versions:
            self._open_store.write(outputs.versions.items(), offset)

    def close(self) -> None:
        """Close the local store."""
        if self._store is not None:
            self._store.close()

    def _own(self) -> None:
        """Fence earlier owners, then read the committed offset and the state."""
        started = time.monotonic()
        options = self._kafka.confluent() | _CLIENT
        self._producer = Producer(
            options
            | {
                "transactional.id": f"{self._settings.group}-{self.number}",
                "transaction.timeout.ms": int(self._settings.transaction_timeout_s * 1000),
                "compression.type": "lz4",
                "linger.ms": 5,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        _retried(self._producer.init_transactions, _CALL_TIMEOUT_S)
        group = {"group.id": self._settings.group, "enable.auto.commit": False}
        # Offsets that wait for their transaction are not waited for: those of earlier owners were ended above. After a
        # crash of the broker its group coordinator can miss that, and a stable offset is then never to be had.
        with closing(Consumer(options | group | {"isolation.level": "read_uncommitted"})) as reader:
            self._group = reader.consumer_group_metadata()
            (committed,) = _retried(reader.committed, [TopicPartition(RAW, self.number)], _CALL_TIMEOUT_S)
            _, end = _retried(reader.get_watermark_offsets, TopicPartition(RAW, self.number), _CALL_TIMEOUT_S)
        self._next = committed.offset if 0 <= committed.offset <= end else None
        if committed.offset > end:
            _log.error(
                "partition %d of %s ends at offset %d, but the group %s has committed %d: the topic was made anew, or "
                "a worker of another Kafka wrote here. Everything that the partition holds is read again",
                *(self.number, RAW, end, self._settings.group, committed.offset),
            )
        if self._store is None:
            self._store = Store(self._state_folder(), self._topic_id())
        recovery = {
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 10,  # the end of the partition is told no sooner
        }
        with closing(Consumer(options | group | recovery)) as reader:
            recovered = self._recover(reader)
        self._fold.forget_cache()
        _log.info(
            "owns partition %d from offset %s, recovered %d versions in %.2f s",
            self.number,
            self._next,
            recovered,
            time.monotonic() - started,
        )

    def _state_folder(self) -> Path:
        return self._settings.state / self._settings.group / str(self.number)

    def _topic_id(self) -> str:
        if self._kafka.in_memory:
            # That broker names no ids, and its topics never outlive it; neither may the state.
            return f"in-memory broker at {self._kafka.bootstrap}, {time.time_ns()}"
        admin = AdminClient(self._kafka.confluent() | _CLIENT)  # its futures end with it
        described = admin.describe_topics(TopicCollection([MESSAGES]), request_timeout=_CALL_TIMEOUT_S)
        return str(_retried(described[MESSAGES].result, _CALL_TIMEOUT_S).topic_id)

    def _recover(self, reader: Consumer) -> int:
        """Read `sms.messages` from the store's offset to its end; return how many versions that was."""
        store = self._open_store
        position = store.offset
        reader.assign([TopicPartition(MESSAGES, self.number, position)])
        recovered = 0
        while True:
            versions: list[tuple[bytes, bytes | None]] = []
            ended = False
            for message in reader.consume(_RECOVERY_BATCH, _RECOVERY_WAIT_S):
                error = message.error()
                if error is None:
                    versions.append((message.key(), message.value()))
                    position = message.offset() + 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended = True
                else:
                    raise KafkaException(error)
            if versions:
                store.write(versions, position)
                recovered += len(versions)
            if ended:
                return recovered

    async def _unprocessed(self, run: Sequence[Record]) -> Sequence[Record]:
        """Return the part of a run that is not committed yet, and notice what is missing before it."""
        if self._next is None or not run:
            return run
        if run[0].offset > self._next:
            earliest = await asyncio.to_thread(self._earliest)
            if earliest <= self._next:
                msg = f"partition {self.number}: offsets {self._next} to {run[0].offset - 1} were not handed over"
                raise LostRecordsError(msg)
            _log.error(
                "partition %d of %s: offsets %d to %d were deleted by Kafka's retention before they were read, and are "
                "lost. Give the topic a longer retention.ms or the worker more power",
                self.number,
                RAW,
                self._next,
                run[0].offset - 1,
            )
        return [record for record in run if record.offset >= self._next] if run[0].offset < self._next else run

    def _earliest(self) -> int:
        with closing(Consumer(self._kafka.confluent() | _CLIENT | {"group.id": self._settings.group})) as reader:
            low, _ = _retried(reader.get_watermark_offsets, TopicPartition(RAW, self.number), _CALL_TIMEOUT_S)
            return int(low)

    def _publish(self, outputs: Outputs, next_offset: int) -> int:
        """Commit one transaction; return the offset behind the last version on `sms.messages`."""
        producer, last = self._producer, -1

        def delivered(error: KafkaError | None, message: Any) -> None:
            nonlocal last
            if error is None:
                last = message.offset()

        producer.begin_transaction()
        keys = list(outputs.versions)
        for key in keys[:-1]:
            producer.produce(MESSAGES, outputs.versions[key], key, self.number)
        if keys:
            # Idempotent producers keep the order of a partition, so the last one has the largest offset.
            producer.produce(MESSAGES, outputs.versions[keys[-1]], keys[-1], self.number, on_delivery=delivered)
        for letter in outputs.deadletters:
            producer.produce(DEADLETTERS, letter.value, letter.key, self.number, headers=letter.headers)
        producer.flush(_CALL_TIMEOUT_S)
        offsets = [TopicPartition(RAW, self.number, next_offset)]
        producer.send_offsets_to_transaction(offsets, self._group, _CALL_TIMEOUT_S)
        producer.commit_transaction(_CALL_TIMEOUT_S)
        return last + 1


def _retried(call: Callable[..., T], *arguments: Any) -> T:
    """Call, and call again while the client says that the error will pass.

    Raises:
        KafkaException: It did not pass, or is of another kind.
    """
    for attempt in range(_RETRIES):
        try:
            return call(*arguments)
        except KafkaException as error:
            if attempt == _RETRIES - 1 or not error.args[0].retriable():
                raise
            time.sleep(0.1 * 2**attempt)
    raise AssertionError
