"""The lander: takes records from Kafka and lands them as files, each record exactly once.

Where it goes on is what the files say (`warehouse.sink.parquet_files`); the offset that it commits to Kafka is advice,
for those who watch the lag. So a kill at any point costs nothing but reading again, and of two landers that hold one
partition, as after a pause long enough for Kafka to give it away, one lands a range and the other finds it landed.

An offset means something only within one incarnation of its topic. So before a partition is read, the lander finds out
which one Kafka holds and what of it was landed (`warehouse.sink.topic_incarnations`). Before a range is landed, it asks
for the topic's id again: if that has changed since, what was read is dropped, and the partition is located again. After
all brokers were down, Kafka may have come back as an older copy of itself: then everything that was read is dropped,
and the lander begins again with a new client. (The old one would go on waiting for the leader epochs that it knows.)
"""

import gc
import logging
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any, Final

import pyarrow as pa
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from core.consumer_lag import records_behind
from core.kafka_settings import KafkaSettings
from core.stop_request import StopRequest
from core.topic_ids import TopicIds
from core.topics import RAW
from gateway.payloads import parse_zone
from warehouse import metrics
from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.errors import KafkaRefusedError, OvertakenError, WarehouseError
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog, parse_cut_count, parse_topic_id
from warehouse.settings import LanderSettings
from warehouse.sink.record_conversion import PartitionRecords
from warehouse.sink.storage import is_bucket_address, open_landing_store
from warehouse.sink.table_building import build_table
from warehouse.sink.topic_incarnations import KafkaLogReader, LogPosition, locate_log_position

_log = logging.getLogger(__name__)

_POLL_S: Final = 0.25  # how long a request to stop can go unnoticed
_ANSWER_S: Final = 3.0
_MAX_RETRY_S: Final = 10.0
_POLL_RECORDS: Final = 10_000
_CLIENT: Final = {
    "client.id": "smspulse-lander",
    "isolation.level": "read_committed",
    "enable.auto.commit": False,
    "enable.partition.eof": True,  # says how far transaction markers are read, which are no records
    "auto.offset.reset": "error",  # positions outside Kafka's range are decided on, not guessed
    "partition.assignment.strategy": "roundrobin",
    "topic.metadata.refresh.interval.ms": 10_000,  # how long a new topic can go unnoticed
    "reconnect.backoff.max.ms": 1_000,
    # What is read ahead, in bytes of records; the client's own pause between two fetches would halve the pace.
    "queued.max.messages.kbytes": 16_384,
    "fetch.queue.backoff.ms": 5,
    "log_level": 2,  # what matters is said by the lander
}
_FATAL_ERROR_CODES: Final = {
    KafkaError._FATAL,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError._AUTHENTICATION,
    KafkaError.SASL_AUTHENTICATION_FAILED,
    KafkaError.UNSUPPORTED_SASL_MECHANISM,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
    KafkaError.INCONSISTENT_GROUP_PROTOCOL,
    # Records that arrive damaged would be passed over.
    KafkaError._BAD_MSG,
    KafkaError._BAD_COMPRESSION,
    KafkaError._NOT_IMPLEMENTED,
    KafkaError.INVALID_MSG,
}
"""What waiting does not help against."""

_PartitionKey = tuple[str, int]
"""Topic and partition."""


@dataclass(slots=True)
class _PartitionBuffer:
    """Rows of one partition, not yet landed.

    Args:
        log: What they are from.
        start: Where their range begins.
        next_offset: The offset to read from.
    """

    log: PartitionLog
    start: int
    next_offset: int
    tables: list[pa.Table] = field(default_factory=list)
    row_count: int = 0
    byte_count: int = 0
    newest_timestamp_ms: int = 0

    def append_records(self, messages: list[Any], zone: tzinfo) -> None:
        """Take what was read, but what it has already."""
        if messages[0].offset() < self.next_offset:
            messages = [m for m in messages if m.offset() >= self.next_offset]
        if not messages:
            return
        run = PartitionRecords(
            self.log.topic,
            self.log.partition,
            [m.offset() for m in messages],
            [m.timestamp()[1] for m in messages],
            [m.key() for m in messages],
            [m.value() for m in messages],
            [m.headers() or () for m in messages],
            self.log.incarnation,
        )
        table = build_table(run, zone)
        self.tables.append(table)
        self.next_offset = run.offsets[-1] + 1
        self.row_count += len(messages)
        self.byte_count += table.nbytes
        self.newest_timestamp_ms = max(self.newest_timestamp_ms, *run.timestamps)


