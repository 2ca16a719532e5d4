"""Limits of ingest for untrusted clients, over real sockets."""

import asyncio
import gzip
import json
import logging
import ssl
from pathlib import Path

import aiohttp
import pytest
import trustme
from served_ingest import PATH, STATUS, error_of, receiving

from core.errors import SettingError
from core.kafka_settings import KafkaSettings
from ingest.listening import load_tls_context, renew_certificate
from ingest.server import serve_ingest
from ingest.settings import IngestSettings
from ingest.sources import add_source, webhook_url

NUMBER = "+4917612345678"


async def test_an_address_that_is_not_allowed_is_refused_with_any_token(tmp_path: Path) -> None:
    async with receiving(tmp_path, allow="192.0.2.0/24") as running:
        for path in (PATH, "/webhooks/acme/wrong"):
            response = await running.http.post(path, data=STATUS, headers={"X-Forwarded-For": "192.0.2.1"})
            assert response.status == 403
            await error_of(response)
        assert (await running.http.get("/healthz")).status == 200
    assert running.sink.kept == []


async def test_a_trusted_proxy_names_the_sender(tmp_path: Path) -> None:
    settings = {"allow": "192.0.2.0/24", "trusted_proxies": "127.0.0.0/8, ::1/128", "store_remote": True}
    async with receiving(tmp_path, **settings) as running:
        for forwarded, status in (
            ("6.6.6.6, 192.0.2.1", 202),
            ("192.0.2.1, 6.6.6.6", 403),
            ("unknown", 403),
            ("", 403),
        ):
            response = await running.http.post(PATH, data=STATUS, headers={"X-Forwarded-For": forwarded})
            assert response.status == status, forwarded
    assert [dict(webhook.headers)["remote"] for webhook in running.sink.kept] == [b"192.0.2.1"]


async def test_a_source_over_its_rate_is_answered_with_retry_after_and_untrusted_clients_use_none_of_it(
    tmp_path: Path,
) -> None:
    async with receiving(tmp_path, rate_per_s=0.25, rate_burst=2) as running:
        for _ in range(5):
            assert (await running.http.post("/webhooks/acme/wrong", data=STATUS)).status == 401
        answers = [await running.http.post(PATH, data=STATUS) for _ in range(3)]
        assert [answer.status for answer in answers] == [202, 202, 429]
        assert 1 <= int(answers[2].headers["Retry-After"]) <= 4
        assert "send it again" in await error_of(answers[2])
    assert len(running.sink.kept) == 2


async def test_a_source_over_its_bytes_is_answered_with_retry_after(tmp_path: Path) -> None:
    async with receiving(tmp_path, rate_bytes_per_s=1, rate_burst_bytes=600_000) as running:
        answers = [await running.http.post(PATH, data=bytes(250_000)) for _ in range(5)]
        assert [answer.status for answer in answers] == [202, 202, 202, 429, 429]
        assert "too many bytes a second" in await error_of(answers[3])
        assert int(answers[3].headers["Retry-After"]) > 100_000
    assert len(running.sink.kept) == 3


async def test_a_compressed_body_counts_with_its_decoded_size(tmp_path: Path) -> None:
    body = gzip.compress(b'{"x":"' + b"x" * 200_000 + b'"}')
    async with receiving(tmp_path, rate_bytes_per_s=10, rate_burst_bytes=100_000) as running:
        answers = [await running.http.post(PATH, data=body, headers={"Content-Encoding": "gzip"}) for _ in range(2)]
        assert [answer.status for answer in answers] == [202, 429]
        assert int(answers[1].headers["Retry-After"]) > 9_000


