"""What no client can make an HTTP server of smspulse do, over real sockets."""

import asyncio
import itertools
import random
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import uvloop
from aiohttp import web
from http_attacks import BY_ANYONE, BY_SENDERS, attack, oversized_headers, rss_mb, wait_until_served
from served_ingest import PATH, STATUS, Running, receiving

from ingest import client_limits, http_connection
from ingest.client_limits import HttpLimits, SharedResult
from ingest.http_connection import HttpServer, error_response
from ingest.sources import add_source
from smspulse.processes.children import find_free_port

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LAST = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def post(body: bytes, *, chunk: int = 0) -> bytes:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\n" % PATH.encode()
    if not chunk:
        return head + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    pieces = [body[start : start + chunk] for start in range(0, len(body), chunk)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


async def closed(running: Running) -> None:
    """Wait until the server has no connection."""
    async with asyncio.timeout(60):
        while running.server.connections:  # noqa: ASYNC110 - of the server's connections there is no event
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([500] * 60, 200),
        ([8_000] * 4, 200),
        ([8_000] * 5, 431),
        ([600] * 60, 431),
        ([9_000], 400),  # one header has 8 KiB
    ],
)
async def test_the_headers_of_a_request_have_32_kb_together(tmp_path: Path, headers: list[int], status: int) -> None:
    lines = b"".join(b"h%d: %s\r\n" % (number, b"x" * size) for number, size in enumerate(headers))
    async with receiving(tmp_path) as running:
        # Behind another request, and alone.
        for before in (b"", HEALTH):
            request = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + lines + b"\r\n"
            answers = (await running.raw(before + request)).split(b"HTTP/1.")[1:]
            assert len(answers) == 1 + bool(before)
            assert answers[-1][2:].startswith(b"%d " % status)


@pytest.mark.parametrize(
    "endless", [b"x" * 50_000, b"\r\n" * 25_000, b"h: v\r\n" * 9_000], ids=["line", "blank lines", "headers"]
)
async def test_a_request_without_an_end_is_refused_before_50_kb_of_it_are_there(tmp_path: Path, endless: bytes) -> None:
    async with receiving(tmp_path, header_timeout_s=600) as running:
        answer = await running.raw(endless)
        assert answer.startswith((b"HTTP/1.0 400 ", b"HTTP/1.0 431 "))


@pytest.mark.parametrize(
    "behind",
    [b"1;" + b"x" * 600_000, b"1\r\nx\r\n0\r\n" + b"".join(b"h%d: %s\r\n" % (n, b"x" * 8_000) for n in range(60))],
    ids=["chunk extension", "trailers"],
)
async def test_what_a_body_has_around_it_is_bounded_like_headers(tmp_path: Path, behind: bytes) -> None:
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % PATH.encode()
    async with receiving(tmp_path, body_timeout_s=600, header_timeout_s=600) as running:
        assert await running.raw(head + behind) == b""
        await closed(running)


async def test_no_request_is_parsed_while_the_one_before_is_unanswered(tmp_path: Path) -> None:
    async with receiving(tmp_path) as running:
        running.sink.gate.clear()
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(post(STATUS) + 1_000 * HEALTH)
        await running.sink.entered.wait()
        (connection,) = running.server.connections
        for _ in range(20):  # rounds of the event loop, in which the rest comes
            writer.write(100 * HEALTH)
            await asyncio.sleep(0)
        assert connection._request_count == 1
        assert not connection._messages
        assert len(connection._unparsed) < 1 << 18
        running.sink.gate.set()
        writer.write(LAST)
        async with asyncio.timeout(60):
            assert (await reader.read()).count(b"HTTP/1.1 20") == 1 + 1_000 + 20 * 100 + 1
        writer.close()


