"""The HTTP side of ingest over real sockets: paths, tokens, limits, metrics, errors and its log."""

import asyncio
import json
import logging
from pathlib import Path

import aiohttp
import pytest
from failing_once import FailingOnce
from prometheus_client.parser import text_string_to_metric_families
from pydantic import ValidationError
from served_ingest import EXAMPLES, PATH, STATUS, TOKEN, counter_value, error_of, receiving

from core import background_tasks
from core.kafka_settings import KafkaSettings
from core.records import WebhookRecord
from ingest.errors import CannotListenError
from ingest.server import serve_ingest
from ingest.settings import IngestSettings
from ingest.sink import StoreAndForward
from smspulse.processes.log_setup import LogBudget


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


async def test_the_address_of_the_sender_is_stored_only_with_the_setting(tmp_path: Path) -> None:
    async with receiving(tmp_path, store_remote=True) as running:
        await running.http.post(PATH, data=STATUS)
    assert dict(running.sink.kept[0].headers)["remote"] == b"127.0.0.1"


async def test_basic_auth_accepts_any_user(tmp_path: Path) -> None:
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


async def test_wrong_paths_and_wrong_methods_have_different_answers(tmp_path: Path) -> None:
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


async def test_a_large_request_without_a_token_is_refused_by_its_size_first(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_body_bytes=1000) as running:
        assert (await running.http.post("/webhooks/acme/wrong", data=bytes(1001))).status == 413


async def test_a_sender_that_expects_100_continue_receives_it(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        response = await running.http.post(PATH, data=STATUS, expect100=True)
        assert response.status == 202


async def test_too_many_concurrent_webhooks_are_answered_with_retry_after(tmp_path: Path) -> None:
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


async def test_a_problem_of_the_sink_is_answered_503_and_is_in_readyz(tmp_path: Path) -> None:
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


async def test_metrics_count_requests_and_have_no_secret(tmp_path: Path) -> None:
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


async def test_draining_waits_for_requests_in_flight_and_closes_connections(tmp_path: Path) -> None:
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
async def test_a_request_that_is_not_http_is_answered_in_json_and_not_logged(
    tmp_path: Path, request_: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(tmp_path) as running:
        answer = await running.raw(request_)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith((b"HTTP/1.0 400 ", b"HTTP/1.1 400 "))
    assert json.loads(body) == {"error": "the request is not valid HTTP"}
    assert b"Server" not in head
    assert caplog.text == ""


async def test_an_unforeseen_error_is_counted_and_logged_in_one_short_line_and_not_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    counter = {"name": "smspulse_ingest_requests_total", "route": "webhooks", "code": "500"}

    async def fail(webhook: WebhookRecord) -> None:
        raise RuntimeError(webhook.body)

    async with receiving(tmp_path) as running:
        before = await counter_value(running, **counter)
        running.sink.store_webhook = fail  # type: ignore[method-assign]
        response = await running.http.post(PATH, data=STATUS + b" " * 200_000)
        assert response.status == 500
        assert response.headers["Connection"] == "close"
        assert "log" in await error_of(response)
        assert await counter_value(running, **counter) == before + 1
    assert "RuntimeError in test_ingest_server.py" in caplog.text
    assert len(caplog.text) < 500
    assert TOKEN not in caplog.text
    assert "sms_id" not in caplog.text


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
    caplog.handler.addFilter(budget := LogBudget(caplog.handler))
    try:
        async with receiving(tmp_path) as running:
            with caplog.at_level(logging.INFO, "ingest"):
                for _ in range(3):
                    assert (await running.http.post(PATH, data=body)).status == 202
    finally:
        caplog.handler.removeFilter(budget)
    line = "a test webhook arrived from source acme: its URL and token are set up correctly"
    assert [record.getMessage() for record in caplog.records] == [line]
    budget.write_suppressed_counts()
    assert caplog.messages[1:] == [f"{line} (2 lines like this were left out in an hour)"]


def no_url(_: str) -> None:
    """Ignore the address."""


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        taken = f"on 127.0.0.1, port {running.port}: the port is taken"
        with pytest.raises(CannotListenError, match=taken):
            await serve_ingest(IngestSettings(port=running.port), KafkaSettings(), tmp_path, no_url, asyncio.Event())


@pytest.mark.parametrize("host", ["203.0.113.1", "no-such-host.invalid"])
async def test_an_address_of_another_machine_is_named(tmp_path: Path, host: str) -> None:
    with pytest.raises(CannotListenError, match=host):
        await serve_ingest(IngestSettings(host=host, port=0), KafkaSettings(), tmp_path, no_url, asyncio.Event())


async def test_a_failed_renewal_of_the_certificate_is_logged_and_repeated(
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
