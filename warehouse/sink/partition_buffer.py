"""Buffer of one partition: rows that were read from Kafka and are not landed yet."""

from dataclasses import dataclass, field
from datetime import tzinfo
from typing import Any

import pyarrow as pa

from warehouse.partition_log import PartitionLog
from warehouse.sink.kafka_client import collect_messages
from warehouse.sink.table_building import build_table


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
        if messages[0].offset() < self.next_offset:
            messages = [m for m in messages if m.offset() >= self.next_offset]
        if not messages:
            return
        run = collect_messages(self.log, messages)
        table = build_table(run, zone)
        self.tables.append(table)
        self.next_offset = run.offsets[-1] + 1
        self.row_count += len(messages)
        self.byte_count += table.nbytes
        self.newest_timestamp_ms = max(self.newest_timestamp_ms, *run.timestamps)
