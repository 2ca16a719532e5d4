"""Records of `sms.outcomes`, as the stage of devices reads them."""

from types import SimpleNamespace
from typing import Any

import msgspec

from core.topics import OUTCOMES
from streams.lifecycle import OutcomeRecord

T0 = 1_760_000_000_000
DELIVERED, UNDELIVERED, NO_SERVICE, DENIED, EXPIRED = (
    (7, "delivered"),
    (8, "undelivered"),
    (10, "not_sent"),
    (100, "not_permitted"),
    (6, "expired"),
)


def outcome(status: tuple[int, str], sms_id: int, ended_at: int | None, **fields: Any) -> OutcomeRecord:
    """Return the outcome of a message that came to a status, with further fields."""
    status_id, name = status
    values: dict[str, Any] = {
        **dict.fromkeys(OutcomeRecord.__struct_fields__),
        "source": "gw",
        "sms_id": sms_id,
        "outcome": name,
        "last_status_id": status_id,
        "attempts": 1,
        "is_ended": ended_at is not None,
        "device_id": 8001,
        "channel_id": 1,
        "first_seen_at": T0,
        "ended_at": ended_at,
        "correction": False,
        "late": False,
        "attempt": 1,
    }
    return OutcomeRecord(**values | fields)


def outcome_record(status: tuple[int, str], sms_id: int, ended_at: int | None, **fields: Any) -> Any:
    """Return that outcome as a record of Kafka."""
    value = msgspec.json.encode(outcome(status, sms_id, ended_at, **fields))
    return SimpleNamespace(topic=OUTCOMES, partition=0, offset=3, timestamp=T0, key=b"", value=value, headers=[])
