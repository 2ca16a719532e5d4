"""Every payload generation is read, and whatever else arrives raises one kind of error."""

import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import SettingError
from expectations import payload_check
from gateway import json_body, payload_times, payloads
from gateway.errors import Reason, UnreadablePayload
from gateway.events import MAX_LINK_LENGTH, MAX_NAME_LENGTH, MAX_STATUS_MESSAGE_LENGTH, IncomingMessage, StatusReport
from gateway.payload_times import parse_zone
from gateway.payloads import parse_payload
from ingest.request_body import PayloadRedactor

EXAMPLES = Path(__file__).parents[3] / "examples" / "webhooks"


def status(**changes: Any) -> bytes:
    payload = {
        "sms_id": 17,
        "status_id": 7,
        "status_message": "SMS wurde gesendet",
        "sendto": "+491575298221",
        "senttime": "2026-11-20 10:00:00",
        "channel_id": 1,
        "device_id": 8001,
    }
    return orjson.dumps({**payload, **changes})


def incoming(**changes: Any) -> bytes:
    return orjson.dumps({"sms_id": 9, "address": "+491575298221", "body": "hello", "type": "text", **changes})


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def test_each_documented_payload_is_read_as_what_it_is() -> None:
    kinds = {
        path.stem: type(parse_payload(path.read_bytes()))
        for path in EXAMPLES.glob("*.json")
        if "event" not in path.stem
    }
    assert kinds == {
        "status": StatusReport,
        "status-sim": StatusReport,
        "incoming-sim": IncomingMessage,
        "incoming-channel": IncomingMessage,
        "incoming-text": IncomingMessage,
        "incoming-image": IncomingMessage,
    }


def test_the_examples_are_read_without_a_flaw() -> None:
    assert [parse_payload(path.read_bytes()).flaws for path in EXAMPLES.glob("*.json") if "event" not in path.stem] == [
        ()
    ] * 6


def test_the_unverified_event_shape_is_told_apart() -> None:
    with pytest.raises(UnreadablePayload) as caught:
        parse_payload((EXAMPLES / "unverified-event.json").read_bytes())
    assert (caught.value.reason, caught.value.field) == ("unverified_shape", "event")


def test_numeric_strings_are_numbers() -> None:
    report = parse_payload(status(sms_id="0017", status_id="7", device_id="8001", channel_id="1"))
    assert report == parse_payload(status())


def test_an_image_has_neither_device_nor_channel_of_its_own() -> None:
    event = parse_payload((EXAMPLES / "incoming-image.json").read_bytes())
    assert isinstance(event, IncomingMessage)
    assert (event.content_type, event.device_id, event.internal_id) == ("img", None, None)
    assert event.image_url is not None


def test_an_incoming_message_without_a_type_is_a_text() -> None:
    event = parse_payload(orjson.dumps({"sms_id": 9, "address": 491575298221, "body": "hello", "sim": 0}))
    assert isinstance(event, IncomingMessage)
    assert (event.content_type, event.sender, event.channel_id) == ("text", "+491575298221", 0)


