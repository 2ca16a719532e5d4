"""What a fold is: the pure part of a stage, from records and the clock to what one transaction writes.

No Kafka, no disk: records in, bytes out. `streams.message_processor` and `streams.device_processor` are the two folds.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from core import records
from core.topics import DEADLETTERS
from gateway.errors import UnreadablePayload


class KafkaRecord(Protocol):
    """A record of Kafka, as aiokafka returns it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


StateUpdate = tuple[bytes, bytes | None, int | None]
"""A new state: a record of the stage's changelog, and an entry of the local store.

Its key; its value, where None drops the state: a tombstone on the changelog, and a mark in the store that it was there;
and when the clock has to look at it, in milliseconds, or None where that is not sooner than was said of the key before.
"""


class OutputRecord(NamedTuple):
    """A record for another topic than the changelog. Without a partition, Kafka's partitioner takes it from the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: list[tuple[str, Any]] | None = None


class EndedMessage(NamedTuple):
    """A message at its first end. The latencies are in seconds."""

    outcome: str
    network_s: float | None
    total_s: float | None


@dataclass(slots=True)
class ProcessorOutput:
    """What one transaction writes, and what changes in the local store after it without a word to anybody.

    Args:
        states: One for each key at most.
        records: Records for other topics.
        rescheduled: Keys whose timer came too early, and when to look at them again.
        expired: Keys of dropped states whose mark in the store goes too.
        ends: Messages that came to their first end, to be counted.
        faults: How many records and keys raised an error that nobody foresaw; see `streams.isolating_processor`.
    """

    states: list[StateUpdate] = field(default_factory=list)
    records: list[OutputRecord] = field(default_factory=list)
    rescheduled: list[tuple[bytes, int]] = field(default_factory=list)
    expired: list[bytes] = field(default_factory=list)
    ends: list[EndedMessage] = field(default_factory=list)
    faults: int = 0


class StreamProcessor(Protocol):
    """The fold of one partition of a stage. What a call returns is in the store before the next call, or forgotten."""

    def process(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Fold records, in their order."""

    def on_timer(self, keys: Iterable[bytes], now: int) -> ProcessorOutput:
        """Do what is due for the states under the keys, at a time in milliseconds."""

    def next_timer(self, value: bytes | None, written_at: int) -> int | None:
        """Return when a state that was written to the changelog at `written_at` is due, both in milliseconds.

        Raises:
            KeyError, TypeError, ValueError: It is no state of this fold.
        """

    def clear_cache(self) -> None:
        """Drop what is decoded: outputs were not committed, or the store has changed."""


MAX_DEAD_LETTER_BYTES: Final = 4_096
"""Bytes of a record that its dead letter repeats: enough to see what it is. The record itself has all of them."""

StateLoader = Callable[[bytes], bytes | None]
"""Returns the stored state of a key: None if there never was one, empty if it was dropped."""


def build_dead_letter(record: KafkaRecord, error: UnreadablePayload) -> OutputRecord:
    """Return the record for `sms.deadletters` about one that cannot be read, with the first bytes of its value."""
    headers: list[tuple[str, Any]] = [
        *record.headers,
        (records.HEADER_REASON, error.reason.encode()),
        (records.HEADER_DETAIL, error.detail.encode()),
        (records.HEADER_ORIGIN, records.format_origin(record.topic, record.partition, record.offset)),
    ]
    value = record.value and record.value[:MAX_DEAD_LETTER_BYTES]
    return OutputRecord(DEADLETTERS, record.key, value, record.partition, headers)
