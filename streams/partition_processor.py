"""One partition of a stage: owned by one worker at a time, processed run by run, each run in one Kafka transaction.

A stage reads one topic and writes a compacted one, its changelog, which is both its output and its state. Timers are
processed in the same way as runs: one call at a time, fenced, in a transaction.

Guarantees
    Exactly once: the outputs of a run and the offset behind it become visible together or not at all.
    Fenced: each partition has a transactional id of its own. A new owner's `init_transactions` ends every transaction
    of earlier owners and invalidates their producers *before* the new owner reads the offset and the state, so both are
    final. A worker that was paused and has lost its partition cannot write anything when it continues.
    Recoverable: the local store is written after the commit, with its offset, so it is never ahead of the changelog.
    `streams.recovery` reads the missing part from there.
    Isolated: a record that cannot be processed, whatever it raises, becomes a dead letter in the transaction of its
    run (`streams.processor.IsolatingProcessor`). Only errors of Kafka, a fence, or the disk end the worker.
    Gapless: a run of `sms.raw` that does not begin at the committed offset is detected, whatever lost the records.
    Topics that are written in transactions always have gaps.
    Of this Kafka: a committed offset names its topic, and counts for no other. The local state has the timestamp of the
    last record that it copied. If the changelog has another record at that offset, as after Kafka was restored from an
    older copy, the state is read again from the beginning.
"""

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from typing import Any

from confluent_kafka import KafkaError, TopicPartition

from core.kafka_retry import TRIES, retry_kafka_call
from core.topic_ids import to_url_safe_id
from streams import metrics
from streams.errors import LostRecordsError, StreamError, TransientKafkaError, typed_kafka_errors
from streams.processor import IsolatingProcessor, KafkaRecord, ProcessorOutput
from streams.recovery import CALL_TIMEOUT_S, PartitionRecovery, SourceOffsets
from streams.state_store import StateStore

_log = logging.getLogger(__name__)

# The calls have time-outs, but `send_offsets_to_transaction` ignores its own, and after a restart of the broker it can
# wait for ever (librdkafka's issues 5456 and 5511). Only a new process can recover from that.
PUBLISH_TIMEOUT_S = 15.0
# Timers in one transaction. It bounds the time of a transaction after a long pause of the worker.
_DUE_BATCH = 2_000


