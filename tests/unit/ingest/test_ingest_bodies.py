"""Bodies that ingest receives over real sockets: stored unchanged, decoded, or refused."""

import asyncio
import gzip
import resource
import sys
import tracemalloc
import zlib
from pathlib import Path

import pytest
from served_ingest import EXAMPLES, PATH, STATUS, counter_value, error_of, receiving

from gateway import json_body
from gateway.errors import UnreadablePayload
from gateway.events import StatusReport
from gateway.payloads import parse_payload
from ingest.request_body import PayloadRedactor


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
async def test_each_documented_payload_is_stored_unchanged(tmp_path: Path, example: Path) -> None:
    body = example.read_bytes()  # noqa: ASYNC240 - nothing runs yet that it could block
    async with receiving(tmp_path) as running:
        response = await running.http.post(PATH, data=body, headers={"Content-Type": "application/json"})
        assert response.status == 202
        ingest_id = (await response.json())["ingest_id"]
    (webhook,) = running.sink.kept
    headers = dict(webhook.headers)
    assert webhook.body == body
    assert webhook.key == (None if "unverified" in example.stem else f"acme:{parse_payload(body).sms_id}".encode())
    assert headers == {
        "source": b"acme",
        "received_at": str(webhook.received_at).encode(),
        "ingest_id": ingest_id.encode(),
        "content_type": b"application/json",
    }


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe\x00", b"[1]", b'{"sms_id": "x", "status_id": 7}', b"[" * 9999])
async def test_an_unreadable_body_is_stored_without_a_key(tmp_path: Path, body: bytes) -> None:
    async with receiving(tmp_path) as running:
        response = await running.http.post(PATH, data=body)
        assert response.status == 202
    assert [(webhook.key, webhook.body) for webhook in running.sink.kept] == [(None, body)]


def _raw_deflate(body: bytes) -> bytes:
    return zlib.compress(body, wbits=-zlib.MAX_WBITS)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", gzip.compress(STATUS)),
        ("X-GZIP", gzip.compress(STATUS)),
        ("gzip", gzip.compress(STATUS[:9]) + gzip.compress(STATUS[9:])),
        ("deflate", zlib.compress(STATUS)),
        ("deflate", _raw_deflate(STATUS)),
        ("deflate, gzip", gzip.compress(zlib.compress(STATUS))),
    ],
    # An id made of the bytes would differ between test processes, because gzip's header has the time.
    ids=["gzip", "x-gzip", "two-members", "zlib", "raw-deflate", "zlib-in-gzip"],
)
async def test_a_compressed_body_is_stored_decoded(tmp_path: Path, coding: str, body: bytes) -> None:
    async with receiving(tmp_path, max_body_bytes=200) as running:
        response = await running.http.post(PATH, data=body, headers={"Content-Encoding": coding})
        assert response.status == 202
    (webhook,) = running.sink.kept
    assert (webhook.key, webhook.body) == (b"acme:17", STATUS)
    assert dict(webhook.headers)["content_encoding"] == coding.lower().removeprefix("x-").encode()


@pytest.mark.parametrize("coding", ["", "identity"])
async def test_a_body_without_a_coding_is_stored_unchanged(tmp_path: Path, coding: str) -> None:
    async with receiving(tmp_path) as running:
        assert (await running.http.post(PATH, data=STATUS, headers={"Content-Encoding": coding})).status == 202
    (webhook,) = running.sink.kept
    assert webhook.body == STATUS
    assert "content_encoding" not in dict(webhook.headers)


