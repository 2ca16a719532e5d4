"""The processor of `sms.raw`: reports become versions of messages, and these become outcomes.

Records on `sms.outcomes` follow from the difference between the last version of a message and the new one. They are in
one transaction with the new version, so each outcome is written once, whatever is repeated.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import InitVar, dataclass
from datetime import tzinfo
from operator import attrgetter
from typing import Any, Final

import msgspec

from core import records
from core.records import HEADER_CONTENT_TYPE, HEADER_RECEIVED_AT
from core.topics import OUTCOMES
from gateway.errors import UnreadablePayload
from gateway.events import StatusReport
from gateway.payloads import parse_payload
from gateway.statuses import Outcome
from streams.lifecycle import LifecycleRules, MessageState, MessageSummary, MessageVersion, OutcomeRecord
from streams.processor import KafkaRecord, OutputRecord, ProcessorOutput, StateLoader, build_dead_letter

REASON_MISSING_HEADER: Final = "missing_header"
REASON_WRONG_KEY: Final = "wrong_key"
REASON_TOO_MANY: Final = "too_many_reports"

# Bytes of a version that count as one message in the cache. A version with five reports has about 700.
_BYTES_PER_MESSAGE: Final = 1024
# Most messages end within a minute. One whose last report is older is read from the store if another one comes.
# Otherwise, messages that never end would fill the cache for an hour.
_CACHED_MS: Final = 300_000
# A time in milliseconds has 13 digits.
_MAX_DIGITS: Final = 16
# The outcomes of the ended attempts of a message without an end.
_OPEN: Final = ()
_NO_END: Final = (None, _OPEN)
_EXPIRED, _INCOMING = Outcome.EXPIRED.value, Outcome.INCOMING.value

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(MessageVersion).decode


# In the order of the fields of both.
_read_summary: Callable[[MessageSummary], tuple[Any, ...]] = attrgetter(*MessageSummary.__struct_fields__)


class _CachedMessage(MessageState, gc=False):
    """A message in memory: its facts, and the state that was reported last.

    Attributes:
        has_expired: Whether an expiry was reported, also if the message was reopened since.
        reported: The outcomes of its ended attempts, or `expired`; None before its first version and for an incoming
            message.
        due: Time of its timer, in milliseconds, or somewhat earlier; None before its first version.
        weight: The number of messages as which the cache counts it; 0 if the cache does not have it.
    """

    has_expired: bool = False
    reported: tuple[str, ...] | None = None
    due: int | None = None
    weight: int = 0


class _MessageCache:
    """Decoded messages by key.

    `trim_oldest` removes those that were added first: down to a number of messages, and those without a report for some
    minutes. A large message counts as several: one with a few thousand reports takes the memory of many ordinary ones.
    """

    def __init__(self, max_messages: int) -> None:
        self._max_messages = max_messages
        self._messages: OrderedDict[bytes, _CachedMessage] = OrderedDict()
        self.get = self._messages.get
        self.weight = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put_message(self, key: bytes, message: _CachedMessage, size: int) -> None:
        """Add a message, or update its size: the bytes of its stored version."""
        weight = max(size // _BYTES_PER_MESSAGE, 1)
        self.weight += weight - message.weight
        message.weight = weight
        self._messages[key] = message

    def remove_message(self, key: bytes) -> None:
        message = self._messages.pop(key, None)
        if message is not None:
            self.weight -= message.weight

    def trim_oldest(self, newest_at: int) -> None:
        """Remove messages. `newest_at` is the time of the newest report, in milliseconds."""
        while self._messages:
            key, message = next(iter(self._messages.items()))
            if self.weight <= self._max_messages and message.last_seen_at >= newest_at - _CACHED_MS:
                return
            self.remove_message(key)

    def clear(self) -> None:
        self._messages.clear()
        self.weight = 0


@dataclass(eq=False)
class MessageProcessor:
    """The processor of one partition of `sms.raw`.

    Args:
        lifecycle: Derives versions.
        load: Returns the newest version of a message by key.
        zone: Zone of payload times that name none.
        cache_messages: Number of messages to keep decoded.
        forget_after_ms: Milliseconds without a report after which the state of a message is dropped; more than those
            after which it expires.
        max_observations: Most different reports of a message. The rebuild in SQL has the same limit.
    """

    lifecycle: LifecycleRules
    load: StateLoader
    zone: tzinfo
    cache_messages: InitVar[int]
    forget_after_ms: int
    max_observations: int = records.MAX_OBSERVATIONS

    def __post_init__(self, cache_messages: int) -> None:
        self._cache = _MessageCache(cache_messages)

    def clear_cache(self) -> None:
        """Drop decoded messages."""
        self._cache.clear()

    def process(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Process records, in their order."""
        outputs = ProcessorOutput()
        changed: dict[bytes, _CachedMessage] = {}
        for record in run:
            try:
                self._process_record(record, changed)
            except UnreadablePayload as error:
                outputs.records.append(build_dead_letter(record, error))
        for key, message in changed.items():
            self._write_version(key, message, outputs)
        newest_at = max((message.last_seen_at for message in changed.values()), default=0)
        self._cache.trim_oldest(newest_at)
        return outputs

    def on_timer(self, keys: Iterable[bytes], now: int) -> ProcessorOutput:
        """Expire messages, and evict those without reports."""
        outputs = ProcessorOutput()
        for key in keys:
            stored = self.load(key)
            if not stored:
                # The timer of an evicted message removes its mark.
                outputs.expired.append(key)
                continue
            message = self._cache.get(key) or self._decode_message(stored)
            due = self._next_due_at(message.last_seen_at, is_open=message.reported == _OPEN)
            if due > now:
                outputs.rescheduled.append((key, due))
                message.due = due
            elif message.reported == _OPEN:
                message.mark_expired(due)
                message.due = None
                self._write_version(key, message, outputs)
            else:
                self._cache.remove_message(key)
                outputs.states.append((key, None, now + self.forget_after_ms))
        return outputs

    def next_timer(self, value: bytes | None, written_at: int) -> int:
        """Return when an open message expires, an ended one is evicted, or the mark of an evicted one is removed."""
        if not value:
            return written_at + self.forget_after_ms
        version = _decode(value)
        if not version.observations:
            msg = "a version without observations"
            raise ValueError(msg)
        return self._next_due_at(version.last_seen_at, is_open=_find_outcomes(version) == _OPEN)

    def _next_due_at(self, last_seen_at: int, *, is_open: bool) -> int:
        return last_seen_at + (self.lifecycle.expire_after_ms if is_open else self.forget_after_ms)

    def _process_record(self, record: KafkaRecord, changed: dict[bytes, _CachedMessage]) -> None:
        headers = dict(record.headers)
        event = parse_payload(record.value or b"", self.zone, headers.get(HEADER_CONTENT_TYPE))
        received = headers.get(HEADER_RECEIVED_AT) or b""
        received_at = int(received) if received.isdigit() and len(received) < _MAX_DIGITS else record.timestamp
        if not isinstance(event, StatusReport):
            # An incoming message has no lifecycle. It is read, so that one that cannot be read is a dead letter.
            _read_source(headers)
            return
        key = record.key or b""
        message = self._cache.get(key) or self._load_message(key, headers, event.sms_id)
        if message.sms_id != event.sms_id:
            raise _wrong_key_error()
        if len(message.observations) >= self.max_observations and not message.has_observation(event):
            detail = f"the message already has {self.max_observations} different reports"
            raise UnreadablePayload(REASON_TOO_MANY, detail)
        if message.add_report(event, received_at):
            changed[key] = message

    def _load_message(self, key: bytes, headers: dict[str, bytes], sms_id: int) -> _CachedMessage:
        source = _read_source(headers)
        if key != records.message_key(source, sms_id):
            raise _wrong_key_error()
        stored = self.load(key)
        message = self._decode_message(stored) if stored else _CachedMessage(source, sms_id, late=stored is not None)
        self._cache.put_message(key, message, len(stored or b""))
        return message

    def _decode_message(self, stored: bytes) -> _CachedMessage:
        version = _decode(stored)
        message = _CachedMessage.from_version(version)
        if version.attempts > 1 and version.attempt_details is None:
            # An earlier release wrote it.
            version = self.lifecycle.derive_version(message)
        message.reported = _find_outcomes(version)
        message.due = self._next_due_at(version.last_seen_at, is_open=message.reported == _OPEN)
        message.has_expired = version.expired_at is not None
        return message

    def _write_version(self, key: bytes, message: _CachedMessage, outputs: ProcessorOutput) -> None:
        """Write the version that follows from a message's facts, and the outcomes of its attempts that changed."""
        version = self.lifecycle.derive_version(message)
        before, reported = message.reported, _find_outcomes(version)
        due = self._next_due_at(version.last_seen_at, is_open=reported == _OPEN)
        is_sooner = message.due is None or due < message.due
        encoded = _encode(version)
        outputs.states.append((key, encoded, due if is_sooner else None))
        if is_sooner:
            message.due = due
        if reported != before and not (reported in _NO_END and before in _NO_END):
            _append_outcomes(message, version, reported or _OPEN, outputs)
        message.reported, message.has_expired = reported, version.expired_at is not None
        if reported not in _NO_END:
            # Reports after the end are rare, so a read of the store costs less than the memory.
            self._cache.remove_message(key)
        else:
            self._cache.put_message(key, message, len(encoded))