class PartitionProcessor:
    """Owner of one partition of a stage. Its methods are called one at a time.

    Args:
        recovery: The recovery of the partition.
    """

    def __init__(self, recovery: PartitionRecovery) -> None:
        self._recovery, self._stage = recovery, recovery.stage
        self._generation: int | None = None
        self._store: StateStore | None = None
        # The offset behind the last committed run, and the timestamp of its last record in milliseconds.
        self._next_offset = 0
        self._reached_at = 0
        # The ids of source and changelog at the time of the claim.
        self.topic_ids: dict[str, str] = {}
        self._processor = IsolatingProcessor(
            lambda load: self._stage.make_processor(load, recovery.settings), self._load_state
        )

    def __str__(self) -> str:
        return str(self._recovery)

    def next_offset(self, generation: int) -> int | None:
        """Return the offset behind the last committed run; None if the partition is not owned for a generation yet."""
        return self._next_offset if self._generation == generation else None

    def _load_state(self, key: bytes) -> bytes | None:
        return self._open_store.get(key)

    @property
    def _open_store(self) -> StateStore:
        if self._store is None:
            msg = f"{self} is used before it is claimed"
            raise StreamError(msg)
        return self._store

    async def claim_partition(self, generation: int) -> None:
        """Claim the partition for a generation of the consumer group: fence earlier owners, recover the state.

        Raises:
            KafkaException: Kafka did not answer, after retries.
            StateError: The local state cannot be used.
        """
        if self._generation != generation:
            await asyncio.to_thread(self._take_ownership)
            self._generation = generation

    async def process(self, run: Sequence[KafkaRecord]) -> None:
        """Process one run and commit its outputs.

        Args:
            run: Records of this partition, by offset, fetched in the generation of the claim.

        Raises:
            OwnershipLostError: Another worker owns the partition.
            LostRecordsError: The run begins behind records that Kafka still has.
            StreamError: Kafka did not accept the transaction, after retries.
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
        """Fire the timers that are due now, and commit their outputs.

        While there are records left to read, now is the timestamp of the last processed one, because the records left
        can report events before a timer.

        Args:
            clock: The time, in milliseconds.
            end: The offset behind the last record of the source.

        Raises:
            OwnershipLostError, StreamError: As in `process`.
        """
        now = clock if self._next_offset >= end else self._reached_at
        # Further timers of dropped states are ignored: they do not concern their marks.
        dropped: set[bytes] = set()
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
        """Commit to Kafka, then to the store. Return False if the partition had to be claimed again instead."""
        offset, last_at = 0, None
        if next_offset is not None or outputs.states or outputs.records:
            try:
                publishing = asyncio.to_thread(self._publish_transaction, outputs, next_offset)
                with typed_kafka_errors(self):
                    offset, last_at = await asyncio.wait_for(publishing, PUBLISH_TIMEOUT_S)
            except TimeoutError as error:
                msg = f"Kafka did not commit a run of {self} within {PUBLISH_TIMEOUT_S:g} s"
                raise StreamError(msg) from error
            except TransientKafkaError as error:
                # The result of the commit is unknown. A new producer ends the transaction, and the offset shows it.
                _log.warning("%s is claimed again: %s", self, error)
                await asyncio.to_thread(self._take_ownership)
                return False
        if outputs.states or done:
            self._open_store.write_states(outputs, offset or None, done, source=next_offset, last_at=last_at)
        return True

    def _refusal_error(self) -> StreamError:
        return StreamError(f"Kafka accepted no transaction of {self} in {TRIES} attempts; see the broker's log")

    def close(self) -> None:
        """Close the local store."""
        if self._store is not None:
            self._store.close()

    def _take_ownership(self) -> None:
        """Fence earlier owners, then read the committed offset and the state."""
        started = time.monotonic()
        self._producer = retry_kafka_call(self._recovery.fence_earlier_owners)
        source = self._recovery.read_source_offsets()
        self._group = source.group
        self.topic_ids = self._recovery.read_topic_ids()
        # Before the first commit, every record that Kafka still has must be read. So a gap is detected there too.
        self._next_offset = source.committed.offset if source.committed.offset >= 0 else source.low
        self._reset_foreign_offset(source)
        if self._store is None:
            self._store = self._recovery.open_store(self.topic_ids[self._stage.changelog])
        if self._store.source_offset > self._next_offset:
            _log.warning(
                "%s: Kafka lost a confirmed commit, or somebody set the offset back from %d to %d. "
                "The local state is read again",
                *(self, self._store.source_offset, self._next_offset),
            )
            self._store.clear()
        recovered = self._recovery.recover_store(self._store, self._processor.next_timer)
        self._processor.clear_cache()
        _log.info(
            "owns %s from offset %s, recovered %d states in %.2f s",
            *(self, self._next_offset, recovered, time.monotonic() - started),
        )

    def _reset_foreign_offset(self, source: SourceOffsets) -> None:
        """Commit the first offset of the partition, and raise, if the committed one belongs to another topic."""
        committed, source_id = source.committed, self.topic_ids[self._stage.source]
        # Offsets that a person has set have no metadata.
        if committed.offset <= source.end and to_url_safe_id(committed.metadata or source_id) == source_id:
            return
        # Faust has begun to read at that offset, so it must be corrected in Kafka and read again.
        self._publish_transaction(ProcessorOutput(), source.low)
        msg = (
            f"{self} ends at offset {source.end}, and the group {self._recovery.settings.group} had committed "
            f"{committed.offset} of another topic of that name: it was created again, or a worker of another Kafka "
            f"wrote here. After a restart, this worker reads all records of the partition, from offset {source.low} on"
        )
        raise StreamError(msg)

    async def _skip_processed(self, run: Sequence[KafkaRecord]) -> Sequence[KafkaRecord]:
        """Return the part of a run that is not committed yet, and detect missing records before it."""
        if not run:
            return run
        if run[0].offset < self._next_offset:
            # The records were read again after a rebalance, or the topic was replaced or restored from an older copy.
            # Kafka's committed offset and the id of its topic show which.
            await asyncio.to_thread(self._take_ownership)
        if run[0].offset > self._next_offset and not self._stage.has_gaps:
            source = await asyncio.to_thread(self._recovery.read_source_offsets)
            if source.low <= self._next_offset:
                msg = f"{self}: offsets {self._next_offset} to {run[0].offset - 1} were skipped by the client"
                raise LostRecordsError(msg)
            _log.error(
                "%s: offsets %d to %d were deleted by Kafka's retention before they were read, and are lost. Give the "
                "topic a longer retention.ms, or start more workers",
                *(self, self._next_offset, run[0].offset - 1),
            )
        return [record for record in run if record.offset >= self._next_offset]

    def _publish_transaction(self, outputs: ProcessorOutput, next_offset: int | None) -> tuple[int, int | None]:
        """Commit one transaction; return the offset behind its last record on the changelog, and the timestamp.

        Without such a record, they are 0 and None.
        """
        producer, last, last_at = self._producer, -1, None

        def record_delivery(error: KafkaError | None, message: Any) -> None:
            nonlocal last, last_at
            if error is None:
                last, last_at = message.offset(), message.timestamp()[1]

        producer.begin_transaction()
        produce, changelog, number = producer.produce, self._stage.changelog, self._recovery.number
        for key, value, _ in outputs.states[:-1]:
            produce(changelog, value, key, number)
        for key, value, _ in outputs.states[-1:]:
            # Idempotent producers keep the order of a partition, so the last one has the largest offset.
            produce(changelog, value, key, number, on_delivery=record_delivery)
        for topic, other_key, value, partition, headers in outputs.records:
            produce(topic, value, other_key, -1 if partition is None else partition, headers=headers)
        producer.flush(CALL_TIMEOUT_S)
        if next_offset is not None:
            source = self._stage.source
            offsets = [TopicPartition(source, number, next_offset, self.topic_ids[source])]
            producer.send_offsets_to_transaction(offsets, self._group, CALL_TIMEOUT_S)
        producer.commit_transaction(CALL_TIMEOUT_S)
        return last + 1, last_at