@pytest.mark.parametrize(
    ("coding", "body"),
    [
        ("gzip", b"\x1f\x8b no gzip"),
        ("gzip", b""),
        ("gzip", gzip.compress(STATUS)[:-4]),
        ("gzip", gzip.compress(b"") * 1000),
        ("deflate", zlib.compress(STATUS)[:-4]),
        ("deflate", b"\xff"),
    ],
    ids=["no-gzip", "empty", "cut-gzip", "too-many-members", "cut-zlib", "no-deflate"],
)
async def test_a_body_that_does_not_match_its_coding_is_stored_unchanged(
    tmp_path: Path, coding: str, body: bytes
) -> None:
    async with receiving(tmp_path) as running:
        response = await running.http.post(PATH, data=body, headers={"Content-Encoding": coding})
        assert response.status == 202
    (webhook,) = running.sink.kept
    assert (webhook.key, webhook.body) == (None, body)
    assert "content_encoding" not in dict(webhook.headers)


@pytest.mark.parametrize("coding", ["gzip", "deflate", "gzip, gzip"])
async def test_a_decompression_bomb_is_refused_and_never_expanded(tmp_path: Path, coding: str) -> None:
    bomb = zlib.compress(bytes(100_000_000)) if coding == "deflate" else gzip.compress(bytes(100_000_000))
    if coding == "gzip, gzip":
        bomb = gzip.compress(bomb)
    async with receiving(tmp_path) as running:
        tracemalloc.start()
        response = await running.http.post(PATH, data=bomb, headers={"Content-Encoding": coding})
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (response.status, await error_of(response)) == (413, "the body is larger than 262144 bytes")
    assert running.sink.kept == []
    assert peak < 10_000_000


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, br", "gzip, gzip, gzip", "*"])
async def test_an_unknown_coding_is_answered_415_with_the_known_ones(tmp_path: Path, coding: str) -> None:
    async with receiving(tmp_path) as running:
        response = await running.http.post(PATH, data=STATUS, headers={"Content-Encoding": coding})
        assert (response.status, response.headers["Accept-Encoding"]) == (415, "gzip, deflate")
        assert await error_of(response) == "Content-Encoding must be one of gzip, deflate, or left out"
        assert (await running.http.post(PATH, data=STATUS)).status == 202
    assert len(running.sink.kept) == 1


@pytest.mark.parametrize("charset", ["UTF-16", "ISO-8859-1"])
@pytest.mark.parametrize("privacy", ["keep", "mask"])
async def test_a_declared_charset_is_used_for_the_key_and_redacted_bodies_are_utf_8(
    tmp_path: Path, privacy: str, charset: str
) -> None:
    body = '{"sms_id": 17, "status_id": 77, "status_message": "für", "sendto": "+4915752982212"}'.encode(charset)
    async with receiving(tmp_path, privacy=privacy) as running:
        headers = {"Content-Type": f"application/json; charset={charset}"}
        assert (await running.http.post(PATH, data=body, headers=headers)).status == 202
    (webhook,) = running.sink.kept
    content_type = dict(webhook.headers)["content_type"]
    report = parse_payload(webhook.body, content_type=content_type)
    assert isinstance(report, StatusReport)
    assert (webhook.key, report.status_message) == (b"acme:17", "für")
    expected = (body, "+4915752982212") if privacy == "keep" else (webhook.body, "****2212")
    assert (webhook.body, report.recipient) == expected