@pytest.mark.parametrize(
    ("senttime", "expected"),
    [
        ("2026-11-20 10:00:00", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("2026-11-20T10:00:00Z", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("2026-11-20T10:00:00.250+02:00", datetime(2026, 11, 20, 8, 0, 0, 250_000, tzinfo=UTC)),
        (
            {"date": "2026-11-20 10:00:00.000000", "timezone_type": 1, "timezone": "+02:00"},
            datetime(2026, 11, 20, 8, tzinfo=UTC),
        ),
        (
            {"date": "2026-11-20 10:00:00.000000", "timezone_type": 3, "timezone": "Europe/Berlin"},
            datetime(2026, 11, 20, 9, tzinfo=UTC),
        ),
    ],
)
def test_every_known_spelling_of_a_time_is_read(senttime: Any, expected: datetime) -> None:
    report = parse_payload(status(senttime=senttime))
    assert (report.sent_at, report.flaws) == (ms(expected), ())


def test_a_time_without_a_zone_is_in_the_configured_one() -> None:
    report = parse_payload(status(senttime="2026-11-20 10:00:00"), timezone(timedelta(hours=3)))
    assert report.sent_at == ms(datetime(2026, 11, 20, 7, tzinfo=UTC))


@pytest.mark.parametrize("senttime", ["yesterday", "0000-00-00 00:00:00", 5, {"date": None}, {"timezone": "CEST"}, [1]])
def test_a_time_in_an_unknown_format_costs_the_time_and_not_the_report(senttime: Any) -> None:
    report = parse_payload(status(senttime=senttime))
    assert isinstance(report, StatusReport)
    assert (report.status_id, report.sent_at, report.flaws) == (7, None, ("senttime",))


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"sms_id": None}, "missing_field", "sms_id"),
        ({"sms_id": "abc"}, "wrong_type", "sms_id"),
        ({"sms_id": True}, "wrong_type", "sms_id"),
        ({"sms_id": [1]}, "wrong_type", "sms_id"),
        ({"sms_id": -1}, "out_of_range", "sms_id"),
        ({"sms_id": 2**63}, "out_of_range", "sms_id"),
        ({"sms_id": 1.5}, "out_of_range", "sms_id"),
        ({"status_id": None}, "missing_field", "status_id"),
        ({"status_id": {}}, "wrong_type", "status_id"),
    ],
)
def test_an_error_names_the_field_and_not_its_value(changes: dict[str, Any], reason: str, field: str) -> None:
    with pytest.raises(UnreadablePayload) as caught:
        parse_payload(status(**changes))
    assert (caught.value.reason, caught.value.field) == (reason, field)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b'{"sms_id": NaN}', "not_json"),
        (b"[" * 100_000, "not_json"),
        (b'{"sms_id":1,"status_id":7,"sendto":"\\ud800"', "not_json"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "not_json"),
        (b"[1]", "not_an_object"),
        (b"{}", "unknown_shape"),
        (b'{"sms_id": 1}', "unknown_shape"),
    ],
)
def test_what_is_no_payload_has_a_reason(body: bytes, reason: str) -> None:
    with pytest.raises(UnreadablePayload) as caught:
        parse_payload(body)
    assert caught.value.reason == reason


def test_a_byte_order_mark_does_no_harm() -> None:
    assert parse_payload(b"\xef\xbb\xbf" + status()) == parse_payload(status())


@pytest.mark.parametrize(
    ("written", "text"),
    [
        (rb"sent \ud83d", "sent \ufffd"),
        (rb"\udc00\ud83d\ude00\ud83d", "\ufffd\U0001f600\ufffd"),
        (rb"\ud83d\u0041", "\ufffdA"),
        (rb"\\ud83d \ud83d", "\\ud83d \ufffd"),
        (b"zugestellt f\xfcr", "zugestellt f\ufffdr"),
        (b"\xed\xa0\xbd", "\ufffd\ufffd\ufffd"),
    ],
)
def test_what_is_no_unicode_costs_a_character_and_not_the_report(written: bytes, text: str) -> None:
    report = parse_payload(b'{"sms_id": 17, "status_id": 7, "device_id": 8001, "status_message": "%s"}' % written)
    assert report == StatusReport(17, 7, 8001, None, None, None, text, ())
    event = parse_payload(b'{"sms_id": 17, "type": "text", "body": "%s"}' % written)
    assert isinstance(event, IncomingMessage)
    assert event.text == text


def test_a_time_with_very_many_decimals_is_read_and_not_kept_in_memory() -> None:
    cached = payload_times.cached_epoch_ms.cache_info().currsize
    for digits in (100, 200_000):
        time = f"2026-11-20T10:00:00.{'1' * digits}"
        assert parse_payload(status(senttime=time)) == parse_payload(status(senttime="2026-11-20T10:00:00.111111"))
        assert parse_payload(status(senttime={"date": time, "timezone": "Z" + " " * digits})).sms_id == 17
    assert payload_times.cached_epoch_ms.cache_info().currsize <= cached + 1  # the short one


LIMITS = {
    "status_message": (status, MAX_STATUS_MESSAGE_LENGTH),
    "sendto": (status, MAX_NAME_LENGTH),
    "address": (incoming, MAX_NAME_LENGTH),
    "type": (incoming, MAX_NAME_LENGTH),
    "device_name": (incoming, MAX_NAME_LENGTH),
    "img_url": (incoming, MAX_LINK_LENGTH),
}


@pytest.mark.parametrize("field", LIMITS)
@pytest.mark.parametrize("character", ["x", "\U0001f600"])
def test_a_longer_value_is_a_flaw_and_is_not_copied(field: str, character: str) -> None:
    body, longest = LIMITS[field]
    event = parse_payload(body(**{field: character * longest}))
    assert (event.flaws, character * longest in event) == ((), True)
    for length in (longest + 1, 250_000):
        event = parse_payload(body(**{field: character * length}))
        assert event.flaws == (field,)
        assert all(type(value) is not str or len(value) <= 30 for value in event)
        assert payloads.parse_payloads([body(**{field: character * length})]).others[0] == event


