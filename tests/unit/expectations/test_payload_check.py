"""Checks of payloads before a gateway is connected: their generation and their errors."""

import gzip
from datetime import UTC
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st
from warehouse_records import raw

from core.topics import DEADLETTERS
from expectations.payload_check import check_payload, decode_request_body
from gateway.errors import UnreadablePayload
from gateway.payloads import parse_payload
from gateway.statuses import STATUSES
from ingest.request_body import RefusedBodyError
from smspulse.cli.main import cli
from streams.lifecycle import LifecycleRules
from streams.message_processor import MessageProcessor

EXAMPLES = Path(__file__).parents[3] / "examples" / "webhooks"
GENERATIONS = {
    "status": "status report, current",
    "status-sim": "status report, older (sim in place of channel_id)",
    "incoming-sim": "incoming message, oldest (sim, no type)",
    "incoming-channel": "incoming message, older (channel_id, no type)",
    "incoming-text": "incoming text, current",
    "incoming-image": "incoming image, current",
    "unverified-event": None,
}


def test_every_documented_payload_has_its_generation() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.json")} == GENERATIONS.keys()
    for name, generation in GENERATIONS.items():
        found = check_payload((EXAMPLES / f"{name}.json").read_bytes())
        assert (found.generation, bool(found.faults)) == (generation, generation is None), name
        assert found.unknown == (), name


def test_an_error_names_the_field_and_never_its_value() -> None:
    found = check_payload(orjson.dumps({"sms_id": 1, "status_id": 7, "senttime": "secret", "colour": "secret"}))
    assert (found.faults, found.unknown) == (("senttime cannot be read and would be null",), ("colour",))
    assert check_payload(b'{"status_id": 7}').faults == ("missing_field: sms_id is missing",)


_STATUS = (EXAMPLES / "status.json").read_bytes()
_PARTS = st.sampled_from(
    [
        *(path.read_bytes() for path in EXAMPLES.glob("*.json")),
        *(
            b"[",
            b"]",
            b",",
            b"\n",
            b"{",
            b"}",
            b" ",
            b"\xef\xbb\xbf",
            b"\xff",
            b"\x00",
            b'"\\ud800"',
            b"null",
            b"1",
            b"[]",
        ),
        *(b'{"sms_id": 1, "status_id": 7}', b'{"sms_id": 1}', b'{"event": 1}', b'{"sms_id": "x", "status_id": 7}'),
    ]
)


@settings(max_examples=300)
@given(
    st.lists(_PARTS, max_size=4).map(b"".join),
    st.sampled_from([None, b"", b"text/plain; charset=latin-1", b"application/json; charset=utf-16"]),
    st.booleans(),
)
@example(b"[" + _STATUS + b"]", None, False)
@example(_STATUS + b"\n" + _STATUS, None, False)
@example(b"\xef\xbb\xbf\xef\xbb\xbf" + _STATUS, None, False)
def test_a_payload_is_accepted_exactly_when_the_stream_accepts_it(
    body: bytes, content_type: bytes | None, is_wide: bool
) -> None:
    if is_wide:
        body = body.decode("utf-8", "replace").encode("utf-16")
    try:
        key = b"acme:%d" % parse_payload(body, content_type=content_type).sms_id  # as ingest gives it
    except UnreadablePayload:
        key = None
    record = raw(0, body)
    headers = [header for header in record.headers if header[0] != "content_type"]
    record = record._replace(key=key, headers=[*headers, ("content_type", content_type)])
    outputs = MessageProcessor(LifecycleRules(STATUSES, 10), lambda _: None, UTC, 9, 20).process([record])  # type: ignore[list-item]
    dead = [dict(each.headers or ())["reason"].decode() for each in outputs.records if each.topic == DEADLETTERS]

    found = check_payload(body, UTC, content_type)
    assert (found.generation is None) == bool(dead)
    assert [fault.partition(":")[0] for fault in found.faults if found.generation is None] == dead


def test_the_check_refuses_the_same_bodies_as_ingest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMSPULSE_INGEST_MAX_BODY_BYTES", str(len(_STATUS)))
    assert decode_request_body(_STATUS, "") == decode_request_body(gzip.compress(_STATUS), "gzip") == _STATUS
    for sample, coding, status in (
        (_STATUS + b" ", "", 413),
        (gzip.compress(_STATUS + b" "), "gzip", 413),
        (b"", "br", 415),
    ):
        with pytest.raises(RefusedBodyError) as refused:
            decode_request_body(sample, coding)
        assert refused.value.status == status
    assert decode_request_body(b"\x1f\x8b", "gzip") == b"\x1f\x8b"  # stored as received


def test_the_command_also_runs_the_suite_and_its_exit_code_is_the_result(tmp_path: Path) -> None:
    good = CliRunner().invoke(cli, ["check", "payload", str(EXAMPLES / "status.json")])
    assert (good.exit_code, "✓ 1: status report, current" in good.output) == (0, True), good.output
    odd = b'{"sms_id": 1, "status_id": 99, "channel_id": 8001, "sendto": "+4915"}'
    found = CliRunner().invoke(cli, ["check", "payload", "-"], input=odd)
    for check in ("raw_channels_in_range", "raw_codes_known"):
        assert f"✗ warning {check}" in found.output
    assert "payloads checked: 1, as if they had been received now" in found.output
    none = CliRunner().invoke(cli, ["check", "payload", "-"], input=b" \n")
    assert (none.exit_code, "there is no payload in it" in none.output) == (2, True)
    array = CliRunner().invoke(cli, ["check", "payload", "-"], input=b"[" + _STATUS + b"]")
    assert (array.exit_code, "not_an_object" in array.output) == (1, True)
    lines = CliRunner().invoke(
        cli, ["check", "payload", "--lines", "-"], input=orjson.dumps(orjson.loads(_STATUS)) + b"\n\n{\n"
    )
    assert (lines.exit_code, "✓ 1: status report, current" in lines.output, "✗ 2: cannot" in lines.output) == (
        1,
        True,
        True,
    )
    refused = CliRunner().invoke(cli, ["check", "payload", "--content-encoding", "br", "-"], input=_STATUS)
    assert (refused.exit_code, "ingest answers 415" in refused.output) == (1, True)
    bad = CliRunner().invoke(cli, ["check", "payload", "-"], input=b"<html>")
    assert bad.exit_code == 1
    assert "not_json" in bad.output
