"""The lander: takes records from Kafka and lands them as files, each record exactly once.

Where it goes on is what the files say (`warehouse.landing`); the offset that it commits to Kafka is advice, for those
who watch the lag. So a kill at any point costs nothing but reading again, and of two landers that hold one partition,
as after a pause long enough for Kafka to give it away, one lands a range and the other finds it landed.
"""

import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from kafka import ConsumerRebalanceListener, KafkaConsumer
from kafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from kafka.errors import KafkaError, KafkaTimeoutError, OffsetOutOfRangeError
from kafka.net.compat import KafkaNetClient
from kafka.structs import OffsetAndMetadata

from gateway.kafka import KafkaSettings
from gateway.payloads import parse_zone
from warehouse import landing, metrics, views
from warehouse.errors import KafkaRefusedError, OvertakenError, TopicRecreatedError, WarehouseError
from warehouse.schemas import BY_TOPIC
from warehouse.settings import LanderSettings

_log = logging.getLogger(__name__)

_POLL_S: Final = 0.25  # how long a request to stop can go unnoticed
_ANSWER_MS: Final = 3_000
_LEAVE_MS: Final = 2_000
_MAX_RETRY_S: Final = 10.0
_POLL_RECORDS: Final = 5_000
# What a ConsumerRecord takes beside its bytes: the tuple, its numbers, its list of headers with their names.
_RECORD_OVERHEAD: Final = 700


@dataclass(slots=True)
class _Buffer:
    """Records of one partition, not yet landed. `start` is where their range begins."""

    start: int
    records: list[Any] = field(default_factory=list)
    size: int = 0

    def take(self, records: list[Any]) -> None:
        self.records += records
        self.size += sum(_RECORD_OVERHEAD + r.serialized_value_size + max(r.serialized_header_size, 0) for r in records)


