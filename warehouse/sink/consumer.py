"""The lander, the Kafka-to-Parquet sink: lands each record of Kafka exactly once.

It derives its start offsets from the files (`warehouse.sink.parquet_files`). The offsets that it commits to Kafka are
only there for those who watch the lag. So a kill at any point costs nothing but reading again. If two landers hold one
partition, as after a pause long enough for Kafka to reassign it, one of them lands a range and the other finds it
landed.

An offset has a meaning only within one incarnation of its topic. So before a partition is read, the lander finds out
which incarnation Kafka holds and how much of it was landed (`warehouse.sink.topic_incarnations`). Before a range is
landed, it reads the topic's id again. If the id has changed, the lander drops the records that it read, and locates the
partition again. After all brokers were down, Kafka may have come back as an older copy of itself. Then the lander drops
everything that it read, and begins again with a new client. (The old client would go on waiting for the leader epochs
that it has seen.)
"""

import logging
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from core.consumer_lag import records_behind
from core.kafka_settings import KafkaSettings
from core.stop_request import StopRequest
from core.topic_ids import TopicIds
from core.topics import RAW
from warehouse import metrics
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.errors import BucketAwayError
from warehouse.settings import LanderSettings
from warehouse.sink.assigned_partitions import AssignedPartitions, PartitionKey
from warehouse.sink.kafka_client import ANSWER_S, KafkaStatus, create_consumer
from warehouse.sink.kafka_log_reader import KafkaLogReader
from warehouse.sink.parquet_files import open_landing_store
from warehouse.sink.store_status import StoreStatus
from warehouse.sink.topic_incarnations import locate_log_position

_log = logging.getLogger(__name__)

# How long a request to stop can stay unnoticed.
_POLL_S: Final = 0.25
_POLL_RECORDS: Final = 10_000


