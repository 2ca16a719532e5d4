import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import Reason, UnreadablePayload
from gateway.events import Event, StatusReport
from gateway.payload_times import parse_zone
from gateway.payloads import parse_payload
from gateway.phone_numbers import normalise_address
from ingest.request_body import PayloadRedactor

KEY = "a key of some length"
NUMBER = "+49 157 5298-2212"
STATUS = {"sms_id": 17, "status_id": 7, "status_message": "sent", "sendto": NUMBER, "device_id": "5", "senttime": None}
TEXT = {"sms_id": 18, "address": NUMBER, "body": f"call {NUMBER}", "type": "text", "date": "2026-01-02 03:04:05"}
IMAGE = {"sms_id": 19, "address": 4915752982212, "type": "img", "img_url": "https://x.example/i", "sim": 1}
ALL = [PayloadRedactor(numbers, bodies, KEY) for numbers in ("keep", "mask", "hmac") for bodies in ("keep", "drop")]


def read(body: bytes) -> Event | UnreadablePayload:
    try:
        return parse_payload(body)
    except UnreadablePayload as error:
        return error


def apply(privacy: PayloadRedactor, payload: object) -> bytes:
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return privacy.redact_body(body, b"application/json").body


def address(event: object) -> str | None:
    return event.recipient if isinstance(event, StatusReport) else event.sender  # type: ignore[attr-defined]


def test_kept_bodies_are_kept_byte_by_byte() -> None:
    for body in (b' {"sms_id":1, "status_id":7,"status_id":7}', b"\xff", b"", b'{"event": 1}'):
        assert apply(PayloadRedactor("keep", "keep"), body) == body


@pytest.mark.parametrize("payload", [STATUS, TEXT, IMAGE])
def test_masked_numbers_show_their_last_four_digits(payload: dict[str, Any]) -> None:
    assert address(parse_payload(apply(PayloadRedactor("mask", "keep"), payload))) == "****2212"


@pytest.mark.parametrize("name", ["MyBank", "Anna Müller", "Anna +4915752982", "٠١٢٣٤٥٦٧"])
def test_a_name_is_masked_too(name: str) -> None:
    masked = address(parse_payload(apply(PayloadRedactor("mask", "keep"), TEXT | {"address": name})))
    assert masked is not None
    assert len(masked) <= 8
    assert not set(re.findall(r"\w{3,}", name)) & set(re.findall(r"\w{3,}", masked))


def test_hashed_numbers_are_the_same_for_each_spelling_and_kind_and_differ_by_key() -> None:
    privacy = PayloadRedactor("hmac", "keep", KEY)
    payloads = [STATUS, TEXT, IMAGE | {"address": "+4915752982212"}, STATUS | {"sendto": "+49(157)5298.2212"}]
    payloads += [
        STATUS | {"sendto": "+49 (0)157 5298 2212"},
        STATUS | {"sendto": "\u202a+49 157\u2011529\u00a082212\u202c"},
    ]
    (one,) = {address(parse_payload(apply(privacy, payload))) for payload in payloads}
    assert one is not None
    assert re.fullmatch(r"hmac:[0-9a-f]{32}", one)
    assert normalise_address(one) == one
    # Of openssl: printf %s +4915752982212 | openssl dgst -sha256 -hmac "a key of some length"
    assert one == "hmac:61bfc4abb32b33421cf4a11937ac3799"
    assert address(parse_payload(apply(PayloadRedactor("hmac", "keep", "another key of length"), STATUS))) != one
    assert address(parse_payload(apply(privacy, STATUS | {"sendto": "+4915752982213"}))) != one


@pytest.mark.parametrize("privacy", ALL[1:])
@pytest.mark.parametrize(
    "body", [b"\xef\xbb\xbf" + json.dumps(TEXT).encode(), rb'{"sms_id": 1, "status_id": 7, "x": "\ud800"}']
)
def test_what_the_parser_repairs_privacy_can_rewrite(privacy: PayloadRedactor, body: bytes) -> None:
    before, after = read(body), read(apply(privacy, body))
    assert (type(after), after.sms_id) == (type(before), before.sms_id)  # type: ignore[union-attr]