async def test_headers_of_a_sender_are_stored_truncated(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        headers = {"Content-Type": "text/plain; charset=latin-1; x=" + "y" * 8_000}
        assert (await running.http.post(PATH, data=STATUS, headers=headers)).status == 202
    (webhook,) = running.sink.kept
    assert dict(webhook.headers)["content_type"] == headers["Content-Type"][:255].encode()


async def test_an_address_has_a_limit_of_connections_and_closed_ones_do_not_count(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_connections=2) as running:
        held = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(2)]
        for reader, writer in held:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            writer.write(b"POST ")
        async with asyncio.timeout(60):
            while any(each.idle_since() for each in running.server.connections):  # noqa: ASYNC110 - no event is available
                await asyncio.sleep(0)
        assert await running.raw(b"GET /healthz HTTP/1.0\r\n\r\n") == b""  # closed without an answer
        for _, writer in held:
            writer.close()
            await writer.wait_closed()

        async def served() -> bool:
            return (await running.raw(b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200 ")

        async with asyncio.timeout(60):
            while not await served():
                pass
        for _ in range(5):
            assert await served()


async def test_the_connections_of_a_trusted_proxy_are_not_counted(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_connections=1, trusted_proxies="127.0.0.1") as running:
        held = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(5)]
        assert (await running.raw(b"GET /healthz HTTP/1.0\r\n\r\n")).startswith(b"HTTP/1.0 200 ")
        for _, writer in held:
            writer.close()


@pytest.mark.parametrize("begun", [b"", b"P", b"POST / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_a_connection_with_incomplete_headers_is_closed(tmp_path: Path, begun: bytes) -> None:
    async with receiving(tmp_path, header_timeout_s=0.1, idle_timeout_s=30) as running:
        assert await running.raw(begun) == b""


async def test_a_later_request_has_until_the_idle_time(tmp_path: Path) -> None:
    async with receiving(tmp_path, header_timeout_s=0.05, idle_timeout_s=0.3) as running:
        answer = await running.raw(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\nGET /healthz HT")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1") == 1


async def test_too_many_headers_are_no_request(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        head = b"GET /healthz HTTP/1.0\r\n%s\r\n"
        assert (await running.raw(head % (b"a: b\r\n" * 60))).startswith(b"HTTP/1.0 200 ")
        assert b" 400 " in (await running.raw(head % (b"a: b\r\n" * 65))).split(b"\r\n")[0]


async def test_redacted_data_is_in_neither_record_nor_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = {"privacy": "hmac", "privacy_key": "sixteen signs or more", "bodies": "drop"}
    bodies = [
        {"sms_id": 17, "status_id": 7, "sendto": NUMBER},
        {"sms_id": 18, "type": "text", "address": NUMBER, "body": f"call {NUMBER}"},
        {"event": NUMBER},
        NUMBER,
    ]
    with caplog.at_level(logging.DEBUG):
        async with receiving(tmp_path, **settings) as running:
            for body in bodies:
                assert (await running.http.post(PATH, data=json.dumps(body))).status == 202
    assert [webhook.key for webhook in running.sink.kept] == [b"acme:17", b"acme:18", None, None]
    assert NUMBER[1:] not in str(running.sink.kept)
    assert NUMBER[1:] not in caplog.text
    assert "a test webhook arrived" in caplog.text


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path, ssl.SSLContext]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.private_key_pem.write_to_path(key)
    for number, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(cert, append=number > 0)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return cert, key, trusting


async def test_https_is_answered_with_the_certificate_and_plain_http_is_not(
    tmp_path: Path, certificate: tuple[Path, Path, ssl.SSLContext], caplog: pytest.LogCaptureFixture
) -> None:
    cert, key, trusting = certificate
    url = webhook_url("", "acme", add_source(tmp_path, "acme"))
    begun: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()
    settings = IngestSettings(port=0, tls_cert=cert, tls_key=key)
    serving = asyncio.create_task(
        serve_ingest(settings, KafkaSettings(bootstrap="127.0.0.1:1"), tmp_path, begun.set_result, stop)
    )
    base = await begun
    assert base.startswith("https://")
    async with aiohttp.ClientSession(base, connector=aiohttp.TCPConnector(ssl=trusting)) as http:
        assert (await http.get("/healthz")).status == 200
        assert (await http.post(url, data=STATUS)).status == 202  # in the spool
    reader, writer = await asyncio.open_connection("127.0.0.1", int(base.rpartition(":")[2]))
    writer.write(b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n" % url.encode())
    async with asyncio.timeout(60):
        assert b"HTTP" not in await reader.read()
    writer.close()
    stop.set()
    await serving
    assert url not in caplog.text
    assert "Traceback" not in caplog.text


async def test_a_renewed_certificate_is_used_and_a_broken_one_is_not(
    certificate: tuple[Path, Path, ssl.SSLContext], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    cert, key, _ = certificate
    settings = IngestSettings(tls_cert=cert, tls_key=key, tls_renewal_s=0.01)
    context = load_tls_context(settings)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    renewing = asyncio.create_task(renew_certificate(context, settings))

    async def wait_for_line(text: str) -> None:
        async with asyncio.timeout(60):
            while text not in caplog.text:  # noqa: ASYNC110 - a log line is no event
                await asyncio.sleep(0.01)

    before = await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port))
    renewed = trustme.CA().issue_cert("127.0.0.1")
    renewed.cert_chain_pems[0].write_to_path(cert)  # its key does not exist yet
    await wait_for_line("the former one is used until it can be")
    assert await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port)) == before
    renewed.private_key_pem.write_to_path(key)
    await wait_for_line("is used from now on")
    assert await asyncio.to_thread(ssl.get_server_certificate, ("127.0.0.1", port)) != before
    renewing.cancel()
    server.close()


def test_a_certificate_that_cannot_be_used_is_named(
    tmp_path: Path, certificate: tuple[Path, Path, ssl.SSLContext]
) -> None:
    cert, key, _ = certificate
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / "key.pem"
    trustme.CA().issue_cert("127.0.0.1").private_key_pem.write_to_path(other)
    assert load_tls_context(IngestSettings()) is None
    for settings in ({"tls_cert": cert}, {"tls_cert": cert, "tls_key": other}, {"tls_cert": tmp_path / "none.pem"}):
        with pytest.raises(SettingError, match=r"\.pem.* cannot be used: .*SMSPULSE_INGEST_TLS_CERT"):
            load_tls_context(IngestSettings.model_validate(settings))
    assert load_tls_context(IngestSettings(tls_cert=cert, tls_key=key)) is not None


async def test_the_description_is_served(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        assert "/webhooks/{source}/{token}" in (await (await running.http.get("/openapi.json")).json())["paths"]
        assert (await running.http.post("/openapi.json")).status == 405


@pytest.mark.parametrize(
    "settings",
    [
        {"privacy": "hmac"},
        {"privacy": "hmac", "privacy_key": "short"},
        {"allow": "x"},
        {"trusted_proxies": "192.0.2.1/24"},
    ],
)
def test_invalid_settings_are_refused(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"privacy_key|allow|trusted_proxies"):
        IngestSettings.model_validate(settings)
