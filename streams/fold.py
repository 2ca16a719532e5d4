"""Folds a run of raw records into new versions of messages and dead letters. No Kafka, no disk: bytes in, bytes out."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from typing import Any, Protocol

import orjson

from gateway import records
from gateway.errors import UnreadablePayload
from gateway.payloads import StatusReport, parse
from streams.lifecycle import Facts, Lifecycle

REASON_MISSING_HEADER = "missing_header"
REASON_WRONG_KEY = "wrong_key"


class Record(Protocol):
    """A record of `sms.raw`, as aiokafka returns it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A record that cannot be read, as it goes to `sms.deadletters`."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


@dataclass(slots=True)
class Outputs:
    """What a run of records makes: at most one version of each message."""

    versions: dict[bytes, bytes] = field(default_factory=dict)
    deadletters: list[DeadLetter] = field(default_factory=list)


class Fold:
    """The fold of one partition.

    Args:
        lifecycle: Derives versions.
        load: Returns the newest version of a message by key, or None.
        zone: Zone of payload times that name none.
        cache: How many messages to keep decoded.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        load: Callable[[bytes], bytes | None],
        zone: tzinfo = UTC,
        cache: int = 20_000,
    ) -> None:
        self._lifecycle = lifecycle
        self._load = load
        self._zone = zone
        self._cache_size = cache
        self._cache: OrderedDict[bytes, Facts] = OrderedDict()

    def forget_cache(self) -> None:
        """Drop decoded messages: after a run whose outputs were not committed, or when the store has changed."""
        self._cache.clear()

    def run(self, run: Sequence[Record]) -> Outputs:
        """Fold records in their order. Until the outputs are in the store, the next run relies on the cache alone."""
        outputs = Outputs()
        changed: dict[bytes, Facts] = {}
        for record in run:
            try:
                self._one(record, changed)
            except UnreadablePayload as error:
                outputs.deadletters.append(_dead_letter(record, error))
        derive, dumps = self._lifecycle.derive, orjson.dumps
        outputs.versions = {key: dumps(derive(facts)) for key, facts in changed.items()}
        cache = self._cache
        while len(cache) > self._cache_size:
            cache.popitem(last=False)
        return outputs

    def _one(self, record: Record, changed: dict[bytes, Facts]) -> None:
        report = parse(record.value or b"", self._zone)
        if not isinstance(report, StatusReport):
            return
        headers = dict(record.headers)
        key = record.key or b""
        facts = changed.get(key) or self._facts(key, headers, report)
        if facts.sms_id != report.sms_id:
            raise _wrong_key()
        received_at = headers.get(records.HEADER_RECEIVED_AT, b"")
        if facts.add(report, int(received_at) if received_at.isdigit() else record.timestamp):
            changed[key] = facts

    def _facts(self, key: bytes, headers: dict[str, bytes], report: StatusReport) -> Facts:
        cached = self._cache.get(key)
        if cached is not None:
            self._cache.move_to_end(key)
            return cached
        source = headers.get(records.HEADER_SOURCE)
        if source is None:
            raise UnreadablePayload(REASON_MISSING_HEADER, "the record names no source", records.HEADER_SOURCE)
        name = source.decode(errors="replace")
        if key != records.message_key(name, report.sms_id):
            raise _wrong_key()
        stored = self._load(key)
        facts = Facts.of(orjson.loads(stored)) if stored else Facts(name, report.sms_id)
        self._cache[key] = facts
        return facts


def _wrong_key() -> UnreadablePayload:
    # The key decides the partition: under another one, the message's state would be split over two.
    return UnreadablePayload(REASON_WRONG_KEY, "the record's key is not {source}:{sms_id}")


def _dead_letter(record: Record, error: UnreadablePayload) -> DeadLetter:
    headers: list[tuple[str, Any]] = [
        *record.headers,
        (records.HEADER_REASON, error.reason.encode()),
        (records.HEADER_DETAIL, error.detail.encode()),
        (records.HEADER_ORIGIN, records.origin(record.topic, record.partition, record.offset)),
    ]
    return DeadLetter(record.key, record.value, headers)
