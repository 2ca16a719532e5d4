"""Finds out which incarnation of a topic Kafka holds, and from which offset on its records are not landed yet.

Offsets alone do not tell: a topic that was created again, or a Kafka restored from an older copy, soon has as many
records as were landed of the one before. So the topic's id is compared, and the last landed record with the record that
Kafka has at its offset. If they differ, the log was cut: the landed files are followed back to the last record that
both have, and what Kafka has behind it belongs to a new incarnation (`warehouse.partition_log`).

| Kafka holds | incarnation | begins at |
|---|---|---|
| the topic that was landed, and its last landed record | the landed one | the landed position |
| another topic of that name | a new one, named after the topic's id | 0 |
| the topic that was landed, cut off or with other records | a new one, `ID.1` | behind the last record in common |
| records that a release up to 0.1 landed, without an id | a new one, named after the topic's id | the landed position |
"""

from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any, BinaryIO, Final, NamedTuple, Protocol, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from gateway.kafka import KafkaSettings
from gateway.topic_ids import is_in_memory
from gateway.topics import TOPICS
from warehouse import landing
from warehouse.landing import RecordIdentity
from warehouse.partition_log import UNKNOWN, PartitionLog, after_cut, cuts_of, topic_of
from warehouse.schemas import BY_TOPIC, Run

_ANSWER_S: Final = 3.0
_BATCH: Final = 10_000
_POLL_S: Final = 0.05
_CLIENT: Final = {"client.id": "smspulse-incarnations", "log_level": 2}
_READER: Final = {
    "group.id": "smspulse-incarnations",  # of no use: partitions are assigned, and nothing is committed
    "enable.auto.commit": False,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
    "fetch.wait.max.ms": 10,
    "fetch.queue.backoff.ms": 5,
}


class LogPosition(NamedTuple):
    """Offset of a log from which on Kafka's records are not landed yet.

    Args:
        log: Which log.
        offset: Where its next range begins.
    """

    log: PartitionLog
    offset: int


class LandedFiles(Protocol):
    """Access to the landed files of a data folder or a bucket."""

    def incarnations(self, topic: str, partition: int) -> set[str]:
        """As `landing.incarnations`."""

    def position(self, log: PartitionLog) -> int:
        """As `landing.landed_position`."""

    def files(self, log: PartitionLog) -> list[Path]:
        """As `landing.landed_files`."""

    def source(self, path: Path) -> Path | BinaryIO:
        """Return what pyarrow reads a file from."""


