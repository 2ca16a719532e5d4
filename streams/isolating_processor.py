"""A processor that isolates failing records: an unexpected error costs the one record that raised it.

Such an error (RecursionError and MemoryError too) would recur at each restart, because the record is still in Kafka. So
the run is processed again record by record, and each record that fails becomes a dead letter with its reason and
origin. All of that is still one transaction.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from core.errors import where_raised
from gateway.errors import unforeseen_error
from streams.errors import StreamError
from streams.processor import (
    KafkaRecord,
    OutputRecord,
    ProcessorOutput,
    StateLoader,
    StateUpdate,
    StreamProcessor,
    build_dead_letter,
)

_log = logging.getLogger(__name__)

MAX_RECORD_BYTES: Final = 950_000
"""Bytes of key, value and headers. Kafka's clients and topics accept 1,000,000 with their own overhead, and a larger
record ends the producer."""
# Delay of a timer that failed.
_RETRY_MS: Final = 3_600_000


class OversizedRecordError(Exception):
    """An output record is larger than Kafka accepts."""


class IsolatingProcessor:
    """The processor of one partition, guarded. Without errors its only cost is a check of the size of outputs.

    Args:
        make_processor: Makes the processor that is guarded.
        load: Returns the stored state of a key. Its StreamError, an error of the disk, is not caught.
    """

    def __init__(self, make_processor: Callable[[StateLoader], StreamProcessor], load: StateLoader) -> None:
        self._load = load
        self._new_states: dict[bytes, bytes] = {}
        self._processor = make_processor(self._load_newest)

    def _load_newest(self, key: bytes) -> bytes | None:
        made = self._new_states.get(key)
        return self._load(key) if made is None else made

    def _run_guarded(self, work: Callable[[], ProcessorOutput]) -> ProcessorOutput | Exception:
        """Return the outputs of a call of the processor, or the unexpected error that it raised.

        Raises:
            StreamError: The local state cannot be read.
        """
        try:
            outputs = work()
            _check_sizes(outputs)
        except StreamError:
            raise
        except Exception as error:
            # The cache can hold half a change.
            self._processor.clear_cache()
            return error
        return outputs

    def process(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Process records, in their order; those that cannot be processed become dead letters.

        Raises:
            StreamError: The local state cannot be read.
        """
        outputs = self._run_guarded(lambda: self._processor.process(run))
        if isinstance(outputs, ProcessorOutput):
            return outputs
        isolated = self._process_each(run)
        if not isolated.faults:
            _log.warning(
                "%d records of %s, partition %d, could only be processed one by one, not together: %s",
                *(len(run), run[0].topic, run[0].partition, where_raised(outputs)),
            )
        return isolated

    def _process_each(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Process each record as a run of its own, on the states of those before it; return all outputs together."""
        outputs = ProcessorOutput()
        states: dict[bytes, StateUpdate] = {}
        last_error: Exception | None = None
        try:
            for record in run:
                made = self._run_guarded(partial(self._processor.process, [record]))
                if isinstance(made, Exception):
                    last_error = made
                    outputs.faults += 1
                    outputs.records.append(build_dead_letter(record, unforeseen_error(made)))
                    continue
                for key, value, due in made.states:
                    states[key] = key, value, _earlier_timer(due, states[key][2] if key in states else None)
                    self._new_states[key] = value or b""
                _append_output(made, outputs)
        finally:
            self._new_states.clear()
        outputs.states = list(states.values())
        if last_error is not None:
            _log.error(
                "%d records of %s, partition %d, could not be processed and are dead letters, the last because of %s. "
                "This is a fault of smspulse: report it",
                *(outputs.faults, run[0].topic, run[0].partition, where_raised(last_error)),
            )
        return outputs

    def on_timer(self, keys: Iterable[bytes], now: int) -> ProcessorOutput:
        """Fire the timers of the keys; a timer that fails is put off.

        Raises:
            StreamError: The local state cannot be read.
        """
        keys = list(keys)
        outputs = self._run_guarded(lambda: self._processor.on_timer(keys, now))
        if isinstance(outputs, ProcessorOutput):
            return outputs
        outputs = ProcessorOutput()
        for key in keys:
            made = self._run_guarded(partial(self._processor.on_timer, [key], now))
            if isinstance(made, Exception):
                _log.error(
                    "a timer failed, and is put off for %d minutes: %s. This is a fault of smspulse: report it",
                    *(_RETRY_MS // 60_000, where_raised(made)),
                )
                outputs.faults += 1
                outputs.rescheduled.append((key, now + _RETRY_MS))
                continue
            outputs.states += made.states
            _append_output(made, outputs)
        return outputs

    def next_timer(self, value: bytes | None, written_at: int) -> int | None:
        """Return the time of a state's timer; see `StreamProcessor.next_timer`."""
        return self._processor.next_timer(value, written_at)

    def clear_cache(self) -> None:
        """Drop decoded states; see `StreamProcessor.clear_cache`."""
        self._processor.clear_cache()


def _earlier_timer(one: int | None, other: int | None) -> int | None:
    times = [due for due in (one, other) if due is not None]
    return min(times, default=None)


def _append_output(made: ProcessorOutput, outputs: ProcessorOutput) -> None:
    """Add all but the states."""
    outputs.records += made.records
    outputs.rescheduled += made.rescheduled
    outputs.expired += made.expired
    outputs.ends += made.ends


def _check_sizes(outputs: ProcessorOutput) -> None:
    """Raise an error if Kafka would refuse a record. A retry would not help.

    Raises:
        OversizedRecordError: A record is too large.
    """
    largest_state = max((len(value) + len(key) for key, value, _ in outputs.states if value), default=0)
    largest_other = max(map(_record_size, outputs.records), default=0)
    if max(largest_state, largest_other) > MAX_RECORD_BYTES:
        msg = "a record is larger than Kafka accepts"
        raise OversizedRecordError(msg)


def _record_size(output: OutputRecord) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in output.headers or ())
    return len(output.key or b"") + len(output.value or b"") + headers
