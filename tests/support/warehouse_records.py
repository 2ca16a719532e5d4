"""Kafka records for tests."""

from datetime import UTC, datetime
from typing import Any, NamedTuple

import orjson

from core import topics

NOON = 1_795_521_600_000
"""2026-11-24 12:00 UTC, in milliseconds."""


class MadeRecord(NamedTuple):
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]


def at(seconds: float) -> int:
    """Return a time in milliseconds, given in seconds after noon."""
    return NOON + round(seconds * 1000)


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(at(seconds) / 1000, UTC)


def raw(offset: int, body: Any, *, source: str = "acme", seconds: float = 0, partition: int = 0) -> MadeRecord:
    value = body if isinstance(body, bytes) else orjson.dumps(body)
    headers: list[tuple[str, bytes | None]] = [
        ("source", source.encode()),
        ("received_at", str(at(seconds)).encode()),
        ("ingest_id", f"id-{offset}".encode()),
        ("content_type", b"application/json"),
    ]
    return MadeRecord(topics.RAW, partition, offset, at(seconds), None, value, headers)


def status(sms_id: int, status_id: int, **fields: Any) -> dict[str, Any]:
    return {
        "sms_id": sms_id,
        "status_id": status_id,
        "device_id": 1,
        "channel_id": 2,
        "sendto": "+4915700000001",
    } | fields


def version(offset: int, sms_id: int, outcome: str = "sent", *, seconds: float = 0, **fields: Any) -> MadeRecord:
    """Return a version of a message; `seconds` is the receipt of its first report."""
    ended = outcome in {"delivered", "undelivered", "not_sent", "not_permitted", "expired"}
    value: dict[str, Any] = {
        "source": "acme",
        "sms_id": sms_id,
        "outcome": outcome,
        "failure_class": None,
        "last_status_id": 6,
        "is_ended": ended,
        "device_id": 1,
        "channel_id": 2,
        "recipient": "+4915700000001",
        "first_seen_at": at(seconds),
        "last_seen_at": at(seconds),
        "ended_at": at(seconds) if ended else None,
        "delivered_at": at(seconds) if outcome == "delivered" else None,
        "attempts": 1,
        "contradicted": False,
        "flags": [],
        "queue_s": None,
        "device_s": None,
        "network_s": None,
        "total_s": None,
        "version": 1,
        "observations": [[6, 1, 2, None, at(seconds), at(seconds)]],
    } | fields
    key = f"{value['source']}:{sms_id}".encode()
    return MadeRecord(topics.MESSAGES, 0, offset, at(seconds), key, orjson.dumps(value), [])


def tombstone(offset: int, key: str) -> MadeRecord:
    return MadeRecord(topics.MESSAGES, 0, offset, at(0), key.encode(), None, [])


def deadletter(offset: int, body: bytes, reason: str, origin: str) -> MadeRecord:
    record = raw(offset, body)
    headers = [*record.headers, ("reason", reason.encode()), ("detail", b"why"), ("origin", origin.encode())]
    return record._replace(topic=topics.DEADLETTERS, headers=headers)


def alert(offset: int, phase: str, *, seconds: float = 0, **fields: Any) -> MadeRecord:
    """Return a change of the alert of device 1, channel 2, which fires at noon."""
    value: dict[str, Any] = {
        "id": "failure_ratio:acme:1:2",
        "kind": "failure_ratio",
        "phase": phase,
        "scope": "channel",
        "source": "acme",
        "device_id": 1,
        "channel_id": 2,
        "changed_at": at(seconds),
        "since": at(-300),
        "fired_at": None if phase == "pending" else at(0),
        "resolved_at": at(seconds) if phase == "resolved" else None,
        "count": 8,
        "failures": 6,
        "baseline": 0.03,
        "known": 2000,
        "bound": 0.04,
        "errors": {"10": 6},
        "samples": ["acme:17"],
        "share": 0.25,
        "budget_days": 30.0,
    } | fields
    return MadeRecord(topics.ALERTS, 0, offset, at(seconds), value["id"].encode(), orjson.dumps(value), [])
