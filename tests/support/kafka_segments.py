"""Reader of Kafka's segment files without Kafka: each record, decompressed."""

from collections.abc import Iterator
from pathlib import Path

from kafka.record import MemoryRecords


def segment_records(path: Path) -> Iterator[bytes]:
    """Yield key, value and headers of each record of a segment file `*.log`, deleted or not."""
    batches = MemoryRecords(path.read_bytes())
    while (batch := batches.next_batch()) is not None:
        for record in batch:
            headers = b" ".join(name.encode() + b"=" + (value or b"") for name, value in record.headers)
            yield b" ".join([record.key or b"", record.value or b"", headers])
