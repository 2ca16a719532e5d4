"""Processor contract: the pure part of a stage. Records and timers in, the content of one transaction out.

A processor uses neither Kafka nor a disk. `streams.message_processor` and `streams.device_processor` implement it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import msgspec

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

It has its key; its value, where None drops the state: a tombstone on the changelog and a mark in the store; and the
time of its timer in milliseconds, or None if the key has a timer that is not later.
"""


class OutputRecord(NamedTuple):
    """A record for another topic than the changelog. Without a partition, Kafka's partitioner uses the key."""

    topic: str
    key: bytes | None
    value: bytes | None
    partition: int | None = None
    headers: list[tuple[str, Any]] | None = None


class OutcomeRecord(msgspec.Struct, gc=False, omit_defaults=True):
    """The value of a record on `sms.outcomes`; see `core.records`. Latencies are in seconds.

    Attributes:
        late: Whether the message had been evicted before its first report in this state. An earlier end of it may have
            been reported.
    """

    source: str
    sms_id: int
    outcome: str
    failure_class: str | None
    last_status_id: int
    is_ended: bool
    device_id: int | None
    channel_id: int | None
    first_seen_at: int
    ended_at: int | None
    attempts: int
    queue_s: float | None
    device_s: float | None
    network_s: float | None
    total_s: float | None
    correction: bool
    previous: str | None
    # Written only if it is true: nearly no message is late.
    late: bool = False


@dataclass(slots=True)
class ProcessorOutput:
    """The content of one transaction, and the changes of the local store after it that are not on the changelog.

    Args:
        states: New states, at most one for each key.
        records: Records for other topics.
        rescheduled: Keys whose timer fired too early, and their new time.
        expired: Keys of dropped states whose mark in the store is removed.
        ends: Messages that came to their first end, for the metrics.
        faults: Number of records and keys that raised an unexpected error; see `streams.isolating_processor`.
    """

    states: list[StateUpdate] = field(default_factory=list)
    records: list[OutputRecord] = field(default_factory=list)
    rescheduled: list[tuple[bytes, int]] = field(default_factory=list)
    expired: list[bytes] = field(default_factory=list)
    ends: list[OutcomeRecord] = field(default_factory=list)
    faults: int = 0


class StreamProcessor(Protocol):
    """Processor of one partition of a stage. The outputs of a call are in the store before the next call, or lost."""

    def process(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Process records, in their order."""

    def on_timer(self, keys: Iterable[bytes], now: int) -> ProcessorOutput:
        """Fire the timers of the keys that are due at a time in milliseconds."""

    def next_timer(self, value: bytes | None, written_at: int) -> int | None:
        """Return the timer of a state that was written to the changelog at `written_at`, both in milliseconds.

        Raises:
            KeyError, TypeError, ValueError: The value is not a state of this processor.
        """

    def clear_cache(self) -> None:
        """Drop decoded states, because outputs were not committed or the store has changed."""


MAX_DEAD_LETTER_BYTES: Final = 4_096
"""Bytes of a record in its dead letter: enough to recognise it. The record itself has all of them."""

StateLoader = Callable[[bytes], bytes | None]
"""Returns the stored state of a key: None if it never existed, empty if it was dropped."""


def build_dead_letter(record: KafkaRecord, error: UnreadablePayload) -> OutputRecord:
    """Return the dead letter of a record that cannot be read, with the first bytes of its value."""
    headers: list[tuple[str, Any]] = [
        *record.headers,
        (records.HEADER_REASON, error.reason.encode()),
        (records.HEADER_DETAIL, error.detail.encode()),
        (records.HEADER_ORIGIN, records.format_origin(record.topic, record.partition, record.offset)),
    ]
    value = record.value and record.value[:MAX_DEAD_LETTER_BYTES]
    return OutputRecord(DEADLETTERS, record.key, value, record.partition, headers)
