"""Hostile HTTP clients, and their effect on other clients of a server."""

import asyncio
import contextlib
import itertools
import os
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

ATTACKER: Final = "127.0.0.1"
BYSTANDER: Final = "127.0.0.2"
_BIG: Final = b"x" * 65_536
_LONG_HEADERS: Final = b"".join(b"h%d: %s\r\n" % (number, b"x" * 8_000) for number in range(60))

Attack = Callable[[bytes, bytes], Iterator[bytes | float]]
"""The pieces that a connection sends, given a path without and one with a token. A number is a pause in seconds."""


def oversized_headers(path: bytes, _: bytes) -> Iterator[bytes | float]:
    """Pipelined requests with 480 kB of headers each."""
    return itertools.repeat(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (path, _LONG_HEADERS))


def full_headers(path: bytes, _: bytes) -> Iterator[bytes | float]:
    """Pipelined requests with the maximum number of headers."""
    headers = b"".join(b"h%d: %s\r\n" % (number, b"x" * 500) for number in range(60))
    return itertools.repeat(b"GET %s HTTP/1.1\r\nHost: x\r\n%s\r\n" % (path, headers))


def small_requests(path: bytes, _: bytes) -> Iterator[bytes | float]:
    """Pipelined small requests."""
    return itertools.repeat(b"GET %s HTTP/1.1\r\nHost: x\r\n\r\n" % path * 1_000)


def metrics(_path: bytes, _: bytes) -> Iterator[bytes | float]:
    """Pipelined requests whose answers are expensive."""
    return itertools.repeat(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)


def endless_line(path: bytes, _: bytes) -> Iterator[bytes | float]:
    """A header without an end."""
    return itertools.chain([b"GET %s HTTP/1.1\r\nHost: x\r\nx: " % path], itertools.repeat(_BIG))


def endless_blank_lines(_path: bytes, _: bytes) -> Iterator[bytes | float]:
    """Empty lines without a request."""
    return itertools.repeat(b"\r\n" * 32_768)


def slow_headers(path: bytes, _: bytes) -> Iterator[bytes | float]:
    """30 kB of headers at once, then one byte every half second."""
    headers = b"".join(b"h%d: %s\r\n" % (number, b"x" * 7_500) for number in range(4))
    begin = b"GET %s HTTP/1.1\r\nHost: x\r\n%sx: " % (path, headers)
    return itertools.chain([begin], itertools.cycle([b"x", 0.5]))


def unwanted_bodies(path: bytes, _: bytes) -> Iterator[bytes | float]:
    """Pipelined unexpected bodies of 250 kB."""
    request = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 250000\r\n\r\n%s" % (path, bytes(250_000))
    return itertools.repeat(request)


def chunk_extensions(path: bytes, _: bytes) -> Iterator[bytes | float]:
    """A chunk extension without an end."""
    begin = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;" % path
    return itertools.chain([begin], itertools.repeat(_BIG))


def trailers(path: bytes, secret: bytes) -> Iterator[bytes | float]:
    """480 kB of trailers after a body, without an end."""
    begin = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" % (secret or path)
    return itertools.chain([begin, _LONG_HEADERS], itertools.repeat(0.5))


def upgrades(path: bytes, _: bytes) -> Iterator[bytes | float]:
    """Bytes after a request for another protocol."""
    begin = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n" % path
    return itertools.chain([begin], itertools.repeat(_BIG))


def no_http(_path: bytes, _: bytes) -> Iterator[bytes | float]:
    """Bytes that are not HTTP."""
    return itertools.repeat(b"\x16\x03\x01\0\xff nonsense " * 4_096)


def slow_bodies(path: bytes, secret: bytes) -> Iterator[bytes | float]:
    """A body of a sender with a token that lacks its last byte."""
    begin = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 260001\r\n\r\n%s" % (secret or path, bytes(260_000))
    return itertools.chain([begin], itertools.repeat(0.5))


def tiny_chunks(path: bytes, secret: bytes) -> Iterator[bytes | float]:
    """A body of a sender with a token, in chunks of one byte."""
    begin = b"POST %s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" % (secret or path)
    return itertools.chain([begin], itertools.repeat(b"1\r\nx\r\n" * 10_000))


def webhooks(path: bytes, secret: bytes) -> Iterator[bytes | float]:
    """Pipelined webhooks of a sender with a token."""
    body = b'{"sms_id": 1, "status_id": 7, "x": [%s1]}' % (b"[]," * 80_000)
    return itertools.repeat(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (secret or path, len(body), body)
    )


BY_ANYONE: Final[tuple[Attack, ...]] = (
    oversized_headers,
    full_headers,
    small_requests,
    metrics,
    endless_line,
    endless_blank_lines,
    slow_headers,
    unwanted_bodies,
    chunk_extensions,
    trailers,
    upgrades,
    no_http,
)
BY_SENDERS: Final[tuple[Attack, ...]] = (trailers, slow_bodies, tiny_chunks, webhooks)


