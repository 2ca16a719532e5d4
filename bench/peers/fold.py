"""The lifecycle of smspulse for the Python peers: one report at a time, from a stored version to the next."""

import msgspec

from gateway.events import StatusReport
from gateway.payloads import parse_payload
from gateway.statuses import STATUSES
from streams.lifecycle import LifecycleRules, MessageState, MessageVersion

_decode = msgspec.json.Decoder(MessageVersion).decode
_encode = msgspec.json.Encoder().encode
_derive = LifecycleRules(STATUSES).derive_version


def fold(stored: bytes | None, key: bytes, value: bytes, received_at: int) -> bytes:
    """Return the version of a message after one more report.

    Args:
        stored: Its version before, or None.
        key: `{source}:{sms_id}`.
        value: The webhook's body.
        received_at: Milliseconds since 1970 UTC.

    Raises:
        UnreadablePayload: The body cannot be read.
        TypeError: It is no status report; the benchmark writes no other.
    """
    report = parse_payload(value)
    if not isinstance(report, StatusReport):
        msg = f"{key!r} is no status report"
        raise TypeError(msg)
    facts = (
        MessageState.from_version(_decode(stored))
        if stored
        else MessageState(key.rpartition(b":")[0].decode(), report.sms_id)
    )
    facts.add_report(report, received_at)
    return _encode(_derive(facts))