class Lander(ConsumerRebalanceListener):
    """Lands the partitions that Kafka's group gives it, until told to stop.

    Guarantees: every committed record of each topic is in one file, once, and a file is seen whole or not at all.
    Memory is bounded by the settings and by what Kafka hands over at once.
    """

    def __init__(
        self, settings: LanderSettings, kafka: KafkaSettings, ready: Callable[[], None] = lambda: None
    ) -> None:
        self._settings = settings
        self._kafka = kafka
        self._ready = ready
        self._zone = parse_zone(settings.zone)
        self._data = settings.data.resolve()
        self._consumer: Any = None
        self._buffers: dict[Any, _Buffer] = {}
        # kafka-python calls the listener from its own thread. What it touches is guarded by the lock, under which no
        # request to Kafka may be waited for; and a change of the assignment voids what a poll returned meanwhile.
        self._lock = threading.RLock()
        self._generation = 0
        self._committed: dict[Any, int] = {}
        self._lost_until: dict[Any, int] = {}
        self._failure: WarehouseError | OSError | None = None
        self._disk_retry_s = 0.0
        self._away_since: float | None = None

    def run(self, stop: threading.Event) -> None:
        """Land until `stop` is set, then land what is held and leave the group.

        Raises:
            TopicRecreatedError: Kafka's records are not those that were landed.
            DamagedFileError: A file that tells where to go on cannot be read.
            KafkaRefusedError: Kafka does not let us.
            OSError: The files cannot be listed.
        """
        self._until_writable(stop)
        self._connect(stop)
        if self._consumer is None:
            return
        try:
            self._loop(stop)
            self._flush()
        finally:
            with self._lock:
                self._buffers.clear()  # or leaving the group would land them
            self._consumer.close(autocommit=False, timeout_ms=_LEAVE_MS)

    # The beat

    def _loop(self, stop: threading.Event) -> None:
        interval = self._settings.flush_interval_s
        beat = time.monotonic() + interval
        idle = True
        while not stop.is_set():
            idle &= not self._poll(min(max(beat - time.monotonic(), 0), _POLL_S))
            now = time.monotonic()
            if now < beat and (self._disk_retry_s or not self._is_full()):
                continue
            if self._flush():
                if now >= beat:
                    self._commit()
                    if idle:
                        self._probe()
                    beat += interval * (1 + (now - beat) // interval)
                    idle = True
            else:
                beat = now + self._disk_retry_s

    def _poll(self, seconds: float) -> bool:
        """Take what Kafka has into the buffers; return whether it had anything."""
        seen = self._generation
        if self._disk_retry_s:
            with suppress(KeyError):  # given away between the two calls
                self._consumer.pause(*self._consumer.assignment())
        try:
            fetched = self._consumer.poll(timeout_ms=int(seconds * 1000), max_records=_POLL_RECORDS)
        except OffsetOutOfRangeError as error:
            for partition in error.args[0]:
                self._out_of_range(partition)
            return False
        except KafkaError as error:
            if self._failure is None:
                self._lost(error)
                return False
            raise self._failure from error
        if self._failure is not None:
            raise self._failure
        with self._lock:
            if seen != self._generation:
                # Whether these records belong to the old or the new assignment is unknown: read them again.
                for partition, buffer in self._buffers.items():
                    self._seek(partition, buffer.records[-1].offset + 1 if buffer.records else buffer.start)
                return False
            for partition, records in fetched.items():
                self._buffers[partition].take(records)
        if fetched:
            self._found()
        return bool(fetched)

    def _is_full(self) -> bool:
        with self._lock:
            buffers = self._buffers.values()
            return sum(b.size for b in buffers) >= self._settings.max_bytes or any(
                len(b.records) >= self._settings.max_rows for b in buffers
            )

    def _flush(self) -> bool:
        """Land all that is held. False when the disk does not take it: it is still held."""
        landed = False
        with self._lock:
            for partition, buffer in self._buffers.items():
                if not buffer.records:
                    continue
                try:
                    landing.land(self._data, buffer.start, buffer.records, self._zone)
                    metrics.landed(partition.topic, len(buffer.records), max(r.timestamp for r in buffer.records))
                    self._buffers[partition] = _Buffer(buffer.records[-1].offset + 1)
                    landed = True
                except OvertakenError as error:
                    _log.warning("%s: going on after it", error)
                    self._take_position(partition)
                except OSError as error:
                    self._disk_failed(error)
                    return False
            if self._disk_retry_s:
                if landed:
                    _log.warning("%s takes data again", self._data)
                self._disk_retry_s = 0.0
                with suppress(KeyError):  # given away between the two calls
                    self._consumer.resume(*self._consumer.paused())
        return True

    def _commit(self) -> None:
        """Tell Kafka how far we are, as advice for those who watch the lag. All that was read is landed by now."""
        with suppress(KafkaError, KeyError):  # given away meanwhile
            positions = {p: self._consumer.position(p, timeout_ms=0) for p in self._consumer.assignment()}
            moved = {p: o for p, o in positions.items() if o is not None and self._committed.get(p) != o}
            metrics.LAG.clear()  # of partitions that are others' now, they tell
            for partition, position in positions.items():
                if position is not None and (end := self._consumer.highwater(partition)) is not None:
                    metrics.LAG.labels(partition.topic, str(partition.partition)).set(max(end - position, 0))
            if moved:
                self._consumer.commit_async({p: OffsetAndMetadata(o, "", -1) for p, o in moved.items()})
                self._committed |= moved

    # Where to go on

    def on_partitions_assigned(self, assigned: set[Any]) -> None:
        """Go on where the files end."""
        with self._lock:
            self._generation += 1
            for partition in assigned:
                try:
                    self._take_position(partition)
                except (WarehouseError, OSError) as error:
                    self._failure = error
                    raise
        _log.info("landing %d partitions in %s", len(assigned), self._data)
        self._ready()

    def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Land what is held. What the disk does not take now, the next owner reads again."""
        with self._lock:
            self._generation += 1
            self._flush()
            self._drop(revoked)

    def on_partitions_lost(self, lost: set[Any]) -> None:
        """Drop what is held: others read it again already."""
        with self._lock:
            self._generation += 1
            self._drop(lost)

    def _drop(self, partitions: set[Any]) -> None:
        for partition in partitions:
            self._buffers.pop(partition, None)
            self._committed.pop(partition, None)

    def _take_position(self, partition: Any) -> None:
        start = landing.landed_position(self._data, partition.topic, partition.partition)
        self._buffers[partition] = _Buffer(start)
        self._seek(partition, start)

    def _seek(self, partition: Any, offset: int) -> None:
        with suppress(KeyError, ValueError):  # not ours any more: whoever has it next takes the position from the files
            self._consumer.seek(partition, offset)

    def _out_of_range(self, partition: Any) -> None:
        """Kafka has no record at our position: it deleted them, or never had them."""
        with self._lock:
            buffer = self._buffers.get(partition)
        if buffer is None:
            return
        position = buffer.records[-1].offset + 1 if buffer.records else buffer.start
        try:
            earliest = self._consumer.beginning_offsets([partition], timeout_ms=_ANSWER_MS)[partition]
            end = self._consumer.end_offsets([partition], timeout_ms=_ANSWER_MS)[partition]
        except KafkaTimeoutError as error:
            self._lost(error)
            return
        if end < position:
            raise TopicRecreatedError(partition.topic, partition.partition, position, end, self._data)
        if earliest > position:
            if position and self._lost_until.get(partition) != earliest:  # as after each assignment till it is landed
                self._lost_until[partition] = earliest
                metrics.LOST.inc(earliest - position)
                _log.error(
                    "LOST: %s partition %d, offsets %d to %d: Kafka deleted them before they were landed. Going on at "
                    "%d. Raise the topic's retention.ms, or keep a lander running.",
                    *(partition.topic, partition.partition, position, earliest - 1, earliest),
                )
            # The range still begins where the last one ended, so that rivals meet in one file name.
            with self._lock:
                self._seek(partition, earliest)

    # What is not there for a while

    def _connect(self, stop: threading.Event) -> None:
        clients: list[Any] = []

        def client(**options: Any) -> Any:
            clients.append(KafkaNetClient(**options))
            return clients[-1]

        while not stop.is_set():
            try:
                consumer = KafkaConsumer(
                    **self._kafka.kafka_python(),
                    client_id="smspulse-lander",
                    group_id=self._settings.group,
                    group_instance_id=(self._settings.instance or None) if not self._kafka.in_memory else None,
                    isolation_level="read_committed",
                    enable_auto_commit=False,
                    auto_offset_reset="none",  # positions outside Kafka's range are decided on, not guessed
                    # The in-memory broker makes topics on first use; a real one must be asked for them properly.
                    allow_auto_create_topics=self._kafka.in_memory,
                    check_crcs=not self._kafka.in_memory,  # it changes transactional batches and keeps their checksum
                    partition_assignment_strategy=(RoundRobinPartitionAssignor,),
                    session_timeout_ms=int(self._settings.session_timeout_s * 1000),
                    heartbeat_interval_ms=int(self._settings.session_timeout_s * 1000 / 4),
                    metadata_max_age_ms=10_000,  # how long a new topic can go unnoticed
                    reconnect_backoff_max_ms=1_000,
                    bootstrap_timeout_ms=_ANSWER_MS,
                    kafka_client=client,
                )
            except KafkaError as error:
                for opened in clients:  # a constructor that fails leaves its thread running
                    opened.close()
                clients.clear()
                self._lost(error)
                stop.wait(self._settings.retry_s)
            except OSError as error:
                msg = f"the certificates for Kafka cannot be read: {error}"
                raise KafkaRefusedError(msg) from error
            else:
                self._consumer = consumer
                consumer.subscribe(topics=list(BY_TOPIC), listener=self)
                # Known before the first poll joins: it would be given no partitions, or join again when it knows them.
                for topic in BY_TOPIC:
                    with suppress(KafkaError):
                        consumer.partitions_for_topic(topic)
                return

    def _probe(self) -> None:
        """Find out whether silence means that there is nothing or that Kafka is away: no poll says so."""
        partitions = list(self._consumer.assignment())
        if not partitions:
            return
        try:
            self._consumer.end_offsets(partitions, timeout_ms=_ANSWER_MS)
        except KafkaError as error:
            self._lost(error)
        else:
            self._found()

    def _lost(self, error: KafkaError) -> None:
        if not error.retriable:
            msg = f"Kafka at {self._kafka.bootstrap} refuses to serve the lander: {error}"
            raise KafkaRefusedError(msg) from error
        if self._away_since is None:
            self._away_since = time.monotonic()
            _log.warning("Kafka at %s is away; landing goes on when it is back", self._kafka.bootstrap)

    def _found(self) -> None:
        if self._away_since is not None:
            _log.warning("Kafka is back after %.0f s", time.monotonic() - self._away_since)
            self._away_since = None

    def _until_writable(self, stop: threading.Event) -> None:
        while not stop.is_set():
            try:
                swept = landing.sweep(self._data)
                views.publish(self._data)
            except OSError as error:
                self._disk_failed(error)
                stop.wait(self._disk_retry_s)
            else:
                if swept:
                    _log.info("deleted %d unfinished files of landers that were killed", swept)
                if self._disk_retry_s:
                    _log.warning("%s takes data again", self._data)
                    self._disk_retry_s = 0.0
                return

    def _disk_failed(self, error: OSError) -> None:
        if not self._disk_retry_s:
            _log.error(
                "cannot write to %s (%s): landing waits and goes on when it can; nothing is lost while Kafka keeps it",
                *(self._data, error.strerror or error),
            )
        self._disk_retry_s = min(max(self._disk_retry_s * 2, self._settings.retry_s), _MAX_RETRY_S)


def run(settings: LanderSettings, kafka: KafkaSettings, ready: Callable[[], None] = lambda: None) -> None:
    """Land until SIGTERM or SIGINT; to be called in a process's main thread. Raises as `Lander.run` does.

    Args:
        settings: The lander's.
        kafka: How to reach Kafka.
        ready: Called each time that partitions were assigned.
    """
    # kafka-python reports each failed connection, several a second; the lander says once that Kafka is away.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    Lander(settings, kafka, ready).run(stop)
