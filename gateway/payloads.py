"""Parser of every known generation of smsgateway24's webhook payloads: one body becomes one frozen event.

Source: the gateway's webhook documentation in its English, German and Japanese versions, and its help articles. They
leave details open, so the parser is tolerant: only a message's id and, for a status report, the status id are required.
Any other field that cannot be read becomes None and is named in `flaws`. So an unexpected format of a date never costs
a delivery report.

Every field except the text of a message has a maximum size. A longer value is a flaw too: it stays in the raw body, and
is copied nowhere. An id is a whole number of at most 63 bits. A larger `sms_id` or `status_id` belongs to no message,
so the body is unreadable (`out_of_range`, or `wrong_type` if it is not a number).

Generations:
    - status report: `sms_id, status_id, status_message, sendto, senttime, channel_id, device_id`
    - status report, old: `sim` in place of `channel_id`
    - incoming, old: `sim` in place of `channel_id`, no `type`, `address` may be a number
    - incoming, middle: `channel_id`, no `type`
    - incoming text: with `type: "text"`
    - incoming image: `type: "img"`, `img_url`, `sim`; no device and no channel
"""

from collections.abc import Callable, Sequence
from datetime import UTC, tzinfo
from functools import partial
from itertools import repeat
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import orjson

from gateway import events, json_body
from gateway.errors import Reason, UnreadablePayload, unforeseen_error
from gateway.events import Event, IncomingMessage, StatusReport
from gateway.payload_times import LONGEST_CACHED_TIME, cached_epoch_ms, split_date_and_zone, to_epoch_ms
from gateway.phone_numbers import normalise_address

# The largest values of the columns of ids in the warehouse: 64 and 32 bits.
_MAX_ID: Final = 2**63 - 1
_MAX_SMALL: Final = 2**31 - 1
_WITHHELD: Final = "withheld"
# Every field that makes a body unreadable. A sender can imitate the withheld form, so no other name is accepted.
_FIELDS_AT_FAULT: Final = frozenset({"sms_id", "status_id", "event"})


class ParsedBodies(NamedTuple):
    """Events of many bodies: a row per body.

    `reports` are the columns of `StatusReport` without the last, for status reports without a flaw. The row of any
    other body is None in each of them; it is in `others`, or in `unreadable` with its reason and field.
    """

    reports: tuple[list[Any], ...]
    others: dict[int, Event]
    unreadable: dict[int, tuple[str, str | None]]


_Id = Annotated[int, msgspec.Meta(ge=0, le=_MAX_ID)]
_Small = Annotated[int, msgspec.Meta(ge=0, le=_MAX_SMALL)]
_Time = Annotated[str, msgspec.Meta(max_length=LONGEST_CACHED_TIME)]
_Name = Annotated[str, msgspec.Meta(max_length=events.MAX_NAME_LENGTH)]
_StatusMessage = Annotated[str, msgspec.Meta(max_length=events.MAX_STATUS_MESSAGE_LENGTH)]