class ParquetLander:
    """Lands the partitions that Kafka's group assigns to it, until it is stopped.

    Guarantees: every committed record of each topic is in one file, once, and a file is seen complete or not at all.
    Memory is bounded by the settings and by what the client reads ahead.
    """

    def __init__(
        self,
        settings: LanderSettings,
        kafka: KafkaSettings,
        stop: StopRequest,
        ready: Callable[[], None] = lambda: None,
        landed: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._kafka, self._stop = settings, kafka, stop
        self._on_ready, self._on_landed = ready, landed
        self._store = open_landing_store(settings.data)
        self._store_status = StoreStatus(self._store, settings.retry_s, stop)
        self._kafka_status = KafkaStatus(kafka.bootstrap)
        self._topic_ids = TopicIds(kafka)
        self._consumer: Any = None
        self._partitions = AssignedPartitions(settings, self._store_status, self._topic_ids, self._kafka_status)
        self._was_located = False
        # The client reports assigned and revoked partitions from within a poll. The records that this poll returns may
        # be of either assignment.
        self._assignment_generation = 0
        self._committed_offsets: dict[PartitionKey, int] = {}
        self._transaction_ends: dict[PartitionKey, int] = {}
        """Offsets behind the transaction markers that were read last."""
        self._reported_lost_until: dict[PartitionKey, int] = {}

    def run(self) -> None:
        """Land until a stop is requested, then land the buffers and leave the group.

        Raises:
            DamagedFileError: A file that holds a start offset cannot be read.
            KafkaRefusedError: Kafka denies access.
            OSError: The files cannot be listed.
        """
        self._store_status.wait_until_writable()
        if self._stop.is_set():
            return
        self._connect_consumer()
        try:
            self._run_flush_loop()
            self._flush_buffers()
        finally:
            # Without buffers: to leave the group with some would land them.
            self._on_partitions_lost(self._consumer, [])
            self._consumer.close()

    # Polling and flushing

    def _run_flush_loop(self) -> None:
        interval = self._settings.flush_interval_s
        next_flush_at = time.monotonic() + interval
        idle = True
        while not self._stop.is_set():
            if self._kafka_status.all_brokers_down:
                self._reconnect_consumer()
            self._locate_partitions()
            idle &= not self._poll_records(min(max(next_flush_at - time.monotonic(), 0), _POLL_S))
            now = time.monotonic()
            if now < next_flush_at and (self._store_status.retry_s or not self._partitions.are_full()):
                continue
            # Full buffers are landed before their time. They leave the time of the next landing as it is.
            if not self._flush_buffers():
                next_flush_at = now + self._store_status.retry_s
            elif now >= next_flush_at:
                self._commit_offsets()
                if idle:
                    self._kafka_status.probe(self._consumer)
                # A landing that took longer than the interval skips those that it missed.
                next_flush_at += interval * (1 + (now - next_flush_at) // interval)
                idle = True

    def _poll_records(self, seconds: float) -> bool:
        """Read records into the buffers; return whether there were any."""
        generation = self._assignment_generation
        messages: list[Any] = []
        with self._kafka_status.watch_request():
            messages = self._consumer.consume(_POLL_RECORDS, seconds)
        self._kafka_status.raise_refusal()
        if generation != self._assignment_generation:
            # It is unknown whether these records belong to the old or the new assignment. They are read again.
            if messages:
                self._seek_to_buffer_ends()
            return False
        taken = self._buffer_messages(messages)
        self._kafka_status.raise_refusal()
        return taken

    def _buffer_messages(self, messages: list[Any]) -> bool:
        runs: dict[PartitionKey, list[Any]] = defaultdict(list)
        # Errors are handled after the records, whose offsets they follow.
        errors = []
        for message in messages:
            if message.error() is None:
                runs[message.topic(), message.partition()].append(message)
            else:
                errors.append(message)
        self._partitions.append_records(runs)
        for message in errors:
            key = message.topic(), message.partition()
            if message.error().code() == KafkaError._PARTITION_EOF:
                self._transaction_ends[key] = message.offset()
            elif message.error().code() != KafkaError._AUTO_OFFSET_RESET:
                self._kafka_status.on_error(message.error())
            elif key in self._partitions.buffers:
                self._handle_out_of_range(key)
        if runs:
            self._kafka_status.mark_available()
        return bool(runs)

    def _flush_buffers(self) -> bool:
        """Land all buffers. Return False if the store does not take them. They are still held then."""
        if self._kafka_status.all_brokers_down:
            return True
        buffers = self._partitions.buffers
        before = dict(buffers)
        is_landed = self._partitions.land_buffers()
        moved = any(key not in buffers or buffers[key].next_offset != b.next_offset for key, b in before.items())
        if not is_landed:
            self._pause_or_resume()
        elif self._store_status.retry_s:
            is_landed = self._store_status.probe()
            moved = True
        if moved:
            self._seek_to_buffer_ends()
        if is_landed:
            self._on_landed()
        return is_landed

    def _commit_offsets(self) -> None:
        """Commit the offsets for those who watch the lag. All records that were read are landed by now."""
        read = {
            key: max(buffer.next_offset, self._transaction_ends.get(key, 0))
            for key, buffer in self._partitions.buffers.items()
        }
        moved = {key: offset for key, offset in read.items() if self._committed_offsets.get(key) != offset}
        # The partitions may be revoked meanwhile.
        with suppress(KafkaException):
            ends = {key: self._consumer.get_watermark_offsets(TopicPartition(*key), cached=True)[1] for key in read}
            # An end is below 0 until it is known. The new owners of other partitions report those.
            metrics.set_lander_lag({key: records_behind(end, read[key]) for key, end in ends.items() if end >= 0})
        if moved:
            # A commit fails during a rebalance.
            with suppress(KafkaException):
                self._consumer.commit(offsets=[TopicPartition(*key, offset) for key, offset in moved.items()])
                self._committed_offsets |= moved

    # Assignment and positions

    def _on_partitions_assigned(self, consumer: Any, assigned: list[Any]) -> None:
        """Record partitions. They are read once their start offset is known."""
        self._assignment_generation += 1
        self._partitions.unlocated |= {(p.topic, p.partition) for p in assigned}
        self._was_located = False
        self._seek_to_buffer_ends()

    def _locate_partitions(self) -> None:
        """Find the start offsets of partitions that were assigned, or whose topic was replaced."""
        unlocated = self._partitions.unlocated
        if not unlocated:
            return
        try:
            with self._kafka_status.watch_request():
                ids = self._topic_ids.read_ids({topic for topic, _ in unlocated})
                with KafkaLogReader(self._kafka) as reader:
                    for topic, partition in sorted(unlocated):
                        # A topic that was deleted and not created again yet has no id.
                        if topic in ids:
                            position = locate_log_position(self._store, reader, topic, partition, ids[topic])
                            self._partitions.start_partition(position)
        except BucketAwayError as error:
            self._store_status.wait_after_failure(error)
        self._seek_to_buffer_ends()
        if not unlocated and not self._was_located:
            self._was_located = True
            self._kafka_status.mark_available()
            _log.info("landing %d partitions in %s", len(self._partitions.buffers), self._store)
            self._on_ready()

    def _on_partitions_revoked(self, consumer: Any, revoked: list[Any]) -> None:
        """Land the buffers. The next owner reads again what the store does not take now."""
        if not self._kafka_status.all_brokers_down:
            self._partitions.land_buffers()
        self._on_partitions_lost(consumer, revoked)

    def _on_partitions_lost(self, consumer: Any, lost: list[Any]) -> None:
        """Drop the buffers. Other landers read the records again already."""
        self._assignment_generation += 1
        self._partitions.clear()
        self._committed_offsets.clear()
        self._transaction_ends.clear()

    def _seek_to_buffer_ends(self) -> None:
        """Make the client read each partition from the end of its buffer, whatever it has read ahead."""
        self._transaction_ends.clear()
        buffers = self._partitions.buffers
        self._consumer.assign([TopicPartition(*key, buffer.next_offset) for key, buffer in buffers.items()])
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        """Make the client read nothing while nothing can be landed.

        The client keeps a partition paused over a rebalance that assigns it to the same member again. So each
        assignment is followed by this.
        """
        partitions = [TopicPartition(*key) for key in self._partitions.buffers]
        if self._store_status.retry_s:
            self._consumer.pause(partitions)
        else:
            self._consumer.resume(partitions)

    def _handle_out_of_range(self, key: PartitionKey) -> None:
        """Handle a position at which Kafka has no record: it deleted the records, or never had them."""
        buffer = self._partitions.buffers[key]
        # After a failure, to read on leads here again.
        with self._kafka_status.watch_request():
            earliest, end = self._consumer.get_watermark_offsets(TopicPartition(*key), timeout=ANSWER_S)
            if end < buffer.next_offset:
                self._partitions.drop_buffer(key)
            elif earliest > buffer.next_offset:
                self._report_lost_records(key, buffer.next_offset, earliest)
                # The range still begins where the last one ended, so that concurrent landers meet in one file name.
                buffer.next_offset = earliest
        self._seek_to_buffer_ends()

    def _report_lost_records(self, key: PartitionKey, start: int, earliest: int) -> None:
        # Until a later range is landed, each assignment begins at the same offset. The loss is reported once.
        if not start or self._reported_lost_until.get(key) == earliest:
            return
        self._reported_lost_until[key] = earliest
        metrics.LOST_RECORDS.inc(earliest - start)
        _log.error(
            "LOST: %s partition %d, offsets %d to %d: Kafka deleted them before they were landed. Going on at "
            "%d. Raise the topic's retention.ms, or keep a lander running.",
            *(*key, start, earliest - 1, earliest),
        )

    # Connection

    def _connect_consumer(self) -> None:
        self._consumer = create_consumer(self._settings, self._kafka, self._kafka_status)
        self._consumer.subscribe(
            list(DATASET_BY_TOPIC),
            on_assign=self._on_partitions_assigned,
            on_revoke=self._on_partitions_revoked,
            on_lost=self._on_partitions_lost,
        )

    def _reconnect_consumer(self) -> None:
        """Begin again with a new client once Kafka answers."""
        with self._kafka_status.watch_request():
            self._topic_ids.read_ids([RAW])
            self._kafka_status.all_brokers_down = False
        if self._kafka_status.all_brokers_down:
            return
        self._on_partitions_lost(self._consumer, [])
        self._consumer.close()
        self._connect_consumer()