class KafkaLogReader:
    """Reads the identities of records from Kafka's partitions. Use it as a context, for it holds a connection."""

    def __init__(self, kafka: KafkaSettings) -> None:
        # The in-memory broker changes transactional batches and keeps their checksum.
        self._consumer = Consumer(kafka.confluent() | _CLIENT | _READER | {"check.crcs": not kafka.in_memory})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def bounds(self, topic: str, partition: int) -> tuple[int, int]:
        """Return the first offset that Kafka has, and the one behind its last.

        Raises:
            KafkaException: Kafka does not answer.
        """
        low, end = self._consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=_ANSWER_S)
        return low, end

    def identities(self, topic: str, partition: int, start: int, end: int) -> dict[int, RecordIdentity]:
        """Return the identities of the committed records from `start` to before `end`, by their offsets.

        Raises:
            KafkaException: Kafka does not answer.
        """
        low, high = self.bounds(topic, partition)
        start, end = max(start, low), min(end, high)
        found: dict[int, RecordIdentity] = {}
        if start >= end:
            return found
        self._consumer.assign([TopicPartition(topic, partition, start)])
        try:
            for records in self._batches(end - start):
                found |= _identities_of(topic, partition, [record for record in records if record.offset() < end])
                if records[-1].offset() >= end - 1:
                    break
        finally:
            self._consumer.unassign()
        return found

    def _batches(self, wanted: int) -> Iterator[list[Any]]:
        """Yield records of the assigned partition, at least one at a time, until it ends."""
        # The client waits the whole time for a full batch, unless one record is all that is wanted.
        wait_s = _ANSWER_S if wanted == 1 else _POLL_S
        deadline = monotonic() + _ANSWER_S
        while monotonic() < deadline:
            messages = self._consumer.consume(min(wanted, _BATCH), wait_s)
            errors = [message.error() for message in messages if message.error() is not None]
            records = [message for message in messages if message.error() is None]
            if records:
                yield records
                deadline = monotonic() + _ANSWER_S
            for error in errors:
                if error.code() == KafkaError._PARTITION_EOF:
                    return
                raise KafkaException(error)
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def locate(files: LandedFiles, reader: KafkaLogReader, topic: str, partition: int, topic_id: str) -> LogPosition:
    """Return the log that Kafka holds, and from which offset on its records are not landed.

    Args:
        files: What was landed.
        reader: Access to Kafka's records.
        topic: Kafka's name of the topic.
        partition: Kafka's number of the partition.
        topic_id: As `gateway.topic_ids` read it, before this call.

    Raises:
        KafkaException: Kafka does not answer.
        DamagedFileError: A landed file cannot be read.
        OSError: The files cannot be listed.
    """
    while True:
        landed = files.incarnations(topic, partition)
        own = sorted((each for each in landed if topic_of(each) == topic_id), key=cuts_of)
        new = PartitionLog(topic, partition, topic_id)
        try:
            if own:
                return _continued(files, reader, new._replace(incarnation=own[-1]))
            if UNKNOWN in landed and not is_in_memory(topic_id):
                found = _first_unlanded(files, reader, new._replace(incarnation=UNKNOWN))
                return LogPosition(new, found)
        except FileNotFoundError:  # merged meanwhile
            continue
        return LogPosition(new, 0)


def _continued(files: LandedFiles, reader: KafkaLogReader, log: PartitionLog) -> LogPosition:
    position = files.position(log)
    found = _first_unlanded(files, reader, log)
    if found >= position:
        return LogPosition(log, found)
    return LogPosition(log._replace(incarnation=after_cut(log.incarnation)), found)


def _first_unlanded(files: LandedFiles, reader: KafkaLogReader, log: PartitionLog) -> int:
    """Return the offset behind the last record that the landed files of a log and Kafka have in common."""
    paths = files.files(log)
    if not paths:
        return 0
    position = landing.following(files.source(paths[-1]), paths[-1])
    low, end = reader.bounds(log.topic, log.partition)
    if low >= position:
        return position  # Kafka has deleted all that was landed: nothing to compare, and nothing to land twice
    # Nearly always they agree in the last record, and one is all that is read.
    last = landing.last_identity(files.source(paths[-1]), paths[-1])
    if last is not None and reader.identities(log.topic, log.partition, position - 1, position) == {position - 1: last}:
        return position
    is_cut = is_compared = False
    for path in reversed(paths):
        landed = landing.identities(files.source(path), path)
        if not landed:
            continue  # retention of a release up to 0.1 has dropped its records
        in_kafka = reader.identities(log.topic, log.partition, min(landed), max(landed) + 1)
        is_compared = True
        common = [offset for offset, identity in in_kafka.items() if landed.get(offset) == identity]
        last_common = max(common, default=-1)
        is_cut = is_cut or any(offset > last_common for offset in in_kafka)
        if common:
            was_compacted = _is_compacted(log.topic) and not is_cut and end >= position
            return position if was_compacted else last_common + 1
    # Without a record in common, only compaction or retention explain that Kafka has no other one either.
    may_be_same = not is_cut and end >= position and (_is_compacted(log.topic) or not is_compared)
    return position if may_be_same else 0


def _is_compacted(topic: str) -> bool:
    return any(each.name == topic and each.cleanup == "compact" for each in TOPICS)


def _identities_of(topic: str, partition: int, messages: list[Any]) -> dict[int, RecordIdentity]:
    if not messages:
        return {}
    run = Run(
        topic,
        partition,
        [message.offset() for message in messages],
        [message.timestamp()[1] for message in messages],
        [message.key() for message in messages],
        [message.value() for message in messages],
        [message.headers() or () for message in messages],
    )
    return landing.table_identities(BY_TOPIC[topic].table(run))
