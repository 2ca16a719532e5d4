"""One partition of a stage: owned by one worker at a time, folded run by run, each run in one Kafka transaction.

A stage reads one topic and writes a compacted one, its changelog, which is at once its output and its state. What the
clock brings about goes the same way as a run: one call at a time, fenced, in a transaction.

Guarantees
    Exactly once: the outputs of a run and the offset behind it become visible together or not at all.
    Fenced: each partition has a transactional id of its own. A new owner's `init_transactions` ends every transaction
    of earlier owners and makes their producers useless *before* the new owner reads the offset and the state, so what
    it reads is final. A worker that was stopped, lost its partition and wakes up cannot write anything.
    Recoverable: the local store is written after the commit and holds the offset it reached, so it is never ahead of
    the changelog, and what it lacks is read from there.
    Isolated: a record that cannot be processed, whatever it raises, becomes a dead letter in the transaction of its run
    (`streams.isolating_processor`). What ends the worker is Kafka, a fence, or its own disk.
    Gapless: a run of `sms.raw` that does not begin where the committed offset stands is noticed, whoever lost the
    records. Topics that are written in transactions have gaps by nature.
    Of this Kafka: a committed offset names the topic that it belongs to, and counts for no other. The local state keeps
    the timestamp of the last record that it copied. If the changelog has another record at that offset, as after Kafka
    was restored from an older copy, the state is read again from the beginning.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import closing
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from core.kafka_retry import TRIES, retry_kafka_call
from core.kafka_settings import KafkaSettings
from core.topic_ids import TopicIds, to_url_safe_id
from core.topics import DEADLETTERS
from streams import metrics
from streams.errors import LostRecordsError, OwnershipLostError, StreamError
from streams.isolating_processor import IsolatingProcessor
from streams.processor import KafkaRecord, ProcessorOutput, StateUpdate
from streams.settings import StreamSettings
from streams.state_store import StateStore
from streams.topology import ProcessingStage

_log = logging.getLogger(__name__)

_CALL_TIMEOUT_S = 10.0
# The calls have time-outs, but sending the offsets ignores its own, and after a restart of the broker it can wait for
# ever (librdkafka's issues 5456 and 5511). Only a new process gets out of that.
PUBLISH_TIMEOUT_S = 15.0
_CLIENT = {
    "log_level": 2,  # what matters is raised
    "reconnect.backoff.max.ms": 1000,
    "retry.backoff.ms": 10,  # small transactions wait out several of these: 28 ms each in place of 110
}
_DUE_BATCH = 2_000
_RECOVERY_BATCH = 10_000
_RECOVERY_WAIT_S = 0.05  # the client waits this long for a full batch, also at the end


class PartitionProcessor:
    """A partition of a stage's source and what belongs to it. Its methods are called one at a time.

    Args:
        stage: The stage.
        number: The partition, the same in source and changelog.
        settings: The worker's.
        kafka: How to reach Kafka.
    """

    def __init__(self, stage: ProcessingStage, number: int, settings: StreamSettings, kafka: KafkaSettings) -> None:
        self.number = number
        self._stage = stage
        self._settings = settings
        self._kafka = kafka
        self._generation: int | None = None
        self._store: StateStore | None = None
        self._next_offset = 0  # the offset behind the last committed run
        self._reached_at = 0  # when the last record of it was written, in milliseconds
        self._topic_ids: dict[str, str] = {}
        self._processor = IsolatingProcessor(lambda load: stage.make_processor(load, settings), self._load_state)

    def __str__(self) -> str:
        return f"partition {self.number} of {self._stage.source}"

    def next_offset(self, generation: int) -> int | None:
        """Return the offset behind the last committed run; None if the partition is not owned for a generation yet."""
        return self._next_offset if self._generation == generation else None

    def _load_state(self, key: bytes) -> bytes | None:
        return self._open_store.get(key)

    @property
    def _open_store(self) -> StateStore:
        if self._store is None:
            msg = f"{self} is used before it is owned"
            raise StreamError(msg)
        return self._store

    async def claim_partition(self, generation: int) -> None:
        """Take the partition over for a generation of the consumer group: fence earlier owners, recover the state.

        Raises:
            KafkaException: Kafka did not answer, after retries.
            StateError: The local state cannot be used.
        """
        if self._generation != generation:
            await asyncio.to_thread(self._take_ownership)
            self._generation = generation

    async def process(self, run: Sequence[KafkaRecord]) -> None:
        """Fold one run and commit what it makes.

        Args:
            run: Records of this partition, by offset, fetched in the generation that it is owned for.

        Raises:
            OwnershipLostError: Another worker owns the partition.
            LostRecordsError: The run begins behind records that Kafka still has.
            StreamError: Kafka did not take the transaction, after retries.
        """
        for _ in range(TRIES):
            run = await self._skip_processed(run)
            if not run:
                return
            next_offset = run[-1].offset + 1
            outputs = self._processor.process(run)
            if await self._commit_outputs(outputs, next_offset):
                metrics.count_commit(self._stage.source, len(run), outputs)
                self._next_offset, self._reached_at = next_offset, run[-1].timestamp
                return
        raise self._refusal_error()

    async def on_timer(self, clock: int, end: int) -> None:
        """Do what is due by now, and commit what it makes.

        As long as there are records to read, now is when the last one was written: what they report has happened.

        Args:
            clock: The time, in milliseconds.
            end: The offset behind the last record of the source.

        Raises:
            As `process` does.
        """
        now = clock if self._next_offset >= end else self._reached_at
        dropped: set[bytes] = set()  # what else was due of those says nothing about their marks
        for _ in range(TRIES):
            while entries := self._open_store.due_timers(now, _DUE_BATCH):
                keys = [key for key in dict.fromkeys(entries.values()) if key not in dropped]
                outputs = self._processor.on_timer(keys, now)
                if not await self._commit_outputs(outputs, None, entries):
                    break
                metrics.count_commit(self._stage.source, 0, outputs)
                dropped.update(key for key, value, _ in outputs.states if value is None)
            else:
                return
        raise self._refusal_error()

    async def _commit_outputs(
        self, outputs: ProcessorOutput, next_offset: int | None, done: Collection[bytes] = ()
    ) -> bool:
        """Commit to Kafka, then to the store. False when the partition had to be taken over anew instead."""
        offset, last_at = 0, None
        if next_offset is not None or outputs.states or outputs.records:
            try:
                publishing = asyncio.to_thread(self._publish_transaction, outputs, next_offset)
                offset, last_at = await asyncio.wait_for(publishing, PUBLISH_TIMEOUT_S)
            except TimeoutError as error:
                msg = f"Kafka did not commit a run of {self} within {PUBLISH_TIMEOUT_S:g} s"
                raise StreamError(msg) from error
            except KafkaException as error:
                if error.args[0].fatal():
                    msg = f"{self} belongs to another worker: {error.args[0].str()}"
                    raise OwnershipLostError(msg) from error
                # Whether it was committed is open. A new producer settles that, and the committed offset tells.
                _log.warning("%s is taken over anew: %s", self, error.args[0].str())
                await asyncio.to_thread(self._take_ownership)
                return False
        if outputs.states or done:
            self._open_store.write_states(
                outputs.states,
                offset or None,
                done,
                rescheduled=outputs.rescheduled,
                expired=outputs.expired,
                source=next_offset,
                last_at=last_at,
            )
        return True

    def _refusal_error(self) -> StreamError:
        return StreamError(f"Kafka took no transaction of {self} in {TRIES} tries; see the broker's log")

    def close(self) -> None:
        """Close the local store."""
        if self._store is not None:
            self._store.close()

    def _take_ownership(self) -> None:
        """Fence earlier owners, then read the committed offset and the state."""
        started = time.monotonic()
        options = self._kafka.confluent_options() | _CLIENT
        self._producer = retry_kafka_call(self._fence_earlier_owners, options)
        group = {"group.id": self._settings.group, "enable.auto.commit": False}
        # Offsets that wait for their transaction are not waited for: those of earlier owners were ended above. After a
        # crash of the broker its group coordinator can miss that, and a stable offset is then never to be had.
        source = TopicPartition(self._stage.source, self.number)
        with closing(Consumer(options | group | {"isolation.level": "read_uncommitted"})) as reader:
            self._group = reader.consumer_group_metadata()
            (committed,) = retry_kafka_call(reader.committed, [source], _CALL_TIMEOUT_S)
            low, end = retry_kafka_call(reader.get_watermark_offsets, source, _CALL_TIMEOUT_S)
        self._topic_ids = self._read_topic_ids()
        source_id, changelog_id = (self._topic_ids[name] for name in (self._stage.source, self._stage.changelog))
        # Before the first commit, what Kafka still has is to be read whole: so a gap is noticed there too.
        self._next_offset = committed.offset if committed.offset >= 0 else low
        # Offsets that a person has set name no topic.
        if committed.offset > end or to_url_safe_id(committed.metadata or source_id) != source_id:
            # Faust has begun to read where that offset says, so it has to be mended in Kafka, and read again.
            self._publish_transaction(ProcessorOutput(), low)
            msg = (
                f"{self} ends at offset {end}, and the group {self._settings.group} had committed {committed.offset} "
                "of another topic of that name: it was made anew, or a worker of another Kafka wrote here. Started "
                f"again, this worker reads all that the partition holds, from offset {low} on"
            )
            raise StreamError(msg)
        if self._store is None:
            folder = self._settings.state / self._settings.group / self._stage.name / str(self.number)
            # The in-memory broker drops the oldest records of a long log: what is left of it is all that counts.
            copied = f"{changelog_id}, {time.time_ns()}" if self._kafka.in_memory else changelog_id
            self._store = StateStore(folder, copied)
        if self._store.source_offset > self._next_offset:
            _log.warning(
                "%s: Kafka took a commit back that it had confirmed, or somebody set the offset back from %d to %d. "
                "The local state is read anew",
                *(self, self._store.source_offset, self._next_offset),
            )
            self._store.clear()
        recovery = {
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "fetch.queue.backoff.ms": 5,
            "fetch.wait.max.ms": 10,  # the end of the partition is told no sooner
        }
        with closing(Consumer(options | group | recovery)) as reader:
            # The in-memory broker answers with timestamps that are not those of the records.
            if self._store.offset and not self._kafka.in_memory and not self._is_store_valid(reader):
                _log.warning(
                    "%s: the local state was copied from other records than %s has now: Kafka was restored from an "
                    "older copy, or has compacted what was copied last. It is read again from Kafka",
                    *(self, self._stage.changelog),
                )
                self._store.clear()
            recovered = self._recover_state(reader)
        self._processor.clear_cache()
        _log.info(
            "owns %s from offset %s, recovered %d states in %.2f s",
            *(self, self._next_offset, recovered, time.monotonic() - started),
        )

    def _fence_earlier_owners(self, options: dict[str, Any]) -> Producer:
        """Return a producer that has ended the transactions of all earlier ones, and made them useless."""
        producer = Producer(
            options
            | {
                "transactional.id": f"{self._settings.group}-{self._stage.name}-{self.number}",
                "transaction.timeout.ms": int(self._settings.transaction_timeout_s * 1000),
                "compression.type": "lz4",
                "partitioner": "murmur2_random",  # as Kafka's own clients do
                "linger.ms": 5,
                "queue.buffering.max.messages": 1_000_000,
            }
        )
        producer.init_transactions(_CALL_TIMEOUT_S)
        if self._kafka.in_memory:
            return producer  # it shows what was aborted, and keeps nothing over a crash
        # A broker that crashed while it committed can count a transaction as complete though some partitions were never
        # told. What it left there would become visible with our next commit: an abort that reaches them hides it.
        producer.begin_transaction()
        for topic in (self._stage.changelog, DEADLETTERS):
            producer.produce(topic, b"", b"", self.number)
        for topic in self._stage.output_topics:
            for number in producer.list_topics(topic, _CALL_TIMEOUT_S).topics[topic].partitions:
                producer.produce(topic, b"", b"", number)
        producer.flush(_CALL_TIMEOUT_S)
        producer.abort_transaction(_CALL_TIMEOUT_S)
        return producer

    @property
    def topic_ids(self) -> dict[str, str]:
        """The ids of source and changelog as they were when the partition was taken over."""
        return self._topic_ids

    def _read_topic_ids(self) -> dict[str, str]:
        """Return the ids of source and changelog.

        Raises:
            StreamError: One of them does not exist.
            KafkaException: Kafka does not answer.
        """
        names = (self._stage.source, self._stage.changelog)
        found = retry_kafka_call(TopicIds(self._kafka).read_ids, names)
        for name in names:
            if name not in found:
                msg = f"there is no topic {name} any more. Start `smspulse stream` again, which creates it"
                raise StreamError(msg)
        return found

    def _is_store_valid(self, reader: Consumer) -> bool:
        """Return whether the changelog has the last record of which the store holds the state."""
        last = self._open_store.offset - 1
        changelog = TopicPartition(self._stage.changelog, self.number, last)
        low, end = retry_kafka_call(reader.get_watermark_offsets, changelog, _CALL_TIMEOUT_S)
        if not low <= last < end:
            return False
        reader.assign([changelog])
        found = reader.consume(1, _CALL_TIMEOUT_S)
        reader.unassign()
        if not found:
            raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        if (error := found[0].error()) is not None:
            if error.code() == KafkaError._PARTITION_EOF:
                return False
            raise KafkaException(error)
        # Releases up to 0.1 kept no timestamp.
        last_at = self._open_store.last_at
        return found[0].offset() == last and last_at in {None, found[0].timestamp()[1]}

    def _recover_state(self, reader: Consumer) -> int:
        """Read the changelog from the store's offset to its end; return how many records that was."""
        store, due = self._open_store, self._processor.next_timer
        position = store.offset
        reader.assign([TopicPartition(self._stage.changelog, self.number, position)])
        recovered = foreign = 0
        last_at = None
        while True:
            states: list[StateUpdate] = []
            ended = False
            for message in reader.consume(_RECOVERY_BATCH, _RECOVERY_WAIT_S):
                error = message.error()
                if error is None:
                    value, position, last_at = message.value(), message.offset() + 1, message.timestamp()[1]
                    try:
                        states.append((message.key(), value, due(value, last_at)))
                    except Exception:  # whatever somebody else's value raises, it is no state of ours
                        foreign += 1
                elif error.code() == KafkaError._PARTITION_EOF:
                    ended = True
                else:
                    raise KafkaException(error)
            if states or foreign:
                store.write_states(states, position, last_at=last_at)
                recovered += len(states)
            if ended:
                if foreign:
                    _log.error(
                        "%d records of %s, partition %d, are no states of this stream and are passed over: find out "
                        "who else writes there",
                        *(foreign, self._stage.changelog, self.number),
                    )
                return recovered

    async def _skip_processed(self, run: Sequence[KafkaRecord]) -> Sequence[KafkaRecord]:
        """Return the part of a run that is not committed yet, and notice what is missing before it."""
        if not run:
            return run
        if run[0].offset < self._next_offset:
            # Read again after a rebalance; or of a topic that was replaced, or restored from an older copy. Kafka's
            # committed offset, and the id of its topic, tell.
            await asyncio.to_thread(self._take_ownership)
        if run[0].offset > self._next_offset and not self._stage.has_gaps:
            earliest = await asyncio.to_thread(self._read_earliest_offset)
            if earliest <= self._next_offset:
                msg = f"{self}: offsets {self._next_offset} to {run[0].offset - 1} were not handed over"
                raise LostRecordsError(msg)
            _log.error(
                "%s: offsets %d to %d were deleted by Kafka's retention before they were read, and are lost. Give the "
                "topic a longer retention.ms or the worker more power",
                *(self, self._next_offset, run[0].offset - 1),
            )
        return (
            [record for record in run if record.offset >= self._next_offset]
            if run[0].offset < self._next_offset
            else run
        )

    def _read_earliest_offset(self) -> int:
        with closing(
            Consumer(self._kafka.confluent_options() | _CLIENT | {"group.id": self._settings.group})
        ) as reader:
            source = TopicPartition(self._stage.source, self.number)
            low, _ = retry_kafka_call(reader.get_watermark_offsets, source, _CALL_TIMEOUT_S)
            return int(low)

    def _publish_transaction(self, outputs: ProcessorOutput, next_offset: int | None) -> tuple[int, int | None]:
        """Commit one transaction; return the offset behind the last record of the changelog, and its timestamp.

        Without any record there, they are 0 and None.
        """
        producer, last, last_at = self._producer, -1, None

        def record_delivery(error: KafkaError | None, message: Any) -> None:
            nonlocal last, last_at
            if error is None:
                last, last_at = message.offset(), message.timestamp()[1]

        producer.begin_transaction()
        produce, changelog, number = producer.produce, self._stage.changelog, self.number
        for key, value, _ in outputs.states[:-1]:
            produce(changelog, value, key, number)
        for key, value, _ in outputs.states[-1:]:
            # Idempotent producers keep the order of a partition, so the last one has the largest offset.
            produce(changelog, value, key, number, on_delivery=record_delivery)
        for topic, other_key, value, partition, headers in outputs.records:
            produce(topic, value, other_key, -1 if partition is None else partition, headers=headers)
        producer.flush(_CALL_TIMEOUT_S)
        if next_offset is not None:
            offsets = [
                TopicPartition(self._stage.source, self.number, next_offset, self._topic_ids[self._stage.source])
            ]
            producer.send_offsets_to_transaction(offsets, self._group, _CALL_TIMEOUT_S)
        producer.commit_transaction(_CALL_TIMEOUT_S)
        return last + 1, last_at