def _find_outcomes(version: MessageVersion) -> tuple[str, ...] | None:
    """Return the state under which a version of a message counts; see `_CachedMessage.reported`."""
    if not version.is_ended:
        return None if version.outcome == _INCOMING else _OPEN
    if version.attempt_details is None:
        return (version.outcome,)
    return tuple(attempt.outcome for attempt in version.attempt_details if attempt.ended_at is not None)


def _append_outcomes(
    message: _CachedMessage, version: MessageVersion, reported: tuple[str, ...], outputs: ProcessorOutput
) -> None:
    """Write the outcome of each attempt that differs from the one that was reported last."""
    before = message.reported or _OPEN
    if not reported:
        # A report that is not an end takes an expiry back. Only another end replaces an end.
        _append_outcome(_read_summary(version), 1, before[0], message, outputs)
    for number, outcome in enumerate(reported, start=1):
        previous = before[number - 1] if number <= len(before) else None
        if outcome == previous:
            continue
        if previous is None and number == 1 and message.has_expired:
            previous = _EXPIRED
        _append_outcome(_summarize_attempt(version, number), number, previous, message, outputs)


def _summarize_attempt(version: MessageVersion, number: int) -> tuple[Any, ...]:
    """Return the values of a summary, of an attempt of a version. Attempts are numbered from 1."""
    if version.attempt_details is None:
        return _read_summary(version)
    attempt = version.attempt_details[number - 1]
    ended_at = attempt.ended_at
    summary = msgspec.structs.replace(
        version,
        outcome=attempt.outcome,
        failure_class=attempt.failure_class,
        last_status_id=attempt.status_id,
        is_ended=ended_at is not None,
        device_id=attempt.device_id,
        channel_id=attempt.channel_id,
        first_seen_at=attempt.started_at,
        ended_at=ended_at,
        queue_s=attempt.queue_s,
        device_s=attempt.device_s,
        network_s=attempt.network_s,
        total_s=None if ended_at is None else (ended_at - attempt.started_at) / 1000,
    )
    return _read_summary(summary)


def _append_outcome(
    summary: tuple[Any, ...], attempt: int, previous: str | None, message: _CachedMessage, outputs: ProcessorOutput
) -> None:
    """Write the outcome of an attempt, whose outcome was `previous` before."""
    # The reported outcome of an evicted message is not known any more, only that there was one.
    is_correction = previous is not None or message.late
    values = [*summary, is_correction, previous, message.late, attempt]
    outcome = OutcomeRecord(*values)
    key = records.device_key(outcome.source, outcome.device_id)
    outputs.records.append(OutputRecord(OUTCOMES, key, _encode(outcome)))
    if not is_correction and attempt == 1:
        outputs.ends.append(outcome)


def _read_source(headers: dict[str, bytes]) -> str:
    source = headers.get(records.HEADER_SOURCE)
    if source is None:
        raise UnreadablePayload(REASON_MISSING_HEADER, "the record names no source", records.HEADER_SOURCE)
    return source.decode(errors="replace")


def _wrong_key_error() -> UnreadablePayload:
    # The key decides the partition. A wrong key would split the state of the message over two partitions.
    return UnreadablePayload(REASON_WRONG_KEY, "the record's key is not {source}:{sms_id}")
