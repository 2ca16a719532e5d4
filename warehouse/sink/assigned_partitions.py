"""The partitions that the consumer group has assigned: their buffers, and those whose position is not known yet."""

import logging
from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

import pyarrow as pa

from core.topic_ids import TopicIds
from gateway.payload_times import parse_zone
from warehouse import metrics
from warehouse.errors import BucketAwayError, OvertakenError
from warehouse.partition_log import PartitionLog, parse_topic_id
from warehouse.settings import LanderSettings
from warehouse.sink.kafka_client import KafkaStatus
from warehouse.sink.partition_records import PartitionRecords
from warehouse.sink.record_conversion import build_table
from warehouse.sink.store_status import StoreStatus
from warehouse.sink.topic_incarnations import LogPosition, log_incarnation_change

_log = logging.getLogger(__name__)

PartitionKey = tuple[str, int]
"""Topic and partition."""


@dataclass(slots=True)
class PartitionBuffer:
    """Rows of one log that are not landed yet.

    Args:
        log: The log that they are from.
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
        """Add records. Those that the buffer already has are skipped."""
        # After a seek, the client can still return records that it had read ahead.
        if messages[0].offset() < self.next_offset:
            messages = [m for m in messages if m.offset() >= self.next_offset]
        if not messages:
            return
        run = PartitionRecords.from_messages(self.log, messages)
        table = build_table(run, zone)
        self.tables.append(table)
        self.next_offset = run.offsets[-1] + 1
        self.row_count += len(messages)
        self.byte_count += table.nbytes
        self.newest_timestamp_ms = max(self.newest_timestamp_ms, *run.timestamps)


class AssignedPartitions:
    """Buffers of the assigned partitions, and how they are landed.

    Args:
        settings: The sink's settings.
        store_status: Where rows are landed, and whether it takes data.
        topic_ids: Reads the ids of Kafka's topics.
        kafka_status: Whether Kafka answers.
    """

    def __init__(
        self, settings: LanderSettings, store_status: StoreStatus, topic_ids: TopicIds, kafka_status: KafkaStatus
    ) -> None:
        self._settings, self._zone = settings, parse_zone(settings.zone)
        self._store_status, self._store = store_status, store_status.store
        self._topic_ids, self._kafka_status = topic_ids, kafka_status
        self.buffers: dict[PartitionKey, PartitionBuffer] = {}
        self.unlocated: set[PartitionKey] = set()
        """Assigned partitions of which it is not known yet from which offset on to read."""

    def clear(self) -> None:
        """Drop everything: the partitions may have other owners, who read the same records again."""
        self.buffers.clear()
        self.unlocated.clear()

    def start_partition(self, position: LogPosition) -> None:
        """Begin to buffer a partition at its position."""
        log, offset = position
        key = (log.topic, log.partition)
        self.unlocated.discard(key)
        self.buffers[key] = PartitionBuffer(log, offset, offset)
        log_incarnation_change(self._store, position)

    def drop_buffer(self, key: PartitionKey) -> None:
        """Drop the buffered rows of a partition, and locate it again."""
        del self.buffers[key]
        self.unlocated.add(key)

    def append_records(self, runs: dict[PartitionKey, list[Any]]) -> None:
        """Add records to the buffers. Records of partitions without a buffer are dropped: they are read again."""
        for key, run in runs.items():
            if key in self.buffers:
                self.buffers[key].append_records(run, self._zone)

    def are_full(self) -> bool:
        """Return whether the buffers must be landed before their time."""
        buffers = self.buffers.values()
        return sum(b.byte_count for b in buffers) >= self._settings.max_bytes or any(
            b.row_count >= self._settings.max_rows for b in buffers
        )

    def land_buffers(self) -> bool:
        """Land what the store takes; return False if it has not taken all."""
        # Right before landing, so that as few records as possible can be of a topic that was replaced meanwhile.
        self._drop_other_incarnations()
        for key, buffer in self.buffers.items():
            if not buffer.tables:
                continue
            try:
                self._store.land_rows(buffer.start, pa.concat_tables(buffer.tables))
                metrics.count_landed_file(key[0], buffer.row_count, buffer.newest_timestamp_ms)
                self.buffers[key] = PartitionBuffer(buffer.log, buffer.next_offset, buffer.next_offset)
            except OvertakenError as error:
                # A concurrent lander holds the partition as well. Its range may end anywhere.
                _log.warning("%s: going on after it", error)
                position = self._wait_for_landed_position(buffer.log)
                self.buffers[key] = PartitionBuffer(buffer.log, position, position)
            except OSError as error:
                self._store_status.handle_failure(error)
                return False
        return True

    def _drop_other_incarnations(self) -> None:
        """Drop the buffers of partitions whose topic Kafka has replaced or restored, or has no id of."""
        held = {key: buffer for key, buffer in self.buffers.items() if buffer.tables}
        if not held:
            return
        # Nothing is landed whose incarnation is unknown. It is read again when Kafka answers.
        replaced = set(held)
        with self._kafka_status.watch_request():
            ids = self._topic_ids.read_ids({topic for topic, _ in held})
            replaced = {
                key for key, buffer in held.items() if ids.get(key[0]) != parse_topic_id(buffer.log.incarnation)
            }
        for key in replaced:
            self.drop_buffer(key)

    def _wait_for_landed_position(self, log: PartitionLog) -> int:
        while True:
            try:
                return self._store.read_landed_position(log)
            except BucketAwayError as error:
                if self._store_status.wait_after_failure(error):
                    raise
