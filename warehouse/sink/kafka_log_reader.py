"""Reads single records from Kafka's partitions, to compare them with landed ones."""

from collections.abc import Iterator
from time import monotonic
from typing import Any, Final, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from core.kafka_settings import KafkaSettings
from warehouse.partition_log import PartitionLog
from warehouse.sink.kafka_client import ANSWER_S, reader_options
from warehouse.sink.partition_records import PartitionRecords
from warehouse.sink.range_metadata import RecordIdentity, extract_identities
from warehouse.sink.record_conversion import build_table

_BATCH: Final = 10_000
_POLL_S: Final = 0.05
_OPTIONS: Final = {
    "client.id": "smspulse-incarnations",
    # A group is required, but unused: partitions are assigned, and nothing is committed.
    "group.id": "smspulse-incarnations",
    # Only a few records are read at a time. The default would wait for more.
    "fetch.wait.max.ms": 10,
}


class KafkaLogReader:
    """Reads the identities of records from Kafka's partitions. Use it as a context manager: it holds a connection."""

    def __init__(self, kafka: KafkaSettings) -> None:
        self._consumer = Consumer(reader_options(kafka) | _OPTIONS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def read_offset_bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset that Kafka has, and the one after its last.

        Raises:
            KafkaException: Kafka does not answer.
        """
        low, end = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=ANSWER_S)
        return low, end

    def read_identities(self, topic: str, partition: int, start: int, end: int) -> dict[int, RecordIdentity]:
        """Return the identities of the committed records from `start` to before `end`, by their offsets.

        Raises:
            KafkaException: Kafka does not answer.
        """
        low, high = self.read_offset_bounds(topic, partition)
        start, end = max(start, low), min(end, high)
        found: dict[int, RecordIdentity] = {}
        if start >= end:
            return found
        self._consumer.assign([TopicPartition(topic, partition, start)])
        try:
            for records in self._poll_batches(end - start):
                wanted = [record for record in records if record.offset() < end]
                if wanted:
                    found |= extract_identities(
                        build_table(PartitionRecords.from_messages(PartitionLog(topic, partition), wanted))
                    )
                if records[-1].offset() >= end - 1:
                    break
        finally:
            # Otherwise the client would go on reading ahead while the next partition is compared.
            self._consumer.unassign()
        return found

    def _poll_batches(self, wanted: int) -> Iterator[list[Any]]:
        """Yield records of the assigned partition, at least one at a time, until it ends."""
        # The client waits the whole time for a full batch, unless one record is all that is wanted.
        wait_s = ANSWER_S if wanted == 1 else _POLL_S
        deadline = monotonic() + ANSWER_S
        while monotonic() < deadline:
            messages = self._consumer.consume(min(wanted, _BATCH), wait_s)
            errors = [message.error() for message in messages if message.error() is not None]
            records = [message for message in messages if message.error() is None]
            if records:
                yield records
                deadline = monotonic() + ANSWER_S
            for error in errors:
                if error.code() == KafkaError._PARTITION_EOF:
                    return
                raise KafkaException(error)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