def test_dropped_bodies_leave_neither_text_nor_image() -> None:
    text, image = (parse_payload(apply(PayloadRedactor("keep", "drop"), payload)) for payload in (TEXT, IMAGE))
    assert (text.text, text.sender, text.content_type) == (None, "+4915752982212", "text")  # type: ignore[union-attr]
    assert (image.image_url, image.content_type) == ("dropped", "img")  # type: ignore[union-attr]


@pytest.mark.parametrize("privacy", ALL[1:])
@pytest.mark.parametrize(
    "body",
    [
        NUMBER.encode(),
        b'{"sendto": "%s"' % NUMBER.encode(),
        b'{"sms_id": "x", "status_id": 7, "sendto": "%s"}' % NUMBER.encode(),
        b'["%s"]' % NUMBER.encode(),
        b'{"event": "%s"}' % NUMBER.encode(),
        b'{"%s": 1}' % NUMBER.encode(),
        b'{"status_id": 7, "to": "%s"}' % NUMBER.encode(),
        b"\xff\xfe" + NUMBER.encode("utf-16-le"),
    ],
)
def test_of_what_cannot_be_read_only_the_reason_and_the_length_are_kept(privacy: PayloadRedactor, body: bytes) -> None:
    before = read(body)
    stored = apply(privacy, body)
    after = read(stored)
    assert isinstance(before, UnreadablePayload)
    assert isinstance(after, UnreadablePayload)
    assert (after.reason, after.field) == (before.reason, before.field)
    assert json.loads(stored) == {"withheld": before.reason, "field": before.field, "bytes": len(body)}
    assert after.reason in tuple(Reason)


@pytest.mark.parametrize("withheld", [["not_json"], {}, "nonsense", 7])
def test_only_our_own_reasons_are_believed(withheld: object) -> None:
    error = read(json.dumps({"withheld": withheld, "field": {}}).encode())
    assert isinstance(error, UnreadablePayload)
    assert (error.reason, error.field) == ("unknown_shape", None)


def test_a_deep_value_that_nothing_reads_is_not_kept() -> None:
    time = {"date": "2026-01-02T03:04:05+00:00", "timezone": json.loads("[" * 900 + "]" * 900)}
    stored = apply(ALL[-1], TEXT | {"date": time, "date_sent": time, "deep": time})
    assert json.loads(stored)["date_sent"] == "2026-01-02T03:04:05+00:00"


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["17", "2026-01-02T03:04:05", "2026-01-02", NUMBER, "0157 1234567", "  ", "img", "text"]),
    st.fixed_dictionaries({"date": st.sampled_from(["2026-01-02", "x"])}, optional={"timezone": st.text(max_size=6)}),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
    st.lists(st.text(max_size=5), max_size=2),
)
FIELDS = [
    *("sms_id", "status_id", "status_message", "sendto", "senttime", "channel_id", "sim", "device_id", "device_name"),
    *("type", "address", "date", "date_sent", "body", "internal_id", "img_url", "unheard_of"),
]
PAYLOADS = st.builds(
    lambda base, changes: base | changes,
    st.sampled_from([STATUS, TEXT, IMAGE, {}]),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=6),
)


@given(PAYLOADS, st.sampled_from(ALL), st.sampled_from([b"", b"\xef\xbb\xbf"]))
def test_what_is_not_hidden_is_read_as_before(payload: dict[str, Any], privacy: PayloadRedactor, mark: bytes) -> None:
    body = mark + json.dumps(payload).encode()
    before, after = read(body), read(apply(privacy, body))
    if isinstance(before, UnreadablePayload) or isinstance(after, UnreadablePayload):
        assert type(before) is type(after)
        assert (before.reason, before.field) == (after.reason, after.field)  # type: ignore[union-attr]
        return
    hidden = {"recipient", "sender", "text", "image_url"}
    if privacy in ALL[2:]:
        hidden |= {"status_message", "device_name", "internal_id", "content_type"}
    shown: Callable[[Any], dict[str, Any]] = lambda event: {  # noqa: E731
        name: value for name, value in event._asdict().items() if name not in hidden
    }
    assert type(before) is type(after)
    assert shown(before) == shown(after)
    assert bool(address(before)) == bool(address(after))


