"""The fold of `sms.raw`: reports become versions of messages, and versions become outcomes and activity of devices.

What goes to `sms.outcomes` and `sms.activity` follows from the difference between the last version of a message and
the new one. Both are in one transaction with the new version, so a message is told once, whatever is repeated.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from typing import Any, Final

import orjson

from gateway import records
from gateway.errors import UnreadablePayload
from gateway.payloads import StatusReport, parse
from gateway.statuses import Outcome
from gateway.topics import OUTCOMES
from streams.devices import OPEN, Activities
from streams.fold import Load, Output, Outputs, Record, State, dead_letter
from streams.lifecycle import Facts, Lifecycle, Version

REASON_MISSING_HEADER: Final = "missing_header"
REASON_WRONG_KEY: Final = "wrong_key"

_MAX_DIGITS: Final = 16  # a time in milliseconds has 13
_NO_END: Final = (None, OPEN)
_OUTCOME_FIELDS: Final = (
    *("source", "sms_id", "outcome", "failure_class", "last_status_id", "is_ended", "device_id", "channel_id"),
    *("first_seen_at", "ended_at", "attempts", "queue_s", "device_s", "network_s", "total_s"),
)


class _Message:
    """A message in memory: its facts, and what was told of it last."""

    __slots__ = ("channel_id", "device_id", "facts", "has_expired", "outcome")

    def __init__(self, facts: Facts, version: Mapping[str, Any] | None) -> None:
        self.facts = facts
        self.outcome: str | None = None  # OPEN, or how it ended; None before the first report
        self.device_id: int | None = None
        self.channel_id: int | None = None
        self.has_expired = False
        if version is not None:
            self.take(version, _told(version))

    def place(self) -> tuple[str | None, int | None, int | None]:
        """Return as what, and for which device and channel, it counts."""
        return self.outcome, self.device_id, self.channel_id

    def take(self, version: Mapping[str, Any], told: str | None) -> None:
        """Remember what was told: the version is on its way."""
        self.outcome = told
        self.device_id = version["device_id"]
        self.channel_id = version["channel_id"]
        self.has_expired = version.get("expired_at") is not None


class MessageFold:
    """The fold of one partition of `sms.raw`.

    Args:
        lifecycle: Derives versions.
        load: Returns the newest version of a message by key.
        zone: Zone of payload times that name none.
        cache: How many messages to keep decoded.
        expire_after_ms: After how long without a report an open message expires.
        forget_after_ms: After how long without a report the state of a message is dropped; more than the former.
    """

    def __init__(
        self, lifecycle: Lifecycle, load: Load, zone: tzinfo, cache: int, expire_after_ms: int, forget_after_ms: int
    ) -> None:
        self._lifecycle = lifecycle
        self._load = load
        self._zone = zone
        self._cache_size = cache
        self._expire_after_ms = expire_after_ms
        self._forget_after_ms = forget_after_ms
        self._cache: OrderedDict[bytes, _Message] = OrderedDict()

    def forget_cache(self) -> None:
        """Drop decoded messages."""
        self._cache.clear()

    def run(self, run: Sequence[Record]) -> Outputs:
        """Fold records, in their order."""
        outputs, activities = Outputs(), Activities()
        changed: dict[bytes, _Message] = {}
        for record in run:
            try:
                self._one(record, changed, outputs, activities)
            except UnreadablePayload as error:
                outputs.others.append(dead_letter(record, error))
        for key, message in changed.items():
            self._write(key, message, outputs, activities)
        outputs.others += activities.outputs()
        cache = self._cache
        while len(cache) > self._cache_size:
            cache.popitem(last=False)
        return outputs

    def pass_time(self, keys: Iterable[bytes], now: int) -> Outputs:
        """Let messages expire, and drop the state of those that nobody reports any more."""
        outputs, activities = Outputs(), Activities()
        for key in keys:
            stored = self._load(key)
            if not stored:
                # Only what was dropped one such time ago is due again. Then nothing reminds of it.
                outputs.purged.append(key)
                continue
            message = self._cache.get(key) or _decode(stored)
            last_seen_at = message.facts.last_seen_at
            if message.outcome == OPEN and last_seen_at + self._expire_after_ms <= now:
                message.facts.expire(last_seen_at + self._expire_after_ms)
                self._write(key, message, outputs, activities)
            elif last_seen_at + self._forget_after_ms <= now:
                self._cache.pop(key, None)
                outputs.states[key] = State(None, now + self._forget_after_ms)
        outputs.others += activities.outputs()
        return outputs

    def due(self, value: bytes | None, written_at: int) -> int:
        """Return when an open message expires, an ended one is dropped, and the mark of a dropped one is."""
        if not value:
            return written_at + self._forget_after_ms
        version = orjson.loads(value)
        if not version["observations"]:
            raise ValueError
        return self._due(version, _told(version))

    def _due(self, version: Version, told: str | None) -> int:
        return version["last_seen_at"] + (self._expire_after_ms if told == OPEN else self._forget_after_ms)

    def _one(self, record: Record, changed: dict[bytes, _Message], outputs: Outputs, activities: Activities) -> None:
        event = parse(record.value or b"", self._zone)
        headers = dict(record.headers)
        received = headers.get(records.HEADER_RECEIVED_AT) or b""
        received_at = int(received) if received.isdigit() and len(received) < _MAX_DIGITS else record.timestamp
        if not isinstance(event, StatusReport):
            source = _source(headers)
            key = records.incoming_key(source, event.sms_id)
            if key not in outputs.states and self._load(key) is None:
                # Dropped at once: the mark that it was there is all that is needed.
                outputs.states[key] = State(None, received_at + self._forget_after_ms)
                activities.incoming(source, event.device_id, event.channel_id, received_at)
            return
        key = record.key or b""
        message = changed.get(key) or self._message(key, headers, event.sms_id)
        if message.facts.sms_id != event.sms_id:
            raise _wrong_key()
        if message.facts.add(event, received_at):
            changed[key] = message

    def _message(self, key: bytes, headers: dict[str, bytes], sms_id: int) -> _Message:
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            return cached
        source = _source(headers)
        if key != records.message_key(source, sms_id):
            raise _wrong_key()
        stored = self._load(key)
        message = _decode(stored) if stored else _Message(Facts(source, sms_id, late=stored is not None), None)
        self._cache[key] = message
        return message

    def _write(self, key: bytes, message: _Message, outputs: Outputs, activities: Activities) -> None:
        """Write the version that follows from a message's facts, and tell what it changed."""
        version = self._lifecycle.derive(message.facts)
        before, now = message.outcome, _told(version)
        outputs.states[key] = State(orjson.dumps(version), self._due(version, now))
        # An expiry can be taken back by a report that is no end; an end by nothing but another end.
        previous = Outcome.EXPIRED.value if before == OPEN and message.has_expired else before
        if now != before and not (now in _NO_END and before in _NO_END):
            # What was told of a forgotten message is not known any more, only that it was.
            is_correction = previous not in _NO_END or message.facts.late
            outputs.others.append(_outcome(version, previous if previous != OPEN else None, is_correction))
        activities.version(message.place(), now, version, counts=not message.facts.late)
        message.take(version, now)
        if now not in _NO_END:
            # Hardly anything comes after the end, and what is in memory in vain costs more than reading it again.
            self._cache.pop(key, None)


def _told(version: Mapping[str, Any]) -> str | None:
    """Return what a version counts as: `open`, its outcome if it ended, or None: an incoming message is no traffic."""
    if version["is_ended"]:
        return str(version["outcome"])
    return None if version["outcome"] == Outcome.INCOMING else OPEN


def _outcome(version: Version, previous: str | None, is_correction: bool) -> Output:
    told: dict[str, Any] = {name: version[name] for name in _OUTCOME_FIELDS}
    told |= {"correction": is_correction, "previous": previous}
    return Output(OUTCOMES, records.device_key(version["source"], version["device_id"]), orjson.dumps(told))


def _decode(stored: bytes) -> _Message:
    version = orjson.loads(stored)
    return _Message(Facts.of(version), version)


def _source(headers: dict[str, bytes]) -> str:
    source = headers.get(records.HEADER_SOURCE)
    if source is None:
        raise UnreadablePayload(REASON_MISSING_HEADER, "the record names no source", records.HEADER_SOURCE)
    return source.decode(errors="replace")


def _wrong_key() -> UnreadablePayload:
    # The key decides the partition: under another one, the message's state would be split over two.
    return UnreadablePayload(REASON_WRONG_KEY, "the record's key is not {source}:{sms_id}")