@pytest.mark.parametrize("seed", range(5))
async def test_pipelined_requests_are_answered_in_order_however_they_are_cut(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311 - no secret
    requests, bodies, codes = [], [], []
    for _ in range(60):
        body = b'{"sms_id": %d, "status_id": 7}' % len(bodies) + b" " * chance.choice([0, 10, 5_000, 200_000])
        wrong = post(body).replace(PATH.encode(), b"/webhooks/acme/wrong")
        request, code, is_kept = chance.choice(
            [
                (HEALTH, b"200", False),
                (post(body), b"202", True),
                (post(body, chunk=chance.choice([7, 3_000])), b"202", True),
                (wrong, b"401", False),
            ]
        )
        requests.append(request)
        codes.append(code)
        bodies += [body] * is_kept
    sent = b"".join(requests) + LAST
    async with receiving(tmp_path) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        answers = asyncio.create_task(reader.read())
        start = 0
        while start < len(sent):
            size = chance.choice([1, 17, 2_048, 70_000, 400_000])
            writer.write(sent[start : start + size])
            start += size
            await asyncio.sleep(0)
        async with asyncio.timeout(120):
            answered = await answers
        writer.close()
    assert [part[:3] for part in answered.split(b"HTTP/1.1 ")[1:]] == [*codes, b"200"]
    assert [webhook.body for webhook in running.sink.kept] == bodies


@pytest.mark.parametrize("chunk", [0, 7, 3_000])
@pytest.mark.parametrize("size", [30, 5_000, 200_000])
async def test_a_request_behind_the_rest_of_an_answered_one_s_body_is_answered(
    tmp_path: Path, size: int, chunk: int
) -> None:
    body = STATUS + b" " * (size - len(STATUS))
    wrong = post(body, chunk=chunk).replace(PATH.encode(), b"/webhooks/acme/wrong")
    head = wrong.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    async with receiving(tmp_path) as running:
        for begun in (len(head), len(head) + 1, len(wrong) - 1):  # bytes of a request before its answer
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            rest = b""
            async with asyncio.timeout(60):
                for _ in range(3):
                    writer.write(rest + wrong[:begun])
                    rest = wrong[begun:]
                    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 401 ")
                    await reader.readuntil(b"}")
                writer.write(rest + LAST)
                assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            writer.close()


async def test_a_client_that_takes_no_answer_is_reset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "_STUCK_S", 0.2)
    async with receiving(tmp_path, header_timeout_s=0.2, idle_timeout_s=600) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            client.setblocking(False)
            request = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 1_000
            async with asyncio.timeout(60):
                with suppress(ConnectionError):
                    while True:
                        await asyncio.get_running_loop().sock_sendall(client, request)
        await closed(running)


async def test_the_longest_idle_connection_gives_way_to_a_new_one(tmp_path: Path) -> None:
    async with receiving(tmp_path, max_connections=2) as running:
        held = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(HEALTH)
            async with asyncio.timeout(60):
                assert b'{"alive":true}' in await reader.readuntil(b"}")
            held.append((reader, writer))
        for number, (reader, writer) in enumerate(held):
            writer.write(LAST)
            with_answer = number >= 2
            async with asyncio.timeout(60):
                try:
                    assert (b" 200 " in await reader.read()) == with_answer
                except ConnectionError:
                    assert not with_answer
            writer.close()


async def test_all_connections_together_are_limited_also_those_of_a_proxy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving(tmp_path, max_connections_total=3, trusted_proxies="127.0.0.1") as running:
        held = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(3)]
        assert await running.raw(HEALTH) == b""
        assert "SMSPULSE_INGEST_TRUSTED_PROXIES" in caplog.text
        for _, writer in held:
            writer.close()


def test_connections_leave_half_of_the_open_files_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (20, 20))
    counted = client_limits.OpenConnections(HttpLimits(per_address=100, total=1_000))

    class Busy:
        def idle_since(self) -> float | None:
            return None

        def force_close(self) -> None:
            pytest.fail("it is not idle")

    for number in range(10):
        counted.add_connection(Busy(), f"192.0.2.{number}")
    with pytest.raises(client_limits.TooManyConnectionsError, match="there are 10 connections"):
        counted.add_connection(Busy(), "192.0.2.99")