class _PlainReport(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    """A status report of the newest generation without a flaw, as nearly all are."""

    sms_id: _Id
    status_id: _Small
    status_message: _StatusMessage | None = None
    sendto: _Name | None = None
    senttime: _Time | None = None
    channel_id: _Small | None = None
    device_id: _Id | None = None


_decode_plain_report = msgspec.json.Decoder(_PlainReport).decode
_NOTHING: Final = _PlainReport(None, None)  # type: ignore[arg-type]
# Takes a third of the time of `StatusReport(...)`.
_make_report: Callable[[tuple[Any, ...]], StatusReport] = partial(tuple.__new__, StatusReport)


def parse_payload(body: bytes, zone: tzinfo = UTC, content_type: bytes | None = None) -> Event:
    """Read one webhook's body.

    Args:
        body: The bytes received, without content codings.
        zone: The zone of times that name none. The gateway's own times appear to be UTC.
        content_type: The header `Content-Type`, for its charset.

    Raises:
        UnreadablePayload: The body is not a known payload. Nothing else is raised, whatever the bytes are.
    """
    # A shortcut that takes a quarter of the time. The tolerant parser reads the bodies that it rejects.
    try:
        plain = _decode_plain_report(json_body.to_utf8(body, content_type))
        sent_at = cached_epoch_ms(plain.senttime, "", zone) if plain.senttime else None
        recipient = normalise_address(plain.sendto) if plain.sendto else None
    except Exception:
        # As a rule, the body is not a plain report.
        return parse_with_fields(body, zone, content_type)[1]
    return _make_report(
        (plain.sms_id, plain.status_id, plain.device_id, plain.channel_id, sent_at, recipient, plain.status_message, ())
    )


def parse_payloads(
    bodies: Sequence[bytes], zone: tzinfo = UTC, content_types: Sequence[bytes | None] | None = None
) -> ParsedBodies:
    """Parse many bodies by column, faster than `parse_payload` one by one. Raises nothing, whatever the bytes are.

    Args:
        bodies: The bytes received, without content codings.
        zone: The zone of times that name none.
        content_types: The header `Content-Type` of each; None if none declares another charset than UTF-8.
    """
    plain, times, recipients = [], [], []
    others: dict[int, Event] = {}
    unreadable: dict[int, tuple[str, str | None]] = {}
    for row, (body, content_type) in enumerate(zip(bodies, content_types or repeat(None))):  # noqa: B905 - no end
        try:
            report = _decode_plain_report(json_body.to_utf8(body, content_type) if content_type else body)
            sent_at = cached_epoch_ms(report.senttime, "", zone) if report.senttime else None
            recipient = normalise_address(report.sendto) if report.sendto else None
        except Exception:
            # As a rule, the body is not a plain report.
            report, sent_at, recipient = _NOTHING, None, None
            try:
                others[row] = parse_with_fields(body, zone, content_type)[1]
            except UnreadablePayload as error:
                unreadable[row] = error.reason, error.field
        plain.append(report)
        times.append(sent_at)
        recipients.append(recipient)
    reports = (
        [r.sms_id for r in plain],
        [r.status_id for r in plain],
        [r.device_id for r in plain],
        [r.channel_id for r in plain],
        times,
        recipients,
        [r.status_message for r in plain],
    )
    return ParsedBodies(reports, others, unreadable)


def parse_with_fields(
    body: bytes, zone: tzinfo = UTC, content_type: bytes | None = None
) -> tuple[dict[str, Any], Event]:
    """Return the fields of a body as received, and its event. Arguments and errors are those of `parse_payload`."""
    try:
        payload = _load_object(body, content_type)
        return payload, _parse_fields(payload, zone)
    except UnreadablePayload:
        raise
    except Exception as error:
        # Without its chain of causes, which can be as long as the body.
        raise unforeseen_error(error) from None


def _load_object(body: bytes, content_type: bytes | None) -> dict[str, Any]:
    try:
        payload = json_body.load_json(body, content_type)
    except ValueError as error:
        raise UnreadablePayload(Reason.NOT_JSON, "the body is not JSON") from error
    if type(payload) is not dict:
        raise UnreadablePayload(Reason.NOT_AN_OBJECT, "the body is JSON, but not an object")
    return payload


def _parse_fields(payload: dict[str, Any], zone: tzinfo) -> Event:
    if "status_id" in payload:
        return _parse_status_report(payload, zone)
    if "event" in payload:
        raise UnreadablePayload(Reason.UNVERIFIED_SHAPE, "an `event` payload, perhaps the gateway's test", "event")
    if "type" in payload or "address" in payload or "body" in payload or "img_url" in payload:
        return _parse_incoming_message(payload, zone)
    if payload.get(_WITHHELD) in tuple(Reason):
        field = payload.get("field")
        is_ours = type(field) is str and field in _FIELDS_AT_FAULT
        raise UnreadablePayload(payload[_WITHHELD], "withheld for privacy", field if is_ours else None)
    raise UnreadablePayload(Reason.UNKNOWN_SHAPE, "neither status_id nor any field of an incoming message")


def build_withheld_body(error: UnreadablePayload, length: int) -> bytes:
    """Return the text that is stored for a withheld body of the given length. It is unreadable for the same reason."""
    return orjson.dumps({_WITHHELD: error.reason, "field": error.field, "bytes": length})


def _parse_status_report(payload: dict[str, Any], zone: tzinfo) -> StatusReport:
    flaws: list[str] = []
    return StatusReport(
        _read_required_id(payload, "sms_id", _MAX_ID),
        _read_required_id(payload, "status_id", _MAX_SMALL),
        _read_whole_number(payload, "device_id", _MAX_ID, flaws),
        _read_channel_id(payload, flaws),
        _read_time(payload, "senttime", zone, flaws),
        _read_address(payload, "sendto", flaws),
        _read_text(payload, "status_message", events.MAX_STATUS_MESSAGE_LENGTH, flaws),
        tuple(flaws),
    )


def _parse_incoming_message(payload: dict[str, Any], zone: tzinfo) -> IncomingMessage:
    flaws: list[str] = []
    image_url = _read_text(payload, "img_url", events.MAX_LINK_LENGTH, flaws)
    content_type = _read_text(payload, "type", events.MAX_NAME_LENGTH, flaws) or ("img" if image_url else "text")
    if content_type == "img" and image_url is None and "img_url" not in flaws:
        flaws.append("img_url")
    return IncomingMessage(
        _read_required_id(payload, "sms_id", _MAX_ID),
        content_type,
        _read_whole_number(payload, "device_id", _MAX_ID, flaws),
        _read_channel_id(payload, flaws),
        _read_time(payload, "date_sent", zone, flaws),
        _read_time(payload, "date", zone, flaws),
        _read_address(payload, "address", flaws),
        _read_text(payload, "body", None, flaws),
        image_url,
        _read_whole_number(payload, "internal_id", _MAX_ID, flaws),
        _read_text(payload, "device_name", events.MAX_NAME_LENGTH, flaws),
        tuple(flaws),
    )


def _as_int(value: object, largest: int) -> int | None:
    """Return a whole number from 0 to `largest`, also from a numeric string or `12.0`; None for any other value."""
    if type(value) is str:
        # Every valid id has at most 19 digits. int() of megabytes of digits would take seconds.
        text = value.strip()
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(_MAX_ID))):
            return None
        value = int(text)
    elif type(value) is float and value.is_integer():
        value = int(value)
    if type(value) is int and 0 <= value <= largest:
        return value
    return None


