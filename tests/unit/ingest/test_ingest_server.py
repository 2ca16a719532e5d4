"""The HTTP side over real sockets, with a sink that keeps webhooks in a list."""

import asyncio
import contextlib
import gzip
import json
import logging
import resource
import sys
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from failing_once import FailingOnce
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError

from core import background_tasks
from core.kafka_settings import KafkaSettings
from core.metrics import GaugeFamily
from gateway import json_body
from gateway.errors import UnreadablePayload
from gateway.events import StatusReport
from gateway.payloads import parse_payload
from ingest import metrics
from ingest.errors import CannotListenError, NotStoredError
from ingest.handlers import IngestHandler
from ingest.request_body import PayloadRedactor
from ingest.server import serve_ingest
from ingest.settings import IngestSettings
from ingest.sink import StoreAndForward
from ingest.sources import SourceRegistry
from ingest.webhook_record import WebhookRecord

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "webhooks").glob("*.json"))
TOKEN = "a-long-secret-token"  # noqa: S105 - a test's own
PATH = f"/webhooks/acme/{TOKEN}"
STATUS = b'{"sms_id": 17, "status_id": 7}'


class ListSink:
    """Keeps webhooks, once its gate is open; refuses them while it has trouble."""

    def __init__(self) -> None:
        self.kept: list[WebhookRecord] = []
        self.problem: str | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    def read_state(self) -> dict[str, object]:
        return {"kept": len(self.kept)}

    def read_gauges(self) -> dict[GaugeFamily, float]:
        return {metrics.SPOOL_WEBHOOKS: len(self.kept)}

    async def store_webhook(self, webhook: WebhookRecord) -> None:
        if self.problem is not None:
            raise NotStoredError(self.problem)
        self.entered.set()
        await self.gate.wait()
        self.kept.append(webhook)


