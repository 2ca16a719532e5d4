"""The incarnation of a topic that Kafka holds, and the offset from which on its records are not landed yet.

Offsets alone are not enough: a topic that was created again, or a Kafka restored from an older copy, soon has as many
records as were landed before. So the sink compares the topic's id, and the last landed record with the record that
Kafka has at its offset. If they differ, the log was cut. Then the sink follows the landed files back to the last record
in common. Kafka's records after it belong to a new incarnation (`warehouse.partition_log`). It follows all incarnations
of the topic, because a Kafka that is restored again can hold the records of any of them.

| Kafka holds | incarnation | begins at |
|---|---|---|
| the topic that was landed, and its last landed record | the landed one | the landed position |
| another topic of that name | a new one, named after the topic's id | 0 |
| the topic that was landed, cut off or with other records | a new one, `ID.1` | behind the last record in common |
| records that a release up to 0.1 landed, without an id | a new one, named after the topic's id | the landed position |
"""

import logging
from typing import NamedTuple

from core.topic_ids import is_in_memory_id
from core.topics import TOPICS
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog, next_incarnation, parse_cut_count, parse_topic_id
from warehouse.sink.kafka_log_reader import KafkaLogReader
from warehouse.sink.parquet_files import LandingStore
from warehouse.sink.range_metadata import read_identities, read_last_identity, read_next_offset

_log = logging.getLogger(__name__)


class LogPosition(NamedTuple):
    """Offset of a log from which on Kafka's records are not landed yet.

    Args:
        log: The log.
        offset: Where its next range begins.
    """

    log: PartitionLog
    offset: int


def locate_log_position(
    store: LandingStore, reader: KafkaLogReader, topic: str, partition: int, topic_id: str
) -> LogPosition:
    """Return the log that Kafka holds, and the offset from which on its records are not landed.

    Args:
        store: The landed files.
        reader: Access to Kafka's records.
        topic: Name of the topic.
        partition: Number of the partition.
        topic_id: Id of the topic, read by `core.topic_ids` before this call.

    Raises:
        KafkaException: Kafka does not answer.
        DamagedFileError: A landed file cannot be read.
        OSError: The files cannot be listed.
    """
    while True:
        landed = store.list_incarnations(topic, partition)
        own_incarnations = sorted(
            (each for each in landed if parse_topic_id(each) == topic_id), key=parse_cut_count, reverse=True
        )
        known_incarnations = (
            [*own_incarnations, UNKNOWN_INCARNATION]
            if UNKNOWN_INCARNATION in landed and not is_in_memory_id(topic_id)
            else own_incarnations
        )
        new = PartitionLog(topic, partition, topic_id)
        if not known_incarnations:
            return LogPosition(new, 0)
        try:
            found = _find_unlanded_position(
                store, reader, [new._replace(incarnation=each) for each in known_incarnations]
            )
        # Compaction merged a file meanwhile.
        except FileNotFoundError:
            continue
        if not own_incarnations:
            return LogPosition(new, found.offset)
        incarnation = own_incarnations[0] if found.continues_newest else next_incarnation(own_incarnations[0])
        return LogPosition(new._replace(incarnation=incarnation), found.offset)


class _UnlandedPosition(NamedTuple):
    """Offset behind the last record that Kafka and the landed files have in common.

    Args:
        offset: The offset.
        continues_newest: Whether Kafka continues where the newest log ends.
    """

    offset: int
    continues_newest: bool


def _find_unlanded_position(store: LandingStore, reader: KafkaLogReader, logs: list[PartitionLog]) -> _UnlandedPosition:
    """Return the offset from which on Kafka's records are not landed.

    Args:
        store: The landed files.
        reader: Access to Kafka's records.
        logs: The topic's logs that have files, the newest first.
    """
    newest = logs[0]
    paths = store.list_log_files(newest)
    if not paths:
        raise FileNotFoundError(str(newest))
    position = read_next_offset(store.open_parquet_source(paths[-1]), paths[-1])
    low, end = reader.read_offset_bounds(newest.topic, newest.partition)
    # Nearly always the last record is the same, and it is the only one to read.
    last = read_last_identity(store.open_parquet_source(paths[-1]), paths[-1])
    if last is not None and low < position:
        found = reader.read_identities(newest.topic, newest.partition, position - 1, position)
        if found == {position - 1: last}:
            return _UnlandedPosition(position, continues_newest=True)
    compared = [_compare_log(store, reader, log, low) for log in logs]
    last_common = max(each.last_common_offset for each in compared)
    if last_common == position - 1:
        return _UnlandedPosition(position, continues_newest=True)
    if last_common < low and position <= low:
        # Kafka has deleted all landed records. There is nothing to compare, and nothing can be landed twice.
        return _UnlandedPosition(position, continues_newest=True)
    is_cut = last_common >= position or any(each.last_unlanded_offset > last_common for each in compared)
    if end >= position and not is_cut and (_is_compacted_topic(newest.topic) or not compared[0].has_rows):
        # Kafka has only landed records. Compaction explains the missing ones, or retention of a release up to 0.1.
        return _UnlandedPosition(position, continues_newest=True)
    return _UnlandedPosition(last_common + 1, continues_newest=False)


class _LogComparison(NamedTuple):
    """Comparison of the landed records of a log with Kafka's.

    Args:
        last_common_offset: Offset of the last record that both have; -1 without any.
        last_unlanded_offset: Offset of the last record in Kafka that was not landed at this offset, up to the end of
            the log; -1 without any. Records before the last one in common are not compared.
        has_rows: Whether the files have any record to compare.
    """

    last_common_offset: int
    last_unlanded_offset: int
    has_rows: bool


def _compare_log(store: LandingStore, reader: KafkaLogReader, log: PartitionLog, low: int) -> _LogComparison:
    """Compare the landed files of a log, the newest first, with Kafka's records from its first offset `low` on."""
    last_other, has_rows = -1, False
    paths = store.list_log_files(log)
    upper = read_next_offset(store.open_parquet_source(paths[-1]), paths[-1]) if paths else 0
    for path in reversed(paths):
        if upper <= low:
            break
        landed = read_identities(store.open_parquet_source(path), path)
        if not landed:
            # Retention of a release up to 0.1 has dropped its records.
            continue
        has_rows = True
        # Up to where the next file begins: Kafka can have other records where none was landed.
        in_kafka = reader.read_identities(log.topic, log.partition, min(landed), upper)
        upper = min(landed)
        common = [offset for offset, identity in in_kafka.items() if landed.get(offset) == identity]
        last_common = max(common, default=-1)
        last_other = max([last_other, *(offset for offset in in_kafka if offset > last_common)])
        if common:
            return _LogComparison(last_common, last_other, has_rows)
    if has_rows and _is_compacted_topic(log.topic):
        # Retention may have dropped the landed records here. Then it is unknown whether they were the same.
        last_other = max([last_other, *reader.read_identities(log.topic, log.partition, low, upper)])
    return _LogComparison(-1, last_other, has_rows)


def _is_compacted_topic(topic: str) -> bool:
    return any(each.name == topic and each.cleanup == "compact" for each in TOPICS)


def log_incarnation_change(store: LandingStore, position: LogPosition) -> None:
    """Log that Kafka does not hold the records that were landed before, if so."""
    log, offset = position
    others = store.list_incarnations(log.topic, log.partition) - {log.incarnation}
    is_upgrade = others == {UNKNOWN_INCARNATION} and offset == store.read_landed_position(
        log._replace(incarnation=UNKNOWN_INCARNATION)
    )
    if not others or is_upgrade or store.read_landed_position(log):
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