@asynccontextmanager
async def serving_tls(tmp_path: Path, http_limits: HttpLimits) -> AsyncIterator[tuple[int, ssl.SSLContext]]:
    authority = trustme.CA()
    context, trusting = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(trusting)

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        return error_response(200, str(len(await request.read())))

    runner = web.ServerRunner(HttpServer(handle, http_limits, "test", tls=context), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield site.port, trusting
    await runner.cleanup()


async def test_https_requests_arrive_whole(tmp_path: Path) -> None:
    async with (
        serving_tls(tmp_path, HttpLimits()) as (port, trusting),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as http,
    ):
        for size in (0, 10, 1_000_000):
            async with http.post(f"https://127.0.0.1:{port}/", data=bytes(size)) as response:
                assert await response.json() == {"error": str(size)}


def shake_hands(client: socket.socket, tls: ssl.SSLObject, received: ssl.MemoryBIO, sent: ssl.MemoryBIO) -> None:
    """Go on with a handshake whose first message is on its way."""
    client.settimeout(60)
    while True:
        data = client.recv(65_536)
        assert data, "the server has closed the connection"
        received.write(data)
        with suppress(ssl.SSLWantReadError):
            tls.do_handshake()
            client.sendall(sent.read())
            return
        client.sendall(sent.read())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_handshake_that_is_there_when_its_connection_is_accepted_is_answered(run: Any, tmp_path: Path) -> None:
    async def connect() -> None:
        async with serving_tls(tmp_path, HttpLimits()) as (port, trusting):
            received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = trusting.wrap_bio(received, sent, server_hostname="127.0.0.1")
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            # The server cannot accept the connection in between: its event loop stands still.
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(sent.read())
                await asyncio.to_thread(shake_hands, client, tls, received, sent)

    run(connect())


async def test_a_tls_handshake_has_a_limit_of_time(tmp_path: Path) -> None:
    async with serving_tls(tmp_path, HttpLimits(header_timeout_s=0.5)) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(40):  # asyncio's own limit is a minute
            with suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()


async def test_a_connection_counts_during_its_tls_handshake(tmp_path: Path) -> None:
    async with serving_tls(tmp_path, HttpLimits(header_timeout_s=600, per_address=2)) as (port, trusting):
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        refused, _ = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(60):
            with suppress(ConnectionError):
                assert await refused.read() == b""
        assert not any(reader.at_eof() for reader, _ in silent)
        for _, writer in silent:
            writer.close()
        async with asyncio.timeout(60):
            while True:
                with suppress(ConnectionError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
                    writer.write(LAST)
                    assert b" 200 " in await reader.read()
                    writer.close()
                    break


async def test_a_connection_whose_tls_handshake_fails_inside_counts_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def start_tls(*_: object, **__: object) -> None:
        raise ValueError

    async with serving_tls(tmp_path, HttpLimits(header_timeout_s=600, per_address=1)) as (port, _):
        monkeypatch.setattr(asyncio.get_running_loop(), "start_tls", start_tls)
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(60):
                with suppress(ConnectionError):
                    assert await reader.read() == b""
            writer.close()
    assert [record.getMessage().partition(" in ")[0] for record in caplog.records] == [
        "a TLS handshake failed with an internal error: ValueError"
    ] * 2


async def test_what_many_ask_for_is_computed_for_all_of_them_and_never_before_they_ask() -> None:
    computed = itertools.count()
    shared = SharedResult(lambda: next(computed))
    assert await shared.get() == 0
    assert await asyncio.gather(*(shared.get() for _ in range(1_000))) == [1] * 1_000
    one = asyncio.create_task(shared.get())
    two = asyncio.create_task(shared.get())
    await asyncio.sleep(0)
    one.cancel()
    assert await two == 2
    assert await shared.get() == 3


@contextmanager
def ingest_process(data: Path) -> Iterator[tuple[int, int, Path]]:
    """Run ingest without a Kafka: webhooks go to its spool. Give its process, port and log."""
    port, log = find_free_port(), data / "log"
    command = [sys.executable, "-m", "smspulse", "ingest", "--data", str(data), "--broker", "127.0.0.1:1"]
    with log.open("wb") as output:
        process = subprocess.Popen([*command, "--port", str(port)], stderr=output)
    try:
        wait_until_served(process, port)
        yield process.pid, port, log
    finally:
        process.terminate()
        process.wait()


async def test_an_attack_from_one_address_costs_ingest_little_memory_and_others_no_answer(tmp_path: Path) -> None:
    secret, other = (f"/webhooks/{source}/{add_source(tmp_path, source)}".encode() for source in ("acme", "other"))
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s"
    with ingest_process(tmp_path) as (pid, port, log):
        before = rss_mb(pid)
        for attacks, token in (((oversized_headers,), b""), (BY_ANYONE, b""), (BY_ANYONE + BY_SENDERS, secret)):
            bystander = (request % (other, len(STATUS), STATUS), b" 202 ")
            measured = await attack(pid, port, attacks, 2, secret=token, bystander=bystander)
            print(f"{len(attacks)} attacks: {before:.0f} MB before; {measured}; {log.stat().st_size} bytes of log")  # noqa: T201
            assert measured.rss_mb < before + 150
            assert measured.failures == []
        assert log.stat().st_size < 100_000