class ParquetLander:
    """Lands the partitions that Kafka's group gives it, until told to stop.

    Guarantees: every committed record of each topic is in one file, once, and a file is seen whole or not at all.
    Memory is bounded by the settings and by what the client reads ahead.
    """

    def __init__(
        self, settings: LanderSettings, kafka: KafkaSettings, ready: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self._kafka = kafka
        self._on_ready = ready
        self._zone = parse_zone(settings.zone)
        self._store = open_landing_store(settings.data)
        self._stop = StopRequest()
        self._consumer: Any = None
        self._topic_ids = TopicIds(kafka)
        self._buffers: dict[_PartitionKey, _PartitionBuffer] = {}
        self._unlocated: set[_PartitionKey] = set()
        """Partitions that we have been given and do not know yet where to go on with."""
        self._must_reconnect = False
        self._was_located = False
        # The client calls back, when partitions come and go, from within a poll; what the poll returns then may be
        # of either assignment.
        self._assignment_generation = 0
        self._committed_offsets: dict[_PartitionKey, int] = {}
        self._transaction_ends: dict[
            _PartitionKey, int
        ] = {}  # offsets behind the transaction markers that were read last
        self._reported_lost_until: dict[_PartitionKey, int] = {}
        self._failure: WarehouseError | OSError | None = None
        self._store_retry_s = 0.0
        self._unavailable_since: float | None = None
        self._last_kafka_error = ""

    def run(self, stop: StopRequest) -> None:
        """Land until `stop` is set, then land what is held and leave the group.

        Raises:
            DamagedFileError: A file that tells where to go on cannot be read.
            KafkaRefusedError: Kafka does not let us.
            OSError: The files cannot be listed.
        """
        self._stop = stop
        self._wait_until_writable(stop)
        if stop.is_set():
            return
        self._connect_consumer()
        try:
            self._run_flush_loop(stop)
            self._flush_buffers()
        finally:
            self._on_partitions_lost(self._consumer, [])  # or leaving the group would land what is held
            self._consumer.close()

    # The beat

    def _run_flush_loop(self, stop: StopRequest) -> None:
        interval = self._settings.flush_interval_s
        next_flush_at = time.monotonic() + interval
        idle = True
        while not stop.is_set():
            if self._must_reconnect:
                self._reconnect_consumer()
            self._locate_partitions()
            idle &= not self._poll_records(min(max(next_flush_at - time.monotonic(), 0), _POLL_S))
            now = time.monotonic()
            if now < next_flush_at and (self._store_retry_s or not self._are_buffers_full()):
                continue
            if self._flush_buffers():
                if now >= next_flush_at:
                    self._commit_offsets()
                    if idle:
                        self._probe_kafka()
                    next_flush_at += interval * (1 + (now - next_flush_at) // interval)
                    idle = True
            else:
                next_flush_at = now + self._store_retry_s

    def _poll_records(self, seconds: float) -> bool:
        """Take what Kafka has into the buffers; return whether it had anything."""
        seen = self._assignment_generation
        try:
            messages = self._consumer.consume(_POLL_RECORDS, seconds)
        except KafkaException as error:
            self._mark_kafka_unavailable(error.args[0])
            messages = []
        if self._failure is not None:
            raise self._failure
        if seen != self._assignment_generation:
            # Whether these records belong to the old or the new assignment is unknown: read them again.
            if messages:
                self._seek_to_buffer_ends()
            return False
        taken = self._buffer_messages(messages)
        if self._failure is not None:
            raise self._failure
        return taken

    def _buffer_messages(self, messages: list[Any]) -> bool:
        runs: dict[_PartitionKey, list[Any]] = defaultdict(list)
        errors = []
        for message in messages:
            if message.error() is None:
                runs[message.topic(), message.partition()].append(message)
            else:
                errors.append(message)
        for key, run in runs.items():
            if key in self._buffers:
                self._buffers[key].append_records(run, self._zone)
        for message in errors:
            key = message.topic(), message.partition()
            if message.error().code() == KafkaError._PARTITION_EOF:
                self._transaction_ends[key] = message.offset()
            elif message.error().code() != KafkaError._AUTO_OFFSET_RESET:
                self._on_kafka_error(message.error())
            elif key in self._buffers:
                self._handle_out_of_range(key)
        if runs:
            self._mark_kafka_available()
        return bool(runs)

    def _are_buffers_full(self) -> bool:
        buffers = self._buffers.values()
        return sum(b.byte_count for b in buffers) >= self._settings.max_bytes or any(
            b.row_count >= self._settings.max_rows for b in buffers
        )

    def _flush_buffers(self) -> bool:
        """Land all that is held. False when the disk does not take it: it is still held."""
        if self._must_reconnect:
            return True
        before = dict(self._buffers)
        error = self._land_buffers()
        moved = any(
            key not in self._buffers or self._buffers[key].next_offset != b.next_offset for key, b in before.items()
        )
        if error is not None:
            self._handle_store_failure(error)
            self._pause_or_resume()
        elif self._store_retry_s:
            error = self._probe_store()
            moved = True
        if moved:
            self._seek_to_buffer_ends()
        return error is None

    def _land_buffers(self) -> OSError | None:
        """Land what the disk takes; return why it was not all, or None."""
        self._drop_other_incarnations()
        for key, buffer in self._buffers.items():
            if not buffer.tables:
                continue
            try:
                self._store.land_rows(buffer.start, pa.concat_tables(buffer.tables))
                metrics.count_landed_file(key[0], buffer.row_count, buffer.newest_timestamp_ms)
                self._buffers[key] = _PartitionBuffer(buffer.log, buffer.next_offset, buffer.next_offset)
            except OvertakenError as error:
                _log.warning("%s: going on after it", error)
                position = self._wait_for_landed_position(buffer.log)
                self._buffers[key] = _PartitionBuffer(buffer.log, position, position)
            except OSError as error:
                return error
        return None

    def _drop_other_incarnations(self) -> None:
        """Drop what was read of partitions whose topic Kafka has replaced, or restored, or does not tell us of."""
        held = {key: buffer for key, buffer in self._buffers.items() if buffer.tables}
        if not held:
            return
        try:
            ids = self._topic_ids.read_ids({topic for topic, _ in held})
            replaced = {
                key for key, buffer in held.items() if ids.get(key[0]) != parse_topic_id(buffer.log.incarnation)
            }
        except KafkaException as error:
            # Read again when Kafka answers: nothing is landed of which the incarnation is unknown.
            self._mark_kafka_unavailable(error.args[0])
            replaced = set(held)
        for key in replaced:
            del self._buffers[key]
            self._unlocated.add(key)

    def _commit_offsets(self) -> None:
        """Tell Kafka how far we are, as advice for those who watch the lag. All that was read is landed by now."""
        read = {
            key: max(buffer.next_offset, self._transaction_ends.get(key, 0)) for key, buffer in self._buffers.items()
        }
        moved = {key: offset for key, offset in read.items() if self._committed_offsets.get(key) != offset}
        with suppress(KafkaException):  # given away meanwhile
            ends = {
                key: self._consumer.get_watermark_offsets(TopicPartition(*key), cached=True)[1] for key in self._buffers
            }
            # An end is below 0 until it is known. Partitions that are others' now are reported by them.
            metrics.set_lander_lag({key: records_behind(end, read[key]) for key, end in ends.items() if end >= 0})
        if moved:
            with suppress(KafkaException):  # the group is being given out anew
                self._consumer.commit(offsets=[TopicPartition(*key, offset) for key, offset in moved.items()])
                self._committed_offsets |= moved

    # Where to go on

    def _on_partitions_assigned(self, consumer: Any, assigned: list[Any]) -> None:
        """Take note of partitions; they are read once it is known from where on."""
        self._assignment_generation += 1
        self._unlocated |= {(p.topic, p.partition) for p in assigned}
        self._was_located = False
        self._seek_to_buffer_ends()

    def _locate_partitions(self) -> None:
        """Find out where to go on with the partitions that were given to us, or whose topic was replaced."""
        if not self._unlocated:
            return
        try:
            ids = self._topic_ids.read_ids({topic for topic, _ in self._unlocated})
            with KafkaLogReader(self._kafka) as reader:
                for topic, partition in sorted(self._unlocated):
                    # A topic that was deleted and not created again yet has no id.
                    if topic in ids:
                        self._start_partition(locate_log_position(self._store, reader, topic, partition, ids[topic]))
        except KafkaException as error:
            self._mark_kafka_unavailable(error.args[0])
        except OSError as error:
            if not is_bucket_address(str(self._store)):  # of a folder it is no matter of time
                raise
            self._handle_store_failure(error)
            self._stop.wait(self._store_retry_s)
        self._seek_to_buffer_ends()
        if not self._unlocated and not self._was_located:
            self._was_located = True
            self._mark_kafka_available()
            _log.info("landing %d partitions in %s", len(self._buffers), self._store)
            self._on_ready()

    def _start_partition(self, position: LogPosition) -> None:
        log, offset = position
        key = (log.topic, log.partition)
        self._unlocated.discard(key)
        self._buffers[key] = _PartitionBuffer(log, offset, offset)
        self._report_incarnation(position)

    def _report_incarnation(self, position: LogPosition) -> None:
        """Log that Kafka does not hold what was landed before."""
        log, offset = position
        others = self._store.list_incarnations(log.topic, log.partition) - {log.incarnation}
        is_upgrade = others == {UNKNOWN_INCARNATION} and offset == self._store.read_landed_position(
            log._replace(incarnation=UNKNOWN_INCARNATION)
        )
        if not others or is_upgrade or self._store.read_landed_position(log):
            return
        if parse_cut_count(log.incarnation):
            _log.error(
                "%s was restored from an older copy, or lost its end: from offset %d on Kafka has other records than "
                "were landed. All of them are landed, next to those that Kafka lost",
                *(log, offset),
            )
        else:
            _log.warning(
                "%s is another one than the topic of that name that was landed before: landed from offset %d on, next "
                "to the old one",
                *(log, offset),
            )

    def _on_partitions_revoked(self, consumer: Any, revoked: list[Any]) -> None:
        """Land what is held. What the disk does not take now, the next owner reads again."""
        if not self._must_reconnect:
            error = self._land_buffers()
            if error is not None:
                self._handle_store_failure(error)
        self._on_partitions_lost(consumer, revoked)

    def _on_partitions_lost(self, consumer: Any, lost: list[Any]) -> None:
        """Drop what is held: others read it again already."""
        self._assignment_generation += 1
        self._buffers.clear()
        self._unlocated.clear()
        self._committed_offsets.clear()
        self._transaction_ends.clear()

    def _wait_for_landed_position(self, log: PartitionLog) -> int:
        while True:
            try:
                return self._store.read_landed_position(log)
            except OSError as error:
                if not is_bucket_address(str(self._store)):  # of a folder it is no matter of time
                    raise
                self._handle_store_failure(error)
                if self._stop.wait(self._store_retry_s):
                    raise

    def _seek_to_buffer_ends(self) -> None:
        """Have the client read each partition from where its buffer ends, whatever it has read ahead."""
        self._transaction_ends.clear()
        self._consumer.assign([TopicPartition(*key, buffer.next_offset) for key, buffer in self._buffers.items()])
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        """Have the client read nothing while nothing can be landed.

        It keeps a partition paused over a rebalance that gives it to us again, so this follows each assignment.
        """
        partitions = [TopicPartition(*key) for key in self._buffers]
        if self._store_retry_s:
            self._consumer.pause(partitions)
        else:
            self._consumer.resume(partitions)

    def _handle_out_of_range(self, key: _PartitionKey) -> None:
        """Kafka has no record at our position: it deleted them, or never had them."""
        buffer = self._buffers[key]
        try:
            earliest, end = self._consumer.get_watermark_offsets(TopicPartition(*key), timeout=_ANSWER_S)
        except KafkaException as error:
            self._mark_kafka_unavailable(error.args[0])
            self._seek_to_buffer_ends()  # which leads here again
            return
        if end < buffer.next_offset:
            del self._buffers[key]
            self._unlocated.add(key)
            self._seek_to_buffer_ends()
            return
        if earliest > buffer.next_offset:
            if (
                buffer.next_offset and self._reported_lost_until.get(key) != earliest
            ):  # as after each assignment till it is landed
                self._reported_lost_until[key] = earliest
                metrics.LOST_RECORDS.inc(earliest - buffer.next_offset)
                _log.error(
                    "LOST: %s partition %d, offsets %d to %d: Kafka deleted them before they were landed. Going on at "
                    "%d. Raise the topic's retention.ms, or keep a lander running.",
                    *(*key, buffer.next_offset, earliest - 1, earliest),
                )
            # The range still begins where the last one ended, so that rivals meet in one file name.
            buffer.next_offset = earliest
        self._seek_to_buffer_ends()

    # What is not there for a while

    def _connect_consumer(self) -> None:
        session_ms = int(self._settings.session_timeout_s * 1000)
        options = (
            self._kafka.confluent_options()
            | _CLIENT
            | {
                "group.id": self._settings.group,
                "session.timeout.ms": session_ms,
                "heartbeat.interval.ms": session_ms // 4,
                "error_cb": self._on_kafka_error,
                # The in-memory broker makes topics on first use; a real one must be asked for them properly.
                "allow.auto.create.topics": self._kafka.in_memory,
                "check.crcs": not self._kafka.in_memory,  # it changes transactional batches and keeps their checksum
            }
        )
        if self._settings.instance and not self._kafka.in_memory:
            options["group.instance.id"] = self._settings.instance
        try:
            self._consumer = Consumer(options)
        except KafkaException as error:
            msg = f"the settings for Kafka, or its certificates, cannot be used: {error.args[0].str()}"
            raise KafkaRefusedError(msg) from error
        self._consumer.subscribe(
            list(DATASET_BY_TOPIC),
            on_assign=self._on_partitions_assigned,
            on_revoke=self._on_partitions_revoked,
            on_lost=self._on_partitions_lost,
        )

    def _reconnect_consumer(self) -> None:
        """Begin again with a new client once Kafka answers."""
        try:
            self._topic_ids.read_ids([RAW])
        except KafkaException as error:
            self._mark_kafka_unavailable(error.args[0])
            return
        self._must_reconnect = False
        self._on_partitions_lost(self._consumer, [])
        self._consumer.close()
        self._connect_consumer()

    def _probe_kafka(self) -> None:
        """Find out whether silence means that there is nothing or that Kafka is away: no poll says so."""
        try:
            self._consumer.list_topics(RAW, timeout=_ANSWER_S)
        except KafkaException as error:
            self._mark_kafka_unavailable(error.args[0])
        else:
            self._mark_kafka_available()

    def _on_kafka_error(self, error: KafkaError) -> None:
        """Take note of what the client says; of most it takes care itself."""
        self._last_kafka_error = error.str()
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._must_reconnect = True
        if error.fatal() or error.code() in _FATAL_ERROR_CODES:
            msg = f"Kafka at {self._kafka.bootstrap} refuses to serve the lander: {self._last_kafka_error}"
            self._failure = KafkaRefusedError(msg)

    def _mark_kafka_unavailable(self, error: KafkaError) -> None:
        if error.fatal() or error.code() in _FATAL_ERROR_CODES:
            self._on_kafka_error(error)
        elif self._unavailable_since is None:
            self._unavailable_since = time.monotonic()
            _log.warning(
                "Kafka at %s is away (%s); landing goes on when it is back",
                *(self._kafka.bootstrap, self._last_kafka_error or error.str()),
            )

    def _mark_kafka_available(self) -> None:
        if self._unavailable_since is not None:
            _log.warning("Kafka is back after %.0f s", time.monotonic() - self._unavailable_since)
            self._unavailable_since = None
        self._last_kafka_error = ""

    def _wait_until_writable(self, stop: StopRequest) -> None:
        while not stop.is_set():
            try:
                deleted = self._store.prepare_store()
                self._store.probe_write()
            except OSError as error:
                self._handle_store_failure(error)
                stop.wait(self._store_retry_s)
            else:
                if deleted:
                    _log.info("deleted %d unfinished files of landers that were killed", deleted)
                if self._store_retry_s:
                    self._probe_store()
                return

    def _handle_store_failure(self, error: OSError) -> None:
        if not self._store_retry_s:
            _log.error(
                "cannot write to %s (%s): landing waits and goes on when it can; nothing is lost while Kafka keeps it",
                *(self._store, error.strerror or error),
            )
        self._store_retry_s = min(max(self._store_retry_s * 2, self._settings.retry_s), _MAX_RETRY_S)
        metrics.BLOCKED.set(1)

    def _probe_store(self) -> OSError | None:
        """Find out whether the disk takes data again: there may be nothing to land that would tell. Return why not."""
        try:
            self._store.probe_write()
        except OSError as error:
            self._handle_store_failure(error)
            return error
        _log.warning("%s takes data again", self._store)
        self._store_retry_s = 0.0
        metrics.BLOCKED.set(0)
        return None


def run_lander(settings: LanderSettings, kafka: KafkaSettings, ready: Callable[[], None] = lambda: None) -> None:
    """Land until SIGTERM or SIGINT; to be called in a process's main thread. Raises as `ParquetLander.run` does.

    Args:
        settings: The lander's.
        kafka: How to reach Kafka.
        ready: Called each time that partitions were assigned.
    """
    # Records are many objects that live for a moment: it does not pay to look for cycles among each 700 of them.
    gc.set_threshold(100_000)
    stop = StopRequest()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        ParquetLander(settings, kafka, ready).run(stop)
    finally:
        gc.unfreeze()  # DuckDB's binding would take what is frozen at the end for leaked, and say so