async def test_a_declared_length_over_the_limit_is_refused_before_the_body_is_sent(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_body_bytes=1000) as running:
        # No byte of the body is sent. The answer arrives and the connection ends nevertheless.
        answer = await running.raw(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n" % PATH.encode())
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"Connection: close" in answer
        assert (await running.http.post(PATH, data=bytes(1000))).status == 202


async def test_a_chunked_body_is_refused_as_soon_as_it_grows_over_the_limit(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_body_bytes=1000) as running:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode()
        chunk = b"1f4\r\n" + bytes(500) + b"\r\n"
        answer = await running.raw(head + 3 * chunk)  # without an end
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'{"error":"the body is larger than 1000 bytes"}' in answer
        assert (await running.raw(head + 2 * chunk + b"0\r\n\r\nGET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 202 ")
    assert [len(webhook.body) for webhook in running.sink.kept] == [1000]


async def test_a_truncated_body_is_not_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with receiving(tmp_path, body_timeout_s=0.2, max_in_flight=2) as running:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n" % PATH.encode()
        assert b" 400 " in await running.raw(head + b"\r\nno chunk\r\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(head + b"Expect: 100-continue\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"no chunk\r\n")
        async with asyncio.timeout(60):
            assert (await reader.read()).startswith(b"HTTP/1.1 408 ")
        writer.close()
        _, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\nhalf" % PATH.encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert (await running.http.post(PATH, data=STATUS)).status == 202  # they do not count as in flight
    assert [webhook.body for webhook in running.sink.kept] == [STATUS]
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("privacy", [{}, {"privacy": "hmac", "privacy_key": "a key of this test", "bodies": "drop"}])
async def test_bodies_of_only_byte_order_marks_delay_no_other_request(
    tmp_path: Path, privacy: dict[str, str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = [b"\xef\xbb\xbf" * marks for marks in (2, 960, 973, *([87_000] * 10))]
    loop = asyncio.get_running_loop()
    waits: list[float] = []
    async with receiving(tmp_path, **privacy) as running:
        errors = await counter_value(running, "smspulse_ingest_requests_total", route="webhooks", code="500")
        sent = asyncio.gather(*(running.http.post(PATH, data=body) for body in hostile))
        while not waits or not sent.done():
            began = loop.time()
            response = await running.http.post(PATH, data=STATUS)
            assert response.status == 202
            waits.append(loop.time() - began)
        assert [response.status for response in await sent] == [202] * len(hostile)
        assert errors == await counter_value(running, "smspulse_ingest_requests_total", route="webhooks", code="500")
    kept = [webhook for webhook in running.sink.kept if webhook.key is None]
    assert len(kept) == len(hostile)
    assert len(running.sink.kept) - len(kept) == len(waits)
    if not privacy:
        assert sorted(webhook.body for webhook in kept) == sorted(hostile)
    assert caplog.text == ""
    with capsys.disabled():
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        sys.stdout.write(
            f"\n{len(hostile)} bodies of byte order marks: others waited {max(waits) * 1000:.0f} ms at most, "
            f"{len(caplog.text)} bytes of log, {peak_mb:.0f} MB at most\n"
        )


@pytest.mark.parametrize("privacy", ["keep", "mask"])
async def test_a_webhook_whose_processing_fails_is_stored_as_unreadable_and_counted(
    tmp_path: Path, privacy: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bytes:
        raise RecursionError

    monkeypatch.setattr(PayloadRedactor, "_rewrite_event", fail)
    if privacy == "keep":
        monkeypatch.setattr(json_body, "load_json", fail)
    body = b'{"sms_id": 17, "status_id": 7, "sendto": "+4915712345", "unknown": 1}'
    async with receiving(tmp_path, privacy=privacy) as running:
        before = await counter_value(running, "smspulse_ingest_faults_total")
        assert (await running.http.post(PATH, data=body)).status == 202
        assert await counter_value(running, "smspulse_ingest_faults_total") == before + 1
    (webhook,) = running.sink.kept
    if privacy == "keep":
        assert webhook.body == body
    else:
        with pytest.raises(UnreadablePayload, match="processing_failed"):
            parse_payload(webhook.body)
    assert "+4915712345" not in caplog.text
    assert len(caplog.text) < 500


async def test_with_privacy_a_field_nested_deeper_than_json_allows_loses_only_itself(tmp_path: Path) -> None:
    deep = b"[" * 300 + b"]" * 300
    async with receiving(tmp_path, privacy="mask") as running:
        for field in (b"sim", b"sendto", b"senttime", b"unknown"):
            body = b'{"sms_id": 17, "status_id": 7, "channel_id": 1, "%s": %s}' % (field, deep)
            assert (await running.http.post(PATH, data=body)).status == 202
    assert [webhook.key for webhook in running.sink.kept] == [b"acme:17"] * 4
    assert all(parse_payload(webhook.body).sms_id == 17 for webhook in running.sink.kept)
