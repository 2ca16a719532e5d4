"""Identity of the log of one Kafka partition: topic, partition and incarnation of the topic.

A topic that is deleted and created again begins at offset 0 again, and so does every topic of another Kafka. So an
offset means something only within one incarnation of a topic. It is named after

- Kafka's own id of the topic, 22 characters of URL-safe base64;
- `memory-` and the id of the broker's run, for the in-memory broker;
- and, after a dot, how often the log of that topic was cut and continued, which is what happens when Kafka is restored
  from an older copy: the topic keeps its id, and other records take offsets that were given before.

Releases up to 0.1 did not know incarnations: theirs is empty.
"""

from typing import Final, NamedTuple

_CUT_SEPARATOR: Final = "."
UNKNOWN_INCARNATION: Final = ""
"""Incarnation of the files of releases up to 0.1."""


class PartitionLog(NamedTuple):
    """The log of one partition in one incarnation of its topic. Offsets are positions in it.

    Args:
        topic: Kafka's name of it.
        partition: Kafka's number of it.
        incarnation: See the module.
    """

    topic: str
    partition: int
    incarnation: str = UNKNOWN_INCARNATION

    def __str__(self) -> str:
        return f"{self.topic} partition {self.partition}"

    @property
    def file_label(self) -> str:
        """Partition and incarnation as file names have them: `3@lRzIIh8tT0uQSrF6QRzHyA`, or `3` if it is unknown."""
        return f"{self.partition}@{self.incarnation}" if self.incarnation else str(self.partition)


def parse_topic_id(incarnation: str) -> str:
    """Return the id of the topic, or of the in-memory broker's run, that an incarnation is of."""
    return incarnation.partition(_CUT_SEPARATOR)[0]


def parse_cut_count(incarnation: str) -> int:
    """Return how often the topic's log was cut before this incarnation began."""
    return int(incarnation.partition(_CUT_SEPARATOR)[2] or 0)


def next_incarnation(incarnation: str) -> str:
    """Return the incarnation that follows when the log is cut: `ID.1` after `ID`."""
    return f"{parse_topic_id(incarnation)}{_CUT_SEPARATOR}{parse_cut_count(incarnation) + 1}"