HIDING = [PayloadRedactor(numbers, "drop", KEY) for numbers in ("mask", "hmac")]
ALIEN = "+4917612345678"
COUNTED_BY = {"sms_id", "status_id", "device_id"}
"""Ids of more than nine digits, by which messages and phones are known."""
PLACES = [
    *(lambda text=text: text for text in (ALIEN, ALIEN[1:], f"call {ALIEN} now", "".join(f"{d} " for d in ALIEN))),
    lambda: int(ALIEN[1:]),
    lambda: {"date": "2026-01-02", "timezone": ALIEN},
    lambda: {"date": "2026-01-02T03:04:05+00:00", "timezone": ALIEN, ALIEN: ALIEN},
    lambda: f"2026-01-02T03:04:05.000000{ALIEN[1:]}",
    lambda: {"date": f"2026-01-02T03:04:05.000000{ALIEN[1:]}", "timezone": "Europe/Berlin"},
    lambda: [ALIEN],
]


def digits_in(stored: bytes) -> str:
    return "".join(re.findall(r"\d", stored.decode()))


@pytest.mark.parametrize("privacy", HIDING)
@pytest.mark.parametrize("field", ["sim", "timezone", "type", "internal_id", "device_name", "status_message", "date"])
def test_no_number_stays_in_a_field_that_is_not_needed(privacy: PayloadRedactor, field: str) -> None:
    values: list[Any] = [ALIEN, int(ALIEN[1:]), {"date": "2026-01-02T03:04:05", "timezone": ALIEN}]
    for base in (STATUS, STATUS | {"status_id": 77}, TEXT, IMAGE):
        for value in values:
            for channel in ({}, {"channel_id": 1}):
                stored = apply(privacy, base | channel | {field: value, "senttime": value, "date_sent": value})
                assert b"12345" not in stored, stored
                assert "2345678" not in digits_in(stored)


@given(
    PAYLOADS,
    st.dictionaries(st.sampled_from(sorted({*FIELDS, ALIEN} - COUNTED_BY)), st.sampled_from(PLACES), max_size=8),
    st.sampled_from(HIDING),
)
def test_no_number_stays_whatever_field_it_is_in(
    payload: dict[str, Any], places: dict[str, Callable[[], Any]], privacy: PayloadRedactor
) -> None:
    clean = {name: value for name, value in payload.items() if name not in COUNTED_BY}
    ids = {"sms_id": 17} | ({"status_id": 7} if payload.get("status_id") else {})
    stored = apply(privacy, clean | {name: make() for name, make in places.items()} | ids)
    assert ALIEN[-6:] not in digits_in(stored).replace("000000", "")


def test_the_words_of_an_undocumented_status_are_kept_without_digits() -> None:
    text = f"blocked by \uff14\u0664 rule 38: {ALIEN}"
    (one, other) = (
        parse_payload(apply(HIDING[0], STATUS | {"status_id": status_id, "status_message": text}))
        for status_id in (77, 7)
    )
    assert one.status_message == f"blocked by ** rule **: +{'*' * 13}"  # type: ignore[union-attr]
    assert other.status_message is None  # type: ignore[union-attr]


def test_a_kept_number_keeps_the_rest_of_what_is_known() -> None:
    event = parse_payload(
        apply(PayloadRedactor("keep", "drop"), TEXT | {"device_name": "till 3", "internal_id": 9, "type": "mms"})
    )
    assert (event.device_name, event.internal_id, event.content_type) == ("till 3", 9, "mms")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "time",
    [
        "2026-03-29 02:30:00", "2026-10-25T02:30:00.123456", "2026-01-02", "2026-01-02T03:04:05+02:00",
        {"date": "2026-10-25 02:30:00.5", "timezone": "Europe/Berlin"}, {"date": "0001-01-01", "timezone": "UTC"},
        {"date": "2026-03-29 02:30", "timezone": "+03:30"}, {"date": "2026-01-02 03:04:05", "timezone": "UTC"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("zone", ["UTC", "Europe/Berlin", "Asia/Kathmandu"])
def test_a_time_is_the_same_in_whichever_zone_the_stream_reads_it(time: Any, zone: str) -> None:
    body = json.dumps(STATUS | {"senttime": time}).encode()
    stored = apply(HIDING[0], body)
    assert parse_payload(stored, parse_zone(zone)).sent_at == parse_payload(body, parse_zone(zone)).sent_at


def test_what_looks_like_our_withheld_form_keeps_no_number() -> None:
    stored = apply(HIDING[0], {"withheld": "not_json", "field": ALIEN})
    assert json.loads(stored)["field"] is None