class Running:
    def __init__(
        self, sink: ListSink, receiver: IngestHandler, server: web.Server, port: int, http: aiohttp.ClientSession
    ) -> None:
        self.sink, self.receiver, self.server, self.port, self.http = sink, receiver, server, port, http

    async def raw(self, text: bytes) -> bytes:
        """Send bytes, and return all that comes back before the connection is closed, or reset before any came."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(text)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(60):
                answer = await reader.read()
        writer.close()
        return answer


@asynccontextmanager
async def receiving(tmp_path: Path, **settings: object) -> AsyncIterator[Running]:
    sink = ListSink()
    running_settings = IngestSettings.model_validate(settings)
    receiver = IngestHandler(running_settings, SourceRegistry(tmp_path, f"acme={TOKEN}"), sink)
    server = receiver.build_server()
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    async with aiohttp.ClientSession(f"http://127.0.0.1:{site.port}") as http:
        yield Running(sink, receiver, server, site.port, http)
    await runner.cleanup()


async def error_of(response: aiohttp.ClientResponse) -> str:
    body = await response.json()
    assert list(body) == ["error"]
    assert "\n" not in body["error"]
    return str(body["error"])


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
async def test_each_documented_payload_is_kept_byte_by_byte(tmp_path: Path, example: Path) -> None:
    body = example.read_bytes()  # noqa: ASYNC240 - before there is anything to block
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
async def test_what_cannot_be_read_is_kept_without_a_key(tmp_path: Path, body: bytes) -> None:
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
    # An id of the bytes would differ between test processes: gzip's header holds the time.
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
async def test_a_body_without_a_coding_is_kept_as_it_came(tmp_path: Path, coding: str) -> None:
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
async def test_a_body_that_is_not_what_its_coding_says_is_kept_as_it_came(
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
async def test_an_unknown_coding_is_answered_415_with_those_that_are_known(tmp_path: Path, coding: str) -> None:
    async with receiving(tmp_path) as running:
        response = await running.http.post(PATH, data=STATUS, headers={"Content-Encoding": coding})
        assert (response.status, response.headers["Accept-Encoding"]) == (415, "gzip, deflate")
        assert await error_of(response) == "Content-Encoding must be one of gzip, deflate, or left out"
        assert (await running.http.post(PATH, data=STATUS)).status == 202
    assert len(running.sink.kept) == 1


@pytest.mark.parametrize("charset", ["UTF-16", "ISO-8859-1"])
@pytest.mark.parametrize("privacy", ["keep", "mask"])
async def test_a_declared_charset_gives_the_key_and_what_privacy_rewrites_is_utf_8(
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


@pytest.mark.parametrize("status", [200, 202, "200", "202"])
async def test_the_status_of_success_is_200_or_202(tmp_path: Path, status: int | str) -> None:
    async with receiving(tmp_path, success_status=status) as running:
        response = await running.http.post(PATH, data=STATUS)
        assert response.status == int(status)
        assert list(await response.json()) == ["ingest_id"]
        assert (await running.http.post("/webhooks/acme/wrong", data=STATUS)).status == 401


@pytest.mark.parametrize("status", [201, 204, "abc", ""])
def test_another_status_of_success_is_refused(status: int | str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMSPULSE_INGEST_SUCCESS_STATUS", str(status))
    with pytest.raises(ValidationError, match="200"):
        IngestSettings()


TARGETS = [
    "{path}",
    "{path}/",
    "{path}?x=1",
    "{path}/?x=1",
    "http://127.0.0.1{path}",
    "HTTPS://sms.example.org:8443{path}/",
]


@pytest.mark.parametrize("target", TARGETS)
async def test_a_request_target_may_be_absolute_and_end_with_a_slash(tmp_path: Path, target: str) -> None:
    async with receiving(tmp_path) as running:

        async def answer(method: bytes, path: str) -> bytes:
            line = b"%s %s HTTP/1.1\r\n" % (method, target.format(path=path).encode())
            head = b"Host: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(STATUS)
            return (await running.raw(line + head + STATUS)).partition(b"\r\n")[0]

        assert await answer(b"POST", PATH) == b"HTTP/1.1 202 Accepted"
        assert await answer(b"POST", f"{PATH}/more") == b"HTTP/1.1 404 Not Found"
        assert await answer(b"POST", f"{PATH}//") == b"HTTP/1.1 404 Not Found"
        for path in ("/healthz", "/readyz", "/metrics", "/openapi.json"):
            assert await answer(b"GET", path) == b"HTTP/1.1 200 OK", path
        assert (await running.http.get("/metrics")).status == 200
        assert TOKEN not in await (await running.http.get("/metrics")).text()
    assert len(running.sink.kept) == 1


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1", "http://127.0.0.1?x", "*", "http:/healthz", "x://y/healthz", "x/http://y/healthz"]
)
async def test_other_request_targets_are_not_found(tmp_path: Path, target: str) -> None:
    async with receiving(tmp_path) as running:
        answer = await running.raw(b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target.encode())
        assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ", b"HTTP/1.0 400 ")), answer


async def test_the_sender_s_address_is_stored_only_when_asked_for(tmp_path: Path) -> None:
    async with receiving(tmp_path, store_remote=True) as running:
        await running.http.post(PATH, data=STATUS)
    assert dict(running.sink.kept[0].headers)["remote"] == b"127.0.0.1"


async def test_basic_auth_serves_with_any_user(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        for user in ("acme", "any", ""):
            headers = {"Authorization": aiohttp.encode_basic_auth(user, TOKEN)}
            assert (await running.http.post("/webhooks/acme", data=STATUS, headers=headers)).status == 202
            assert (await running.http.post("/webhooks/acme/", data=STATUS, headers=headers)).status == 202


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/webhooks/acme/wrong", {}),
        ("/webhooks/acme", {}),
        ("/webhooks/acme/", {}),
        (f"/webhooks/nobody/{TOKEN}", {}),
        (f"/webhooks//{TOKEN}", {}),
        ("/webhooks/acme", {"Authorization": "Basic %%%"}),
        ("/webhooks/acme", {"Authorization": "Basic YWNtZTp3cm9uZw=="}),
        ("/webhooks/acme", {"Authorization": f"Bearer {TOKEN}"}),
    ],
)
async def test_an_unknown_source_and_a_wrong_token_get_the_same_answer(
    tmp_path: Path, path: str, headers: dict[str, str]
) -> None:
    async with receiving(tmp_path) as running:
        response = await running.http.post(path, data=STATUS, headers=headers)
        assert response.status == 401
        assert response.headers["WWW-Authenticate"].startswith("Basic ")
        assert await error_of(response) == "unknown source or wrong token"
    assert running.sink.kept == []


async def test_wrong_paths_and_methods_are_told_apart(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        for path in ("/", "/webhook/acme/x", f"{PATH}/more", "/healthz/x", "/metricsz", "//"):
            response = await running.http.post(path, data=STATUS)
            assert response.status == 404, path
            await error_of(response)
        for method, path, allowed in (
            ("GET", PATH, "POST"),
            ("PUT", "/webhooks/nobody/x", "POST"),
            ("POST", "/readyz", "GET, HEAD"),
        ):
            response = await running.http.request(method, path)
            assert (response.status, response.headers["Allow"]) == (405, allowed)
            await error_of(response)
    assert running.sink.kept == []


async def test_a_declared_length_over_the_limit_is_refused_before_it_is_sent(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_body_bytes=1000) as running:
        # Not one byte of the body is sent, and the answer comes and the connection ends all the same.
        answer = await running.raw(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 1001\r\n\r\n" % PATH.encode())
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"Connection: close" in answer
        assert (await running.http.post(PATH, data=bytes(1000))).status == 202


async def test_a_chunked_body_is_refused_as_soon_as_it_grows_over_the_limit(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_body_bytes=1000) as running:
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode()
        chunk = b"1f4\r\n" + bytes(500) + b"\r\n"
        answer = await running.raw(head + 3 * chunk)  # and no end
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b'{"error":"the body is larger than 1000 bytes"}' in answer
        assert (await running.raw(head + 2 * chunk + b"0\r\n\r\nGET / HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.1 202 ")
    assert [len(webhook.body) for webhook in running.sink.kept] == [1000]


async def test_a_large_sender_without_a_token_is_refused_by_its_size_first(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_body_bytes=1000) as running:
        assert (await running.http.post("/webhooks/acme/wrong", data=bytes(1001))).status == 413


async def test_a_sender_that_asks_first_is_told_to_go_on(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        response = await running.http.post(PATH, data=STATUS, expect100=True)
        assert response.status == 202


async def test_a_body_cut_short_is_not_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
        assert (await running.http.post(PATH, data=STATUS)).status == 202  # they hold no place
    assert [webhook.body for webhook in running.sink.kept] == [STATUS]
    assert "Traceback" not in caplog.text


async def test_too_many_at_once_are_asked_to_come_again(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_in_flight=1, retry_after_s=7) as running:
        running.sink.gate.clear()
        first = asyncio.create_task(running.http.post(PATH, data=STATUS))
        await running.sink.entered.wait()
        second = await running.http.post(PATH, data=STATUS)
        assert (second.status, second.headers["Retry-After"]) == (503, "7")
        await error_of(second)
        running.sink.gate.set()
        assert (await first).status == 202
    assert len(running.sink.kept) == 1


async def test_trouble_is_answered_503_and_shows_in_readyz(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        assert await (await running.http.get("/readyz")).json() == {"ready": True, "kept": 0}
        running.sink.problem = "the spool is full"
        response = await running.http.post(PATH, data=STATUS)
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        assert await error_of(response) == "not stored, send it again: the spool is full"
        ready = await running.http.get("/readyz")
        assert (ready.status, await ready.json()) == (503, {"ready": False, "kept": 0, "error": "the spool is full"})
        assert (await running.http.get("/healthz")).status == 200
        assert (await running.http.head("/readyz")).status == 503


async def test_metrics_count_requests_and_hold_no_secret(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:

        async def samples() -> dict[tuple[str, str, str], float]:
            response = await running.http.get("/metrics")
            assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            text = await response.text()
            assert TOKEN not in text
            assert "acme" not in text
            return {
                (sample.name, sample.labels.get("route", ""), sample.labels.get("code", "")): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }

        before = await samples()
        for path in (PATH, PATH, f"/webhooks/{TOKEN}/acme", f"/{TOKEN}"):
            await running.http.post(path, data=STATUS)
        after = await samples()
    added = {name: value - before.get(name, 0) for name, value in after.items() if value != before.get(name, 0)}
    assert added.pop(("smspulse_ingest_webhook_seconds_sum", "", "")) > 0
    added.pop(("smspulse_ingest_webhook_seconds_bucket", "", ""))
    assert {name: value for name, value in added.items() if "created" not in name[0]} == {
        ("smspulse_ingest_requests_total", "webhooks", "202"): 2,
        ("smspulse_ingest_requests_total", "webhooks", "401"): 1,
        ("smspulse_ingest_requests_total", "?", "404"): 1,
        ("smspulse_ingest_requests_total", "metrics", "200"): 1,
        ("smspulse_ingest_webhook_seconds_count", "", ""): 3,
        ("smspulse_ingest_spool_webhooks", "", ""): 2,
    }


async def test_draining_waits_for_what_is_in_flight_and_closes_connections(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        running.sink.gate.clear()
        post = asyncio.create_task(running.http.post(PATH, data=STATUS))
        await running.sink.entered.wait()
        drained = asyncio.create_task(running.receiver.wait_until_drained())
        assert (await running.http.get("/healthz")).headers["Connection"] == "close"
        assert not drained.done()
        running.sink.gate.set()
        await drained
        response = await post
        assert (response.status, response.headers["Connection"]) == (202, "close")


@pytest.mark.parametrize("request_", [b"NONSENSE\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 99_999])
async def test_what_is_no_http_is_answered_in_json_and_kept_out_of_the_log(
    tmp_path: Path, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(tmp_path) as running:
        answer = await running.raw(request_)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
    assert json.loads(body) == {"error": "the request is not valid HTTP"}
    assert b"Server" not in head
    assert caplog.text == ""


async def counted(running: Running, name: str, **labels: str) -> float:
    """Return the value of a counter in `/metrics`; 0 without it."""
    text = await (await running.http.get("/metrics")).text()
    samples = [each for family in text_string_to_metric_families(text) for each in family.samples]
    return sum(each.value for each in samples if each.name == name and each.labels == labels)


async def test_a_fault_of_ours_is_counted_and_logged_in_one_short_line_and_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counter = {"name": "smspulse_ingest_requests_total", "route": "webhooks", "code": "500"}

    async def fail(webhook: WebhookRecord) -> None:
        raise RuntimeError(webhook.body)

    async with receiving(tmp_path) as running:
        before = await counted(running, **counter)
        running.sink.store_webhook = fail  # type: ignore[method-assign]
        response = await running.http.post(PATH, data=STATUS + b" " * 200_000)
        assert response.status == 500
        assert response.headers["Connection"] == "close"
        assert "log" in await error_of(response)
        assert await counted(running, **counter) == before + 1
    assert "RuntimeError in test_ingest_server.py" in caplog.text
    assert len(caplog.text) < 500
    assert TOKEN not in caplog.text
    assert "sms_id" not in caplog.text


@pytest.mark.parametrize("privacy", [{}, {"privacy": "hmac", "privacy_key": "a key of this test", "bodies": "drop"}])
async def test_bodies_of_nothing_but_byte_order_marks_hold_nobody_up(
    tmp_path: Path, privacy: dict[str, str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = [b"\xef\xbb\xbf" * marks for marks in (2, 960, 973, *([87_000] * 10))]
    loop = asyncio.get_running_loop()
    waits: list[float] = []
    async with receiving(tmp_path, **privacy) as running:
        errors = await counted(running, "smspulse_ingest_requests_total", route="webhooks", code="500")
        sent = asyncio.gather(*(running.http.post(PATH, data=body) for body in hostile))
        while not waits or not sent.done():
            began = loop.time()
            response = await running.http.post(PATH, data=STATUS)
            assert response.status == 202
            waits.append(loop.time() - began)
        assert [response.status for response in await sent] == [202] * len(hostile)
        assert errors == await counted(running, "smspulse_ingest_requests_total", route="webhooks", code="500")
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
        before = await counted(running, "smspulse_ingest_faults_total")
        assert (await running.http.post(PATH, data=body)).status == 202
        assert await counted(running, "smspulse_ingest_faults_total") == before + 1
    (webhook,) = running.sink.kept
    if privacy == "keep":
        assert webhook.body == body
    else:
        with pytest.raises(UnreadablePayload, match="processing_failed"):
            parse_payload(webhook.body)
    assert "+4915712345" not in caplog.text
    assert len(caplog.text) < 500


async def test_a_field_that_is_nested_deeper_than_can_be_written_costs_itself_with_privacy(tmp_path: Path) -> None:
    deep = b"[" * 300 + b"]" * 300
    async with receiving(tmp_path, privacy="mask") as running:
        for field in (b"sim", b"sendto", b"senttime", b"unknown"):
            body = b'{"sms_id": 17, "status_id": 7, "channel_id": 1, "%s": %s}' % (field, deep)
            assert (await running.http.post(PATH, data=body)).status == 202
    assert [webhook.key for webhook in running.sink.kept] == [b"acme:17"] * 4
    assert all(parse_payload(webhook.body).sms_id == 17 for webhook in running.sink.kept)


async def test_no_answer_names_the_server_s_software(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        for path in (PATH, "/healthz", "/nothing"):
            for method in ("GET", "POST"):
                response = await running.http.request(method, path, data=STATUS)
                assert "Server" not in response.headers
                assert "aiohttp" not in await response.text()


async def test_the_access_log_never_holds_a_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with receiving(tmp_path) as running:
        with caplog.at_level(logging.DEBUG):
            await running.http.post(PATH, data=STATUS)
            for path in (f"/{TOKEN}", f"/webhooks/{TOKEN}", f"/webhooks/acme/{TOKEN}/", f"/{TOKEN}?{TOKEN}"):
                await running.http.post(path, data=STATUS)
            await running.http.get(f"/healthz?{TOKEN}")
    lines = [record.getMessage() for record in caplog.records if record.name == "ingest.access"]
    assert lines[0].startswith("POST /webhooks 202 ")
    assert len(lines) == 6
    assert not any(TOKEN in record.getMessage() for record in caplog.records if record.name.startswith("ingest"))


async def test_the_gateway_s_test_is_announced_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = next(path for path in EXAMPLES if path.stem == "unverified-event").read_bytes()
    async with receiving(tmp_path) as running:
        with caplog.at_level(logging.INFO, "ingest"):
            for _ in range(3):
                assert (await running.http.post(PATH, data=body)).status == 202
    assert [record.getMessage() for record in caplog.records] == [
        "a test webhook arrived from source acme: its URL and token are set up correctly"
    ]


def no_url(_: str) -> None:
    """Wait for no address."""


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        with pytest.raises(CannotListenError, match=f"port {running.port}: the port is taken") as caught:
            await serve_ingest(IngestSettings(port=running.port), KafkaSettings(), tmp_path, no_url, asyncio.Event())
    assert (caught.value.host, caught.value.port) == ("127.0.0.1", running.port)


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid"])
async def test_an_address_that_is_not_ours_is_named(tmp_path: Path, host: str) -> None:
    with pytest.raises(CannotListenError, match=host):
        await serve_ingest(IngestSettings(host=host, port=0), KafkaSettings(), tmp_path, no_url, asyncio.Event())


async def test_a_renewal_of_the_certificate_that_fails_is_logged_and_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    renewal, stop = FailingOnce(), asyncio.Event()
    monkeypatch.setattr("ingest.server.renew_certificate", renewal)
    monkeypatch.setattr(background_tasks, "_FIRST_PAUSE_S", 0)
    kafka = KafkaSettings(bootstrap="127.0.0.1:1")
    serving = asyncio.create_task(serve_ingest(IngestSettings(port=0), kafka, tmp_path, no_url, stop))
    try:
        async with asyncio.timeout(20):
            await renewal.started_again.wait()
    finally:
        stop.set()
        await serving
    expected = "the renewal of the certificate failed and starts again in 0 s: RuntimeError('an unforeseen error')"
    assert expected in caplog.messages


@pytest.mark.parametrize("task", ["_write_spool", "_forward_spool"])
async def test_a_task_of_the_sink_that_fails_ends_ingest_with_its_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    async def fail(_: StoreAndForward) -> None:
        msg = "an unforeseen error"
        raise RuntimeError(msg)

    monkeypatch.setattr(StoreAndForward, task, fail)
    serving = asyncio.create_task(
        serve_ingest(IngestSettings(port=0), KafkaSettings(bootstrap="127.0.0.1:1"), tmp_path, no_url, asyncio.Event())
    )
    await asyncio.wait({serving}, timeout=20)
    has_ended = serving.done()
    serving.cancel()
    (error,) = await asyncio.gather(serving, return_exceptions=True)
    assert has_ended, "it goes on without its sink"
    assert isinstance(error, ExceptionGroup)
    assert repr(error.exceptions) == "(RuntimeError('an unforeseen error'),)"