@pytest.mark.parametrize("field", ["device_id", "channel_id"])
def test_an_id_of_any_length_is_a_number_or_a_flaw(field: str) -> None:
    assert parse_payload(status(**{field: "7" * 250_000})).flaws == (field,)
    assert parse_payload(status(**{field: " " * 250_000 + "7"})) == parse_payload(status(**{field: 7}))
    for required in ("sms_id", "status_id"):
        with pytest.raises(UnreadablePayload) as caught:
            parse_payload(status(**{required: "7" * 250_000}))
        assert len(str(caught.value)) < 100


def test_a_sender_that_writes_our_withheld_form_has_no_text_copied() -> None:
    for field in ("x" * 250_000, "+4915752982212"):
        with pytest.raises(UnreadablePayload) as caught:
            parse_payload(orjson.dumps({"withheld": "not_json", "field": field}))
        assert (caught.value.reason, caught.value.field) == ("not_json", None)


def test_an_unknown_status_is_data() -> None:
    report = parse_payload(status(status_id=55))
    assert isinstance(report, StatusReport)
    assert report.status_id == 55


def test_an_image_without_its_url_says_so() -> None:
    assert parse_payload(incoming(type="img")).flaws == ("img_url",)


def test_an_unknown_zone_is_refused_with_a_mend() -> None:
    with pytest.raises(SettingError, match="Europe/Berlin"):
        parse_zone("Mars/Olympus")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=8,
)
_FIELDS = [
    *(
        "sms_id",
        "status_id",
        "status_message",
        "sendto",
        "senttime",
        "channel_id",
        "device_id",
        "sim",
        "address",
        "type",
    ),
    *("date", "date_sent", "body", "internal_id", "device_name", "img_url", "event"),
]
_OBJECTS = st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=5), _JSON, max_size=12)


def _dump(value: object) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer beyond 64 bits
        return repr(value).encode(errors="replace")


@settings(max_examples=600)
@given(st.binary(max_size=200) | _OBJECTS.map(_dump) | _JSON.map(_dump))
def test_no_input_raises_anything_but_its_own_error(body: bytes) -> None:
    try:
        event = parse_payload(body)
    except UnreadablePayload as error:
        assert error.reason in tuple(Reason)  # noqa: PT017 - both ends are fine, no other is
    else:
        assert 0 <= event.sms_id < 2**63


@settings(max_examples=200)
@given(
    st.fixed_dictionaries(
        {"sms_id": st.integers(0, 2**63 - 1), "status_id": st.integers(0, 200)},
        optional=dict.fromkeys(("status_message", "sendto", "senttime", "channel_id", "device_id"), _JSON),
    )
)
def test_whatever_the_other_fields_hold_a_report_with_its_two_ids_is_read(payload: dict[str, Any]) -> None:
    try:
        body = orjson.dumps(payload)
    except TypeError:
        return
    report = parse_payload(body)
    assert isinstance(report, StatusReport)
    assert (report.sms_id, report.status_id) == (payload["sms_id"], payload["status_id"])
    assert set(report.flaws) <= set(payload)


_PLAIN = {
    "sms_id": "17",
    "status_id": "6",
    "status_message": '"gesendet"',
    "sendto": '"+49"',
    "senttime": '"2026-07-11 12:59:26"',
    "channel_id": "1",
    "device_id": "8001",
}
_ODD = [
    r"1",
    r"-0",
    r"1.0",
    r"1e2",
    r"-1",
    r"9223372036854775807",
    r"9223372036854775808",
    r"12345678901234567890123",
    r"null",
    r"true",
    r"[]",
    r"NaN",
    r"01",
    r'"7"',
    r'" 12 "',
    r'""',
    r'"\ud800"',
    r'"\u00e4"',
    r'"ä"',
    r'"+49 157 5298"',
    r'"2026-07-11 12:59:26"',
    r'"2026-13-11"',
    r'"0001-01-01"',
    r'"9999-12-31T23:59:59-23:00"',
    r'{"date": "2026-07-11 12:59:26"}',
    r'""',
]


