"""Identity of the log of one Kafka partition: topic, partition and incarnation of the topic.

A topic that is deleted and created again begins at offset 0 again, and so does every topic of another Kafka. So an
offset has a meaning only within one incarnation of a topic. An incarnation is named after

- Kafka's own id of the topic, 22 characters of URL-safe base64;
- `memory-` and the id of the broker's run, for the in-memory broker;
- and, after a dot, how often the log of that topic was cut and continued. This happens when Kafka is restored from an
  older copy: the topic keeps its id, and other records get offsets that were used before.

Files of releases up to 0.1 have no incarnation: it is empty.
"""

from typing import Final, NamedTuple

_CUT_SEPARATOR: Final = "."
UNKNOWN_INCARNATION: Final = ""
"""Incarnation of the files of releases up to 0.1."""


class PartitionLog(NamedTuple):
    """The log of one partition in one incarnation of its topic. Offsets are positions in it.

    Args:
        topic: Name of the topic.
        partition: Number of the partition.
        incarnation: Incarnation of the topic, as the module describes it.
    """

    topic: str
    partition: int
    incarnation: str = UNKNOWN_INCARNATION

    def __str__(self) -> str:
        return f"{self.topic} partition {self.partition}"

    @property
    def file_label(self) -> str:
        """Partition and incarnation in file names: `3@lRzIIh8tT0uQSrF6QRzHyA`, or `3` if the incarnation is unknown."""
        return f"{self.partition}@{self.incarnation}" if self.incarnation else str(self.partition)


def parse_topic_id(incarnation: str) -> str:
    """Return the id of an incarnation's topic, or of the in-memory broker's run."""
    return incarnation.partition(_CUT_SEPARATOR)[0]


def parse_cut_count(incarnation: str) -> int:
    """Return how often the topic's log was cut before this incarnation began."""
    return int(incarnation.partition(_CUT_SEPARATOR)[2] or 0)


def next_incarnation(incarnation: str) -> str:
    """Return the incarnation that follows when the log is cut: `ID.1` after `ID`."""
    return f"{parse_topic_id(incarnation)}{_CUT_SEPARATOR}{parse_cut_count(incarnation) + 1}"