class _Client(asyncio.Protocol):
    """A connection that sends until it is closed. Answers are dropped or left unread."""

    def __init__(self, *, reads: bool) -> None:
        self._reads = reads
        self._may_write = asyncio.Event()
        self._may_write.set()
        self.is_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        if not self._reads:
            self.transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_closed = True
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()

    async def send(self, pieces: Iterator[bytes | float]) -> None:
        for piece in pieces:
            if isinstance(piece, float):
                await asyncio.sleep(piece)
            else:
                self.transport.write(piece)
            await self._may_write.wait()
            if self.is_closed:
                return
            await asyncio.sleep(0)


async def _attack(port: int, attack: Attack, path: bytes, secret: bytes, *, reads: bool) -> None:
    """Send without end, on a new connection after each close."""
    loop = asyncio.get_running_loop()
    while True:
        # A server that refuses at once must not use all of this process's time.
        await asyncio.sleep(0.05)
        with contextlib.suppress(OSError):
            _, client = await loop.create_connection(
                lambda: _Client(reads=reads), "127.0.0.1", port, local_addr=(ATTACKER, 0)
            )
            try:
                await client.send(attack(path, secret))
            finally:
                client.transport.abort()


async def _attack_for(
    port: int, attacks: Sequence[Attack], connections: int, seconds: float, path: bytes, secret: bytes
) -> None:
    doing = zip(range(connections), itertools.cycle(attacks), strict=False)
    tasks = [
        asyncio.create_task(_attack(port, attack, path, secret, reads=number % 4 == 3)) for number, attack in doing
    ]
    await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()


@dataclass(frozen=True, slots=True)
class Measured:
    """Measurements during an attack.

    Args:
        rss_mb: Most memory that the server held, in MB.
        waits_s: How long requests of others took, each on a connection of its own.
        cpu_s: Processor time of the server meanwhile: what they wait for a server that has a processor for itself.
        failures: Requests of others that were not answered as they should be.
    """

    rss_mb: float
    waits_s: list[float]
    cpu_s: list[float]
    failures: list[str]

    def __str__(self) -> str:
        """Return the measurements as a line of text."""
        return (
            f"memory {self.rss_mb:.0f} MB; {len(self.waits_s)} requests of others waited {_summary(self.waits_s)} "
            f"(processor time of the server: {_summary(self.cpu_s)}), {len(self.failures)} failed"
        )


def _summary(seconds: list[float]) -> str:
    waits = sorted(seconds)
    p99 = waits[min(len(waits) - 1, int(len(waits) * 0.99))]
    return f"{statistics.median(waits) * 1e3:.0f} ms, p99 {p99 * 1e3:.0f} ms, longest {waits[-1] * 1e3:.0f} ms"


def cpu_s(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Return the memory of a process now."""
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1_000


def wait_until_served(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until a process listens on a port."""
    for _ in range(600):
        assert process.poll() is None, f"it has ended: {process.args}"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens on {port}")


async def ask(port: int, request: bytes, expected: bytes) -> tuple[float, str]:
    """Send a request from another address; return the time of its answer and its errors."""
    begun = time.monotonic()
    try:
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(BYSTANDER, 0))
            writer.write(request)
            answer = await reader.read()
            writer.close()
    except (OSError, TimeoutError) as error:
        return time.monotonic() - begun, repr(error)
    return time.monotonic() - begun, "" if expected in answer[:100] else repr(answer[:100])


async def attack(
    pid: int,
    port: int,
    attacks: Sequence[Attack],
    seconds: float,
    *,
    connections: int = 300,
    path: bytes = b"/healthz",
    secret: bytes = b"",
    bystander: tuple[bytes, bytes],
) -> Measured:
    """Attack a server from one address, and send requests from another one.

    Args:
        pid: The server's.
        port: Where it listens.
        attacks: Connections do them in turn.
        seconds: How long.
        connections: Of the attacker.
        path: What needs no token.
        secret: The path of a webhook with its token; empty if the attacker has none.
        bystander: A request of the other, with `Connection: close`, and what its answer has at its beginning.
    """
    names = ",".join(each.__name__ for each in attacks)
    arguments = (str(port), names, str(connections), str(seconds), path.decode(), secret.decode())
    attacking = await asyncio.create_subprocess_exec(sys.executable, __file__, *arguments)
    waits, cpu, failures, most = [], [], [], 0.0
    ended = asyncio.create_task(attacking.wait())
    while not ended.done():
        before = cpu_s(pid)
        took, problem = await ask(port, *bystander)
        waits.append(took)
        cpu.append(cpu_s(pid) - before)
        failures += [problem] if problem else []
        most = max(most, rss_mb(pid))
        await asyncio.sleep(0.01)
    assert ended.result() == 0
    return Measured(max(most, rss_mb(pid)), waits, cpu, failures)


if __name__ == "__main__":
    port, names, connections, seconds, path, secret = sys.argv[1:]
    chosen = [globals()[name] for name in names.split(",")]
    asyncio.run(_attack_for(int(port), chosen, int(connections), float(seconds), path.encode(), secret.encode()))