@given(
    st.dictionaries(st.sampled_from(list(_PLAIN)), st.sampled_from(_ODD), max_size=2),
    st.lists(st.tuples(st.sampled_from([*_PLAIN, "sim", "x", "sms\\u005fid"]), st.sampled_from(_ODD)), max_size=1),
    st.sets(st.sampled_from(list(_PLAIN)), max_size=1),
    st.sampled_from([("utf-8", b""), ("latin-1", b""), ("utf-8", b" "), ("utf-8", b"\x00"), ("utf-8", b"x")]),
)
def test_the_shortcut_for_plain_reports_reads_what_the_long_way_reads(
    odd: dict[str, str], more: list[tuple[str, str]], missing: set[str], coding: tuple[str, bytes]
) -> None:
    fields = [(name, value) for name, value in (_PLAIN | odd).items() if name not in missing] + more
    body = ("{" + ",".join(f'"{name}":{value}' for name, value in fields) + "}").encode(coding[0]) + coding[1]

    def outcome(read: Any) -> Any:
        try:
            return read(body, UTC)
        except UnreadablePayload as error:
            return error.reason, error.detail, error.field

    assert outcome(parse_payload) == outcome(lambda *given: payloads.parse_with_fields(*given)[1])

    read = payloads.parse_payloads([status(), body, b"{"])
    assert read.unreadable[2] == ("not_json", None)
    assert [column[0] for column in read.reports] == list(parse_payload(status()))[:-1]
    if 1 in read.unreadable:
        assert outcome(parse_payload)[::2] == read.unreadable[1]
    else:
        assert outcome(parse_payload) == read.others.get(
            1, StatusReport(*(column[1] for column in read.reports), flaws=())
        )


def _flat(read: Any) -> Any:
    """Return a reader that has the depth of recursion of some twenty calls."""

    def reader(body: bytes) -> Any:
        depth, frame = 0, sys._getframe()
        while frame is not None:
            depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
        limit = sys.getrecursionlimit()
        sys.setrecursionlimit(depth + 60)
        try:
            return read(body)
        finally:
            sys.setrecursionlimit(limit)

    return reader


@pytest.mark.parametrize("marks", [2, 3, 960, 970, 973, 87_000])
@pytest.mark.parametrize("behind", [b"", b'{"sms_id":17,"status_id":7}', b"\xff"])
def test_one_byte_order_mark_is_removed_and_more_are_no_json_for_any_reader(marks: int, behind: bytes) -> None:
    body = b"\xef\xbb\xbf" * marks + behind
    with pytest.raises(UnreadablePayload) as error:
        _flat(parse_payload)(body)
    assert error.value.reason == "not_json"
    assert _flat(lambda one: payloads.parse_payloads([one]))(body).unreadable == {0: ("not_json", None)}
    assert _flat(lambda one: json_body.to_utf8(one, b"text/plain; charset=latin-1"))(body) is body
    assert _flat(payload_check.check_payload)(body).faults == ("not_json: the body is not JSON",)
    for numbers in ("mask", "hmac", "keep"):
        hidden = PayloadRedactor(numbers, "drop", "key").redact_body(body, b"").body  # type: ignore[arg-type]
        with pytest.raises(UnreadablePayload, match="not_json"):
            parse_payload(hidden)


@pytest.mark.parametrize("error", [RecursionError(), MemoryError(), ZeroDivisionError(), KeyError("+4915712345")])
def test_whatever_reading_a_body_raises_it_is_unreadable_and_its_neighbours_are_read(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = json_body.load_json

    def fail(body: bytes, content_type: bytes | None) -> Any:
        if b"poison" in body:
            raise error
        return load(body, content_type)

    monkeypatch.setattr(json_body, "load_json", fail)
    with pytest.raises(UnreadablePayload) as found:
        parse_payload(b"poison")
    assert found.value.reason == Reason.FAULT
    assert found.value.detail == f"{type(error).__name__} while it was processed"
    assert payloads.parse_payloads([status(), b"poison", b"{"]).unreadable == {
        1: (Reason.FAULT, None),
        2: ("not_json", None),
    }


def test_a_number_that_cannot_be_normalised_costs_its_own_report_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(address: str) -> str:
        if address == "poison":
            raise RecursionError
        return address

    monkeypatch.setattr(payloads, "normalise_address", fail)
    read = payloads.parse_payloads([status(), status(sendto="poison"), status(sms_id=18)])
    assert read.unreadable == {1: (Reason.FAULT, None)}
    assert read.reports[0] == [parse_payload(status()).sms_id, None, 18]
