"""Processor contract: the pure part of a stage. Records and timers in, the content of one transaction out.

A processor uses neither Kafka nor a disk. `streams.message_processor` and `streams.device_processor` implement it.
`IsolatingProcessor` guards it: no record can stop a stage.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from core import records
from core.errors import where_raised
from core.topics import DEADLETTERS
from gateway.errors import UnreadablePayload, unforeseen_error
from streams.errors import StreamError
from streams.lifecycle import OutcomeRecord

_log = logging.getLogger(__name__)

MAX_DEAD_LETTER_BYTES: Final = 4_096
"""Bytes of a record in its dead letter: enough to recognise it. The record itself has all of them."""
# Bytes of key, value and headers. Kafka's clients and topics accept 1,000,000 with their own overhead, and a larger
# record ends the producer.
MAX_RECORD_BYTES: Final = 950_000
# Delay of a timer that failed.
_RETRY_MS: Final = 3_600_000

_Item = TypeVar("_Item")

StateLoader = Callable[[bytes], bytes | None]
"""Returns the stored state of a key: None if it never existed, empty if it was dropped."""


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


@dataclass(slots=True)
class ProcessorOutput:
    """The content of one transaction, and the changes of the local store after it that are not on the changelog.

    Args:
        states: New states, at most one for each key.
        records: Records for other topics.
        rescheduled: Keys whose timer fired too early, and their new time.
        expired: Keys of dropped states whose mark in the store is removed.
        ends: Messages that came to their first end, for the metrics.
        faults: Number of records and keys that raised an unexpected error.
    """

    states: list[StateUpdate] = field(default_factory=list)
    records: list[OutputRecord] = field(default_factory=list)
    rescheduled: list[tuple[bytes, int]] = field(default_factory=list)
    expired: list[bytes] = field(default_factory=list)
    ends: list[OutcomeRecord] = field(default_factory=list)
    faults: int = 0

    def largest_record(self) -> int:
        """Return the bytes of the largest record: its key, value and headers."""
        states = (len(key) + len(value) for key, value, _ in self.states if value)
        others = (
            len(each.key or b"")
            + len(each.value or b"")
            + sum(len(name) + len(value) for name, value in each.headers or ())
            for each in self.records
        )
        return max(chain(states, others), default=0)


class StreamProcessor(Protocol):
    """Processor of one partition of a stage. The outputs of a call are in the store before the next call, or lost."""

    def process(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Process records, in their order."""

    def on_timer(self, keys: Iterable[bytes], now: int) -> ProcessorOutput:
        """Fire the timers of the keys that are due at a time in milliseconds."""

    def next_timer(self, value: bytes | None, written_at: int) -> int | None:
        """Return the timer of a state that was written to the changelog at `written_at`, both in milliseconds.

        Raises:
            Exception: The value is not a state of this processor.
        """

    def clear_cache(self) -> None:
        """Drop decoded states, because outputs were not committed or the store has changed."""


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


class OversizedRecordError(Exception):
    """An output record is larger than Kafka accepts. A retry would not help."""


class IsolatingProcessor:
    """A processor that isolates failing records: an unexpected error costs the one record that raised it.

    Such an error (RecursionError and MemoryError too) would recur at each restart, because the record is still in
    Kafka. So the run is processed again record by record, and each record that fails becomes a dead letter with its
    reason and origin. All of that is still one transaction. A timer that fails is put off.

    Args:
        make_processor: Makes the processor that is guarded.
        load: Returns the stored state of a key. Its StreamError, an error of the disk, is not caught.
    """

    def __init__(self, make_processor: Callable[[StateLoader], StreamProcessor], load: StateLoader) -> None:
        self._load = load
        self._new_states: dict[bytes, bytes] = {}
        self._processor = make_processor(self._load_newest)
        self.next_timer = self._processor.next_timer
        self.clear_cache = self._processor.clear_cache

    def _load_newest(self, key: bytes) -> bytes | None:
        made = self._new_states.get(key)
        return self._load(key) if made is None else made

    def process(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Process records, in their order; those that cannot be processed become dead letters."""
        outputs, failed = self._isolate(self._processor.process, run)
        for record, error in failed:
            outputs.records.append(build_dead_letter(record, unforeseen_error(error)))
        if failed:
            _log.error(
                "%d records of %s, partition %d, could not be processed and are dead letters, the last because of %s. "
                "This is a fault of smspulse: report it",
                *(len(failed), run[0].topic, run[0].partition, where_raised(failed[-1][1])),
            )
        return outputs

    def on_timer(self, keys: Iterable[bytes], now: int) -> ProcessorOutput:
        """Fire the timers of the keys; those that fail are put off."""
        outputs, failed = self._isolate(lambda due: self._processor.on_timer(due, now), list(keys))
        outputs.rescheduled += [(key, now + _RETRY_MS) for key, _ in failed]
        if failed:
            _log.error(
                "%d timers failed, and are put off for %d minutes, the last because of %s. "
                "This is a fault of smspulse: report it",
                *(len(failed), _RETRY_MS // 60_000, where_raised(failed[-1][1])),
            )
        return outputs

    def _isolate(
        self, work: Callable[[Sequence[_Item]], ProcessorOutput], items: Sequence[_Item]
    ) -> tuple[ProcessorOutput, list[tuple[_Item, Exception]]]:
        """Work on all items at once, or, if that fails, on each, on the states of those before it.

        Returns:
            The outputs of all, and the items that failed with their errors.
        """
        made = self._try(work, items)
        if isinstance(made, ProcessorOutput):
            return made, []
        outputs, failed = ProcessorOutput(), list[tuple[_Item, Exception]]()
        states: dict[bytes, StateUpdate] = {}
        try:
            for item in items:
                made = self._try(work, [item])
                if isinstance(made, Exception):
                    failed.append((item, made))
                    continue
                for key, value, due in made.states:
                    earlier = states[key][2] if key in states else None
                    states[key] = key, value, min((at for at in (due, earlier) if at is not None), default=None)
                    self._new_states[key] = value or b""
                outputs.records += made.records
                outputs.rescheduled += made.rescheduled
                outputs.expired += made.expired
                outputs.ends += made.ends
        finally:
            self._new_states.clear()
        outputs.states, outputs.faults = list(states.values()), len(failed)
        return outputs, failed

    def _try(
        self, work: Callable[[Sequence[_Item]], ProcessorOutput], items: Sequence[_Item]
    ) -> ProcessorOutput | Exception:
        """Return the outputs, or the unexpected error that was raised.

        Raises:
            StreamError: The local state cannot be read.
        """
        try:
            outputs = work(items)
            if outputs.largest_record() > MAX_RECORD_BYTES:
                msg = "a record is larger than Kafka accepts"
                raise OversizedRecordError(msg)
        except StreamError:
            raise
        except Exception as error:
            # The cache can hold half a change.
            self.clear_cache()
            return error
        return outputs