def _read_required_id(payload: dict[str, Any], field: str, largest: int) -> int:
    value = payload.get(field)
    if value is None:
        raise UnreadablePayload(Reason.MISSING_FIELD, f"{field} is missing", field)
    number = _as_int(value, largest)
    if number is not None:
        return number
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadablePayload(Reason.WRONG_TYPE, f"{field} is not a whole number", field)
    raise UnreadablePayload(Reason.OUT_OF_RANGE, f"{field} is not a whole number from 0 to {largest}", field)


def _read_whole_number(payload: dict[str, Any], field: str, largest: int, flaws: list[str]) -> int | None:
    value = payload.get(field)
    if value is None or value == "":
        return None
    number = _as_int(value, largest)
    if number is None:
        flaws.append(field)
    return number


def _read_channel_id(payload: dict[str, Any], flaws: list[str]) -> int | None:
    return _read_whole_number(payload, "channel_id" if "channel_id" in payload else "sim", _MAX_SMALL, flaws)


def _read_text(payload: dict[str, Any], field: str, longest: int | None, flaws: list[str]) -> str | None:
    """Return a text of at most `longest` characters; `longest` None is no limit but that of a body."""
    value = payload.get(field)
    if value is None or (type(value) is str and (longest is None or len(value) <= longest)):
        return value
    flaws.append(field)
    return None


def _read_address(payload: dict[str, Any], field: str, flaws: list[str]) -> str | None:
    value = payload.get(field)
    if type(value) is int and value >= 0:
        return normalise_address(str(value))
    text = _read_text(payload, field, events.MAX_NAME_LENGTH, flaws)
    return normalise_address(text) if text else None


def _read_time(payload: dict[str, Any], field: str, zone: tzinfo, flaws: list[str]) -> int | None:
    value = payload.get(field)
    if not value:
        return None
    try:
        return to_epoch_ms(*split_date_and_zone(value), zone)
    except Exception:
        # A date can make the standard library raise anything. That costs the date, and not the report.
        flaws.append(field)
        return None
