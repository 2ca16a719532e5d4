"""Send malformed and unusual requests to ingest, and check every answer.

    make fuzz                                       1,000,000 requests, some six minutes
    make fuzz ARGS="--requests 10000 --seed 7"
    make fuzz ARGS="--mutation leak"                with an injected fault, which must be detected

Ingest runs in its own process, with low limits, redaction, and a sink that stores nothing and refuses one webhook in
fifty. The run checks:
    - Each answer has an expected status, is JSON, and quotes nothing of the request.
    - Webhooks of a valid sender are accepted during the whole run.
    - At the end, no webhook is in flight, no file is open, no line is logged, and the memory is as after the warm-up.

Exits with 0 if all of this holds, else with 1.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import uvloop
from aiohttp import web
from fuzz_cases import END, KNOWN, LIMIT, PATH, TOKEN, Case, Cases

from core.records import WebhookRecord
from ingest.errors import NotStoredError
from ingest.handlers import IngestHandler
from ingest.settings import IngestSettings
from ingest.sources import SourceRegistry

GROWTH_MB = 16
SENDERS = 48
_WARM_UP = 0.3
_ANSWER_S = 10.0
_OPEN_END_S = 0.05
_CLOSED = 0
_PATIENCE_S = 3.0


class Sink:
    """Counts webhooks and refuses one in fifty."""

    def __init__(self, mutation: str) -> None:
        self.problem = None
        self.count = self.refused = 0
        self._mutation, self._leak = mutation, []

    def read_state(self) -> dict[str, object]:
        return {}

    def read_gauges(self) -> dict[object, float]:
        return {}

    async def store_webhook(self, webhook: WebhookRecord) -> None:
        await asyncio.sleep(0)
        self.count += 1
        if self.count % 50 == 0:
            self.refused += 1
            why = "the sink is full"
            raise NotStoredError(why)
        if self._mutation == "leak":
            self._leak.append(bytes(20_000))
        if self._mutation == "fault" and self.count % 1000 == 999:
            raise RuntimeError(webhook.body)


async def serve(data: Path, mutation: str) -> None:
    """Receive webhooks until SIGTERM; print the port at the start, and the number of stored webhooks at the end."""
    logging.basicConfig(level=logging.WARNING)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    settings = IngestSettings(
        port=0,
        max_body_bytes=LIMIT,
        body_timeout_s=2,
        header_timeout_s=_PATIENCE_S,
        idle_timeout_s=_PATIENCE_S,
        max_connections=SENDERS + 8,
        rate_per_s=500,
        rate_burst=2000,
        rate_bytes_per_s=1_000_000_000,  # a body that is refused for its size does not reach the parser
        privacy="hmac",
        privacy_key="of this run alone",
        bodies="drop",
    )
    sink = Sink(mutation)
    receiver = IngestHandler(settings, SourceRegistry(data, f"acme={TOKEN},limited={TOKEN}"), sink)
    receiver._webhook_limiter = _OnlyLimited(receiver._webhook_limiter)
    runner = web.ServerRunner(receiver.build_server(), shutdown_timeout=1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
    await site.start()
    print(site.port, flush=True)
    await stop.wait()
    await receiver.wait_until_drained()
    await runner.cleanup()
    print(json.dumps({"kept": sink.count - sink.refused, "refused": sink.refused}), flush=True)


class _OnlyLimited:
    """Rate limits of one source only, so the answers to all others are predictable."""

    def __init__(self, rate: object) -> None:
        self._rate = rate

    def take_or_wait_s(self, source: str) -> float:
        return self._rate.take_or_wait_s(source) if source == "limited" else 0.0


class NotDueError(Exception):
    """An answer that is not expected."""


class ClosedError(NotDueError):
    """The connection ended before an answer."""


class Fuzz:
    """Sends requests and collects the answers."""

    def __init__(self, port: int, cases: Cases, requests: int) -> None:
        self._port, self._cases, self._left = port, cases, requests
        self.answers: Counter[tuple[str, int]] = Counter()
        self.sent: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, requests: int) -> None:
        """Send a number of requests from many concurrent senders."""
        self._left = requests
        async with asyncio.TaskGroup() as senders:
            for _ in range(SENDERS):
                senders.create_task(self._sender())
            senders.create_task(self._good_sender())

    async def _sender(self) -> None:
        while self._left > 0 and len(self.wrong) < 20:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port, limit=2**20)
            answered_at = time.monotonic()
            try:
                while self._left > 0:
                    self._left -= 1
                    case = self._cases.next()
                    self.sent[case.kind] += 1
                    try:
                        go_on = await self._one(case, reader, writer)
                    except (NotDueError, TimeoutError) as error:
                        if isinstance(error, ClosedError) and time.monotonic() - answered_at >= _PATIENCE_S:
                            break  # this sender was delayed for longer than the timeout of ingest
                        shown = b"".join(piece for piece in case.pieces if isinstance(piece, bytes))[:300]
                        self.wrong.append(f"{case.kind}: {error!r} after {shown!r}")
                        break
                    if not go_on:
                        break
                    answered_at = time.monotonic()
            finally:
                writer.transport.abort()

    async def _good_sender(self) -> None:
        """Send valid webhooks during the run. Each must be answered within the time limit."""
        body = b'{"sms_id":17,"status_id":7}'
        text = b"POST %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (
            PATH,
            len(body),
            body,
        )
        while self._left > 0 and not self.wrong:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(text)
            try:
                async with asyncio.timeout(_ANSWER_S):
                    status, _ = await self._answer(reader, b"POST")
            except (TimeoutError, NotDueError, ConnectionError) as error:
                self.wrong.append(f"a good sender: {error!r}")
                return
            finally:
                writer.close()
            self.answers["good", status] += 1
            if status not in {202, 503}:
                self.wrong.append(f"a good sender was answered {status}")
            await asyncio.sleep(0.01)

    async def _one(self, case: Case, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Send one request, check the answer, and return whether the connection stays open."""
        try:
            await self._send(case, writer)
            if not case.due:
                return False
            async with asyncio.timeout(_OPEN_END_S if case.open_end else _ANSWER_S):
                while True:
                    status, goes_on = await self._answer(reader, case.method)
                    self.answers[case.kind, status] += 1
                    if status not in case.due and not (case.ends and status == _CLOSED):
                        msg = f"answered {status}"
                        raise (NotDueError(msg) if status else ClosedError(msg))
                    if not (goes_on and case.open_end):
                        return goes_on and not case.ends
        except TimeoutError:
            if not case.open_end:
                raise
            return False
        # Ingest closed the connection. uvloop raises RuntimeError for a late half-close.
        except (ConnectionError, RuntimeError):
            if not case.ends:
                msg = "the connection was lost"
                raise ClosedError(msg) from None
            return False

    async def _send(self, case: Case, writer: asyncio.StreamWriter) -> None:
        for piece in case.pieces:
            if isinstance(piece, bytes):
                writer.write(piece)
                if case.ends and len(piece) < LIMIT:
                    await asyncio.wait_for(writer.drain(), _ANSWER_S)
            elif piece is END:
                writer.write_eof()
            else:
                await asyncio.sleep(piece)

    async def _answer(self, reader: asyncio.StreamReader, method: bytes) -> tuple[int, bool]:
        """Return the status of the next answer, and whether the connection stays open."""
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            if head.startswith(b"HTTP/1.1 100 "):
                head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head.decode("ascii").rstrip().split("\r\n")
            status = int(first.split()[1])
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            body = b"" if method == b"HEAD" else await reader.readexactly(int(headers["content-length"]))
        except asyncio.IncompleteReadError as error:
            if error.partial:
                msg = f"incomplete answer: {error.partial[:200]!r}"
                raise NotDueError(msg) from None
            return _CLOSED, False
        if status not in KNOWN:
            msg = f"status {status}"
            raise NotDueError(msg)
        is_json = headers.get("content-type") == "application/json"  # all but `/metrics`
        answer = json.loads(body) if body and is_json else {}
        if status == 202:
            right = list(answer) == ["ingest_id"]
        else:
            right = status == 200 or method == b"HEAD" or list(answer) == ["error"]
        retry = "retry-after" in headers or status not in {429, 503}
        loose = "server" in headers or any(word in head + body for word in (b"Traceback", b"aiohttp", TOKEN.encode()))
        if not right or not retry or loose:
            msg = f"the answer {head + body[:200]!r}"
            raise NotDueError(msg)
        return status, first.startswith("HTTP/1.1") and headers.get("connection") != "close"


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def open_files(pid: int) -> int:
    """Return how many files and connections a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


@contextlib.contextmanager
def ingest(folder: Path, mutation: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Run ingest; yield its process and port."""
    with (folder / "ingest.log").open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, "--serve", str(folder), "--mutation", mutation],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


