"""A body is read by the charset that it declares, by everybody alike."""

import codecs
import encodings
from datetime import UTC

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from landing import partition_records
from warehouse_records import MadeRecord, raw, status

from expectations.payload_check import check_payload
from gateway import json_body
from gateway.errors import UnreadablePayload
from gateway.events import StatusReport
from gateway.json_body import to_utf8
from gateway.payloads import parse_payload
from gateway.statuses import STATUSES
from streams.lifecycle import LifecycleRules
from streams.message_processor import MessageProcessor
from warehouse.sink.record_conversion import build_table

TEXT = '{"sms_id": 17, "status_id": 7, "status_message": "zugestellt für 5 €", "sendto": "+4915752982212"}'
LATIN = TEXT.replace(" 5 €", "")


def typed(body: bytes, content_type: bytes | None) -> MadeRecord:
    record = raw(0, body)
    headers = [header for header in record.headers if header[0] != "content_type"]
    return record._replace(key=b"acme:17", headers=[*headers, ("content_type", content_type)])


@pytest.mark.parametrize(
    ("charset", "codec", "text"),
    [
        ("ISO-8859-1", "latin-1", LATIN),
        ('"iso-8859-1"', "latin-1", LATIN),
        ("latin1", "latin-1", LATIN),
        ("ISO-8859-15", "iso-8859-15", TEXT),
        ("windows-1252", "cp1252", TEXT),
        ("UTF-16", "utf-16", TEXT),
        ("UTF-16", "utf-16-le", TEXT),
        ("UTF-16", "utf-16-be", TEXT),
        ("utf-16le", "utf-16-le", TEXT),
        ("UTF-16BE", "utf-16-be", TEXT),
        ("utf-32", "utf-32", TEXT),
        ("gb18030", "gb18030", TEXT),
        ("utf-8", "utf-8-sig", TEXT),
        ("utf-8", "utf-8", TEXT),
        # Wrongly declared, unknown, or none: UTF-8 as RFC 8259 says.
        ("utf-16", "utf-8", TEXT),
        ("utf-16-le", "utf-8", TEXT),
        ("klingon", "utf-8", TEXT),
        ("us-ascii", "utf-8", TEXT),
        ("rot13", "utf-8", TEXT),
        ("latin-1", "utf-8-sig", TEXT),
    ],
)
def test_stream_lander_and_check_read_a_body_by_its_declared_charset(charset: str, codec: str, text: str) -> None:
    body, content_type = text.encode(codec), f"application/json; Charset={charset}".encode()
    expected = orjson.loads(text)["status_message"]

    table = build_table(partition_records([typed(body, content_type), typed(TEXT.encode(), b"application/json")]))
    assert table["status_message"].to_pylist() == [expected, "zugestellt für 5 €"]
    assert table["body"][0].as_py() == body

    fold = MessageProcessor(LifecycleRules(STATUSES), lambda _: None, UTC, 9, 10, 20)
    outputs = fold.process([typed(body, content_type)])  # type: ignore[list-item]
    assert [key for key, _, _ in outputs.states] == [b"acme:17"]
    assert [each.topic for each in outputs.records if each.topic == "sms.deadletters"] == []

    found = check_payload(body, UTC, content_type)
    assert (found.generation, found.faults) == ("status report, current", ())


def test_undecodable_bytes_cost_characters_and_not_the_report() -> None:
    body = b"\xff\xfe" + '{"sms_id": 17, "status_id": 7, "status_message": "x'.encode("utf-16-le") + b"\x3d\xd8"
    report = parse_payload(body + '"}'.encode("utf-16-le"), content_type=b"application/json; charset=utf-16")
    assert isinstance(report, StatusReport)
    assert report.status_message == "x\ufffd"


def test_charsets_are_taken_from_a_list_and_the_cache_of_types_is_bounded() -> None:
    for codec in json_body._ASCII_BASED | json_body._OF_WIDE_UNITS:
        assert codecs.lookup(codec)._is_text_encoding  # type: ignore[attr-defined]
    for codec in json_body._ASCII_BASED:
        assert bytes(range(128)).decode(codec) == bytes(range(128)).decode("ascii"), codec
    known, cached = len(encodings._cache), json_body._cached_charset.cache_info().currsize  # type: ignore[attr-defined]
    for number in range(50):
        content_type = b"application/json; charset=x-%d" % number
        assert to_utf8(b"{}", content_type + b" " * 200) == b"{}"
    assert len(encodings._cache) == known  # type: ignore[attr-defined]
    assert json_body._cached_charset.cache_info().currsize == cached


@given(
    st.binary(max_size=60) | st.text(max_size=30).map(str.encode) | st.just(b'{"sms_id":1,"status_id":7}'),
    st.sampled_from(["utf-8", "latin-1", "utf-16", "utf-16-le", "shift_jis", "gb18030", "x", ""]),
    st.booleans(),
)
def test_whatever_is_declared_nothing_but_an_unreadable_payload_is_raised(
    body: bytes, charset: str, as_object: bool
) -> None:
    if as_object:
        body = b'{"sms_id": 1, "status_id": 7, "status_message": "' + body + b'"}'
    try:
        event = parse_payload(body, content_type=b"text/plain; charset=%s" % charset.encode())
    except UnreadablePayload:
        return
    orjson.dumps(event._asdict())  # all its texts are Unicode


def test_a_plain_report_is_not_decoded_at_all() -> None:
    body = orjson.dumps(status(1, 7))
    for content_type in (None, b"", b"application/json", b"application/json; charset=utf-8", b"a; charset=latin-1"):
        assert to_utf8(body, content_type) is body
