"""Landed records that Kafka does not hold any more."""

from pathlib import Path

from warehouse.datasets import DATASET_BY_TOPIC
from warehouse.landed_files import find_newest_file, list_incarnations, list_log_files
from warehouse.partition_log import UNKNOWN_INCARNATION, PartitionLog, parse_cut_count, parse_topic_id
from warehouse.sink.range_metadata import read_landed_position, read_last_identity, read_range_start


def find_present_incarnation(data: Path, topic: str, partition: int) -> str | None:
    """Return the landed incarnation of a partition whose records were written to Kafka last.

    It is not always the one that appeared last: the in-memory broker can follow Kafka, and Kafka can come back.
    """
    newest_at: dict[str, tuple[str, int]] = {}
    for incarnation in list_incarnations(data, topic, partition):
        path = find_newest_file(data / DATASET_BY_TOPIC[topic], PartitionLog(topic, partition, incarnation))
        if path is not None:
            last = read_last_identity(path, path)
            newest_at[incarnation] = (path.parent.name, (last and last.recorded_at_ms) or 0)
    return max(newest_at, key=lambda incarnation: newest_at[incarnation], default=None)


def find_first_lost_offsets(data: Path, topic: str, partition: int, topic_id: str) -> dict[str, int | None]:
    """Return, by incarnation of a partition, the offset from which on Kafka does not hold the landed records.

    It is 0 for incarnations of other topics, and None for the newest one of this topic. Of earlier ones, Kafka holds
    the records that were written before the log was cut.

    Args:
        data: The data folder.
        topic: Name of the topic.
        partition: Number of the partition.
        topic_id: Id of the topic that Kafka holds now.
    """
    found: dict[str, int | None] = dict.fromkeys(list_incarnations(data, topic, partition), 0)
    own = sorted((each for each in found if parse_topic_id(each) == topic_id), key=parse_cut_count)
    starts = [read_range_start(list_log_files(data, PartitionLog(topic, partition, each))[0]) for each in own]
    for number, incarnation in enumerate(own):
        found[incarnation] = min(starts[number + 1 :], default=None)
    # Files of a release up to 0.1 belong to the same topic if its first log continues at their end.
    if UNKNOWN_INCARNATION in found and own and starts[0] == read_landed_position(data, topic, partition) > 0:
        found[UNKNOWN_INCARNATION] = found[own[0]]
    return found