async def settle(pid: int, files: int) -> int:
    """Wait until connections have ended; return the number of open files."""
    deadline = time.monotonic() + 10
    while (now := open_files(pid)) > files and time.monotonic() < deadline:  # noqa: ASYNC110 - another process
        await asyncio.sleep(0.05)
    return now


async def run(requests: int, seed: int, folder: Path, mutation: str) -> int:
    """Send the requests, print the answers, and return the exit code."""
    with ingest(folder, mutation) as (process, port):
        fuzz = Fuzz(port, Cases(random.Random(seed)), requests)  # noqa: S311 - repeatable on purpose
        files = open_files(process.pid)
        began = time.monotonic()
        await fuzz.run(int(requests * _WARM_UP))
        await settle(process.pid, files)
        before = memory_mb(process.pid)
        await fuzz.run(requests - int(requests * _WARM_UP))
        left_open = await settle(process.pid, files) - files
        growth = memory_mb(process.pid) - before
        took = time.monotonic() - began
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    kept = json.loads(output)["kept"] if process.returncode == 0 else -1
    for kind in fuzz.sent:
        statuses = {status: count for (each, status), count in sorted(fuzz.answers.items()) if each == kind}
        answers = ", ".join(f"{status or 'closed'} {count:,}" for status, count in statuses.items())
        print(f"{kind:12} {fuzz.sent[kind]:>9,} sent; answers: {answers or 'none read'}")
    stored = sum(count for (_, status), count in fuzz.answers.items() if status == 202)
    logged = (folder / "ingest.log").read_text()
    problems = [
        *fuzz.wrong,
        *([f"ingest ended with {process.returncode}"] if process.returncode else []),
        *([f"{stored:,} webhooks were answered 202 and {kept:,} kept"] if stored > kept else []),
        *([f"{left_open} connections are left open"] if left_open else []),
        *([f"the memory grew by {growth:.0f} MB"] if growth > GROWTH_MB else []),
        *([f"ingest logged: {logged[:2000]}"] if logged else []),
    ]
    total = fuzz.sent.total()
    print(f"{total:,} requests in {took:.0f} s; memory {before:.0f} MB, {growth:+.1f} MB at the end; {kept:,} kept")
    for problem in problems[:20]:
        print(f"WRONG: {problem}")
    print(f"{len(problems)} wrong")
    return 1 if problems or total < requests else 0


def main() -> int:
    """Run the fuzz and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutation", choices=["none", "leak", "fault"], default="none")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        uvloop.run(serve(options.serve, options.mutation))
        return 0
    with tempfile.TemporaryDirectory(prefix="smspulse-fuzz-") as folder:
        return uvloop.run(run(options.requests, options.seed, Path(folder), options.mutation))


if __name__ == "__main__":
    sys.exit(main())
