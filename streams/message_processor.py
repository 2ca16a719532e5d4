"""The processor of `sms.raw`: reports become versions of messages, and these outcomes and activity of devices.

Records on `sms.outcomes` and `sms.activity` follow from the difference between the last version of a message and the
new one. They are in one transaction with the new version, so each outcome is written once, whatever is repeated.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
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
from streams.device_activity import OPEN, ActivityCollector, Dimensions
from streams.lifecycle import LifecycleRules, MessageState, MessageVersion
from streams.processor import EndedMessage, KafkaRecord, OutputRecord, ProcessorOutput, StateLoader, build_dead_letter

REASON_MISSING_HEADER: Final = "missing_header"
REASON_WRONG_KEY: Final = "wrong_key"
REASON_TOO_MANY: Final = "too_many_reports"

# Bytes of a version. One with five reports has about 700.
_LARGE_MESSAGE_BYTES: Final = 2048
# Bytes of large messages in the cache, per message of its limit.
_CACHE_BYTES_PER_MESSAGE: Final = 1024
# A time in milliseconds has 13 digits.
_MAX_DIGITS: Final = 16
_NO_END: Final = (None, OPEN)
_NOWHERE: Final[Dimensions] = (None, None, None)
_EXPIRED, _INCOMING = Outcome.EXPIRED.value, Outcome.INCOMING.value

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(MessageVersion).decode


class _OutcomeRecord(msgspec.Struct, gc=False):
    """The value of a record on `sms.outcomes`; see `core.records`."""

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


# The other fields of an outcome record are those of the version with the same names.
_read_shared_fields: Callable[[MessageVersion], Any] = attrgetter(*_OutcomeRecord.__struct_fields__[:-2])


class _CachedMessage(MessageState):
    """A message in memory: its facts, and the state that was reported last.

    Attributes:
        has_expired: Whether an expiry was reported, also if the message was reopened since.
        dimensions: The state under which it counts, and its device and channel.
        due: Time of its timer, in milliseconds, or somewhat earlier; None before its first version.
        large_bytes: Bytes of its version that the cache counts; 0 unless it is large.
    """

    __slots__ = ("dimensions", "due", "has_expired", "large_bytes")

    def __init__(self, source: str, sms_id: int, *, late: bool = False) -> None:
        super().__init__(source, sms_id, late=late)
        self.has_expired = False
        self.dimensions = _NOWHERE
        self.due: int | None = None
        self.large_bytes = 0


class _MessageCache:
    """Decoded messages by key, within bounds. `trim_oldest` removes those that were added first.

    Nearly all messages are small, and their number is bounded. The stored bytes of large ones are bounded too: a
    message with a few thousand reports would take the memory of many ordinary messages.

    Args:
        max_messages: The largest number of messages.
    """

    def __init__(self, max_messages: int) -> None:
        self._max_messages = max_messages
        self._max_large_bytes = max_messages * _CACHE_BYTES_PER_MESSAGE
        self._messages: OrderedDict[bytes, _CachedMessage] = OrderedDict()
        self.get = self._messages.get
        self.large_bytes = 0

    def __len__(self) -> int:
        return len(self._messages)

    def add_message(self, key: bytes, message: _CachedMessage, size: int) -> None:
        """Add a message with the size of its stored version in bytes."""
        self._messages[key] = message
        if size > _LARGE_MESSAGE_BYTES:
            self.resize_message(key, size)

    def resize_message(self, key: bytes, size: int) -> None:
        """Update the size of a message whose version is large, if the cache has it."""
        message = self._messages.get(key)
        if message is not None:
            self.large_bytes += size - message.large_bytes
            message.large_bytes = size

    def remove_message(self, key: bytes) -> None:
        message = self._messages.pop(key, None)
        if message is not None:
            self.large_bytes -= message.large_bytes

    def trim_oldest(self) -> None:
        while len(self._messages) > self._max_messages or self.large_bytes > self._max_large_bytes:
            _, message = self._messages.popitem(last=False)
            self.large_bytes -= message.large_bytes

    def clear(self) -> None:
        self._messages.clear()
        self.large_bytes = 0


class MessageProcessor:
    """The processor of one partition of `sms.raw`.

    Args:
        lifecycle: Derives versions.
        load: Returns the newest version of a message by key.
        zone: Zone of payload times that name none.
        cache: Number of messages to keep decoded.
        expire_after_ms: Milliseconds without a report after which an open message expires.
        forget_after_ms: Milliseconds without a report after which the state of a message is dropped; more than the
            former.
        max_observations: Most different reports of a message. The rebuild in SQL has the same limit.
    """

    def __init__(
        self,
        lifecycle: LifecycleRules,
        load: StateLoader,
        zone: tzinfo,
        cache: int,
        expire_after_ms: int,
        forget_after_ms: int,
        *,
        max_observations: int = records.MAX_OBSERVATIONS,
    ) -> None:
        self._lifecycle = lifecycle
        self._load = load
        self._zone = zone
        self._expire_after_ms = expire_after_ms
        self._forget_after_ms = forget_after_ms
        self._max_observations = max_observations
        self._cache = _MessageCache(cache)

    def clear_cache(self) -> None:
        """Drop decoded messages."""
        self._cache.clear()

    def process(self, run: Sequence[KafkaRecord]) -> ProcessorOutput:
        """Process records, in their order."""
        outputs, activities = ProcessorOutput(), ActivityCollector()
        changed: dict[bytes, _CachedMessage] = {}
        arrived: dict[bytes, int] = {}
        for record in run:
            try:
                self._process_record(record, changed, arrived, activities)
            except UnreadablePayload as error:
                outputs.records.append(build_dead_letter(record, error))
        outputs.states += [(key, None, due) for key, due in arrived.items()]
        for key, message in changed.items():
            self._write_version(key, message, outputs, activities)
        outputs.records += activities.build_records()
        self._cache.trim_oldest()
        return outputs

    def on_timer(self, keys: Iterable[bytes], now: int) -> ProcessorOutput:
        """Expire messages, and evict those without reports."""
        outputs, activities = ProcessorOutput(), ActivityCollector()
        for key in keys:
            stored = self._load(key)
            if not stored:
                # The timer of an evicted message removes its mark.
                outputs.expired.append(key)
                continue
            message = self._cache.get(key) or self._decode_message(stored)
            due = self._next_due_at(message.dimensions[0], message.last_seen_at)
            if due > now:
                outputs.rescheduled.append((key, due))
                message.due = due
            elif message.dimensions[0] == OPEN:
                message.mark_expired(due)
                message.due = None
                self._write_version(key, message, outputs, activities)
            else:
                self._cache.remove_message(key)
                outputs.states.append((key, None, now + self._forget_after_ms))
        outputs.records += activities.build_records()
        return outputs

    def next_timer(self, value: bytes | None, written_at: int) -> int:
        """Return when an open message expires, an ended one is evicted, or the mark of an evicted one is removed."""
        if not value:
            return written_at + self._forget_after_ms
        try:
            version = _decode(value)
        except msgspec.DecodeError as error:
            raise ValueError from error
        if not version.observations:
            raise ValueError
        return self._next_due_at(_reported_state(version), version.last_seen_at)

    def _next_due_at(self, reported: str | None, last_seen_at: int) -> int:
        return last_seen_at + (self._expire_after_ms if reported == OPEN else self._forget_after_ms)

    def _process_record(
        self,
        record: KafkaRecord,
        changed: dict[bytes, _CachedMessage],
        arrived: dict[bytes, int],
        activities: ActivityCollector,
    ) -> None:
        headers = dict(record.headers)
        event = parse_payload(record.value or b"", self._zone, headers.get(HEADER_CONTENT_TYPE))
        received = headers.get(HEADER_RECEIVED_AT) or b""
        received_at = int(received) if received.isdigit() and len(received) < _MAX_DIGITS else record.timestamp
        if not isinstance(event, StatusReport):
            source = _read_source(headers)
            key = records.incoming_key(source, event.sms_id)
            if key not in arrived and self._load(key) is None:
                # Evicted at once, because only the mark is needed.
                arrived[key] = received_at + self._forget_after_ms
                activities.add_incoming(source, event.device_id, event.channel_id, received_at)
            return
        key = record.key or b""
        message = self._cache.get(key) or self._load_message(key, headers, event.sms_id)
        if message.sms_id != event.sms_id:
            raise _wrong_key_error()
        if len(message.observations) >= self._max_observations and not message.has_observation(event):
            detail = f"the message already has {self._max_observations} different reports"
            raise UnreadablePayload(REASON_TOO_MANY, detail)
        if message.add_report(event, received_at):
            changed[key] = message

    def _load_message(self, key: bytes, headers: dict[str, bytes], sms_id: int) -> _CachedMessage:
        source = _read_source(headers)
        if key != records.message_key(source, sms_id):
            raise _wrong_key_error()
        stored = self._load(key)
        message = self._decode_message(stored) if stored else _CachedMessage(source, sms_id, late=stored is not None)
        self._cache.add_message(key, message, len(stored or b""))
        return message

    def _decode_message(self, stored: bytes) -> _CachedMessage:
        version = _decode(stored)
        message = _CachedMessage.from_version(version)
        reported = _reported_state(version)
        message.dimensions = reported, version.device_id, version.channel_id
        message.due = self._next_due_at(reported, version.last_seen_at)
        message.has_expired = version.expired_at is not None
        return message

    def _write_version(
        self, key: bytes, message: _CachedMessage, outputs: ProcessorOutput, activities: ActivityCollector
    ) -> None:
        """Write the version that follows from a message's facts, and the outcome and activity that it changes."""
        version = self._lifecycle.derive_version(message)
        before, reported = message.dimensions[0], _reported_state(version)
        due = self._next_due_at(reported, version.last_seen_at)
        is_sooner = message.due is None or due < message.due
        encoded = _encode(version)
        outputs.states.append((key, encoded, due if is_sooner else None))
        if is_sooner:
            message.due = due
        # A report that is not an end takes an expiry back. Only another end replaces an end.
        previous = _EXPIRED if before == OPEN and message.has_expired else before
        if reported != before and not (reported in _NO_END and before in _NO_END):
            # The reported outcome of an evicted message is not known any more, only that there was one.
            is_correction = previous not in _NO_END or message.late
            outputs.records.append(
                _build_outcome_record(version, previous if previous != OPEN else None, is_correction)
            )
            if not is_correction:
                outputs.ends.append(EndedMessage(version.outcome, version.network_s, version.total_s))
        dimensions = reported, version.device_id, version.channel_id
        activities.add_version(message.dimensions, dimensions, version, counts=not message.late)
        message.dimensions, message.has_expired = dimensions, version.expired_at is not None
        if reported not in _NO_END:
            # Reports after the end are rare, so a read of the store costs less than the memory.
            self._cache.remove_message(key)
        elif len(encoded) > _LARGE_MESSAGE_BYTES:
            self._cache.resize_message(key, len(encoded))


def _reported_state(version: MessageVersion) -> str | None:
    """Return the state under which a version counts: `open`, the outcome of its end, or None if it is incoming."""
    if version.is_ended:
        return version.outcome
    return None if version.outcome == _INCOMING else OPEN


def _build_outcome_record(version: MessageVersion, previous: str | None, is_correction: bool) -> OutputRecord:
    values = [*_read_shared_fields(version), is_correction, previous]
    return OutputRecord(
        OUTCOMES, records.device_key(version.source, version.device_id), _encode(_OutcomeRecord(*values))
    )


def _read_source(headers: dict[str, bytes]) -> str:
    source = headers.get(records.HEADER_SOURCE)
    if source is None:
        raise UnreadablePayload(REASON_MISSING_HEADER, "the record names no source", records.HEADER_SOURCE)
    return source.decode(errors="replace")


def _wrong_key_error() -> UnreadablePayload:
    # The key decides the partition. A wrong key would split the state of the message over two partitions.
    return UnreadablePayload(REASON_WRONG_KEY, "the record's key is not {source}:{sms_id}")
