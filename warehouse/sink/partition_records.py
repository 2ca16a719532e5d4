"""Records of one partition of Kafka, by column."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog


class PartitionRecords(NamedTuple):
    """Records of one partition in the order of their offsets, by column.

    Timestamps are in milliseconds since 1970 UTC, or -1. A tombstone has no value. `incarnation` is that of the topic
    (`warehouse.partition_log`).
    """

    topic: str
    partition: int
    offsets: Sequence[int]
    timestamps: Sequence[int]
    keys: Sequence[bytes | None]
    values: Sequence[bytes | None]
    headers: Sequence[Sequence[tuple[str, bytes | None]]]
    incarnation: str = UNKNOWN_INCARNATION

    @classmethod
    def from_messages(cls, log: PartitionLog, messages: Sequence[Any]) -> "PartitionRecords":
        """Turn the client's messages, at least one and all of one partition, into columns."""
        rows = ((m.offset(), m.timestamp()[1], m.key(), m.value(), m.headers() or ()) for m in messages)
        offsets, timestamps, keys, values, headers = zip(*rows, strict=True)
        return cls(log.topic, log.partition, offsets, timestamps, keys, values, headers, log.incarnation)

    def select_record(self, row: int) -> "PartitionRecords":
        """Return one of the records as a run of its own."""
        # The five fields that are lists.
        columns: Any = self[2:7]
        offsets, timestamps, keys, values, headers = (column[row : row + 1] for column in columns)
        return self._replace(offsets=offsets, timestamps=timestamps, keys=keys, values=values, headers=headers)
