"""Ingest under load, with Kafka or the spool as its sink, compared with a server that stores nothing.

wrk sends status reports over 64 connections, as fast as they are answered or at half of what ingest can do. A peer is
Benthos, on which Redpanda Connect is built, with a Kafka output of the same client. Everything shares the machine.

    python bench/webhooks.py [--quick]

Exits with 2 if something could not be set up or run.
"""

import argparse
import asyncio
import gc
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import uvloop
from aiohttp import web
from measure import OUR_KAFKA, PLAIN_KAFKA, Died, check, cpu_s, figure, kafka_node, our, running
from peers.environments import PeerMissingError, benthos_peer

from core.kafka_settings import KafkaSettings
from core.topics import RAW
from ingest.handlers import IngestHandler
from ingest.settings import IngestSettings
from ingest.sources import SourceRegistry, add_source, webhook_url
from smspulse.processes.children import find_free_port

SOURCE = "bench"
CONNECTIONS = 64
BARE, DURABLE, FSYNCED, SPOOL, PEER = (
    "the bare handler",
    "ingest, Kafka acknowledges",
    "ingest, Kafka fsyncs each batch",
    "ingest, spool",
    "Benthos, Kafka acknowledges",
)


class Server(NamedTuple):
    """A running server: the URL for webhooks, and its process."""

    url: str
    pid: int


class Load(NamedTuple):
    """Measurements of wrk: requests a second, 99th percentile in ms; and the server's CPU a request in µs."""

    rate: float
    p99_ms: float
    cpu_us: float


class Nowhere:
    """A sink that confirms each webhook at once and stores nothing."""

    problem = None

    def read_state(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    def read_gauges(self) -> dict[Any, float]:
        """Return nothing."""
        return {}

    async def store_webhook(self, webhook: object) -> None:
        """Do nothing."""


async def bare(port: int, data: Path) -> None:
    """Receive webhooks without storing them, until killed."""
    settings = IngestSettings()
    runner = web.ServerRunner(IngestHandler(settings, SourceRegistry(data), Nowhere()).build_server())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    await asyncio.Event().wait()


def load(server: Server, seconds: float, rate: float = 0) -> Load:
    """Send webhooks for some seconds; at a rate, or as fast as they are answered."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", str(Path(__file__).with_suffix(".lua"))]
    pause = CONNECTIONS / rate * 1000 if rate else 0
    before = cpu_s(server.pid)
    done = subprocess.run([*command, server.url, "--", f"{pause:.0f}"], capture_output=True, text=True, check=True)
    cpu = cpu_s(server.pid) - before
    line = next(line for line in done.stdout.splitlines() if line.startswith("measured "))
    requests, micros, p99, errors = map(int, line.split()[1:])
    if errors or not requests:
        msg = f"{errors} of {requests} webhooks to {server.url.partition('/webhooks')[0]} were not answered 2xx"
        raise Died(msg)
    return Load(requests / micros * 1e6, p99 / 1000, cpu / requests * 1e6)


@contextmanager
def server(
    name: str, command: list[str], url: str, folder: Path, env: dict[str, str] | None = None
) -> Iterator[Server]:
    """Run a server; yield it once it answers."""
    log = folder / f"{name}.log"
    with running(command, env or {}, log) as process:
        while True:
            check(process, log)
            try:
                urllib.request.urlopen(url, b'{"sms_id": 1, "status_id": 7}', timeout=5).close()  # noqa: S310 - loopback
                break
            except OSError:
                time.sleep(0.1)
        yield Server(url, process.pid)


def ours(name: str, data: Path, bootstrap: str, folder: Path) -> Any:
    """Return a context with ingest."""
    port = find_free_port()
    url = webhook_url(f"http://127.0.0.1:{port}", SOURCE, add_source(data, SOURCE))
    if name == BARE:
        command = [sys.executable, __file__, "--bare", str(port), "--data", str(data)]
    else:
        command = our("ingest", "--data", str(data), "--broker", bootstrap, "--port", str(port))
    return server(name, command, url, folder, {"SMSPULSE_INGEST_SPOOL_MAX_BYTES": str(1 << 34)})


def benthos(kafka: KafkaSettings, folder: Path) -> Any:
    """Return a context with the peer.

    Raises:
        PeerMissingError: It cannot be built here.
    """
    port = find_free_port()
    config = folder / "benthos.yaml"
    config.write_text(
        f"""
http: {{enabled: false}}
logger: {{level: ERROR}}
input: {{http_server: {{address: "127.0.0.1:{port}", path: /webhooks}}}}
output: {{kafka_acknowledged: {{seed: "{kafka.bootstrap}", topic: {RAW}}}}}
"""
    )
    return server(PEER, [benthos_peer(), "run", str(config)], f"http://127.0.0.1:{port}/webhooks", folder)


def measure(servers: dict[str, Server], rounds: int, seconds: float) -> dict[str, list[Load]]:
    """Load each server in turn, for several rounds after a warm-up round."""
    loads: dict[str, list[Load]] = {name: [] for name in servers}
    for number in range(-1, rounds):
        for name, each in servers.items():
            seen = load(each, seconds if number >= 0 else 2)
            if number >= 0:
                loads[name].append(seen)
    return loads


def run(*, quick: bool) -> int:
    """Run the benchmark and print the figures; return the exit code."""
    code = 0
    rounds, seconds = (1, 4.0) if quick else (5, 10.0)
    with kafka_node(PLAIN_KAFKA) as (kafka, folder), kafka_node(OUR_KAFKA) as (fsyncing, _), ExitStack() as stack:
        servers = {}
        for name, bootstrap in (
            (BARE, ""),
            (DURABLE, kafka.bootstrap),
            (FSYNCED, fsyncing.bootstrap),
            (SPOOL, f"127.0.0.1:{find_free_port()}"),
        ):
            data = folder / name.replace(", ", "-").replace(" ", "-")
            data.mkdir()
            servers[name] = stack.enter_context(ours(name, data, bootstrap, folder))
        try:
            servers[PEER] = stack.enter_context(benthos(kafka, folder))
        except (PeerMissingError, Died) as error:
            print(f"NOT MEASURED: {PEER}: {error}", flush=True)
            code = 2
        loads = measure(servers, rounds, seconds)
        half = statistics.median(each.rate for each in loads[DURABLE]) / 2
        paced = {name: [load(each, seconds, half) for _ in range(rounds)] for name, each in servers.items()}
    print(f"{'':32}{'requests/s':>12}{'p99 ms':>8}{'CPU µs':>8}{'p99 ms at':>14} {half:,.0f}/s")
    for name, seen in loads.items():
        rate, p99, cpu = (statistics.median(column) for column in zip(*seen, strict=True))
        at_half, p99_at_half, _ = (statistics.median(column) for column in zip(*paced[name], strict=True))
        print(f"{name:32}{rate:>12,.0f}{p99:>8.1f}{cpu:>8.0f}{p99_at_half:>14.1f} ({at_half:,.0f}/s)")

    def ratio(name: str) -> float:
        """Return the median over the rounds, each relative to the bare handler in the same round."""
        return statistics.median(one.rate / bare.rate for one, bare in zip(loads[name], loads[BARE], strict=True))

    figure("durable_vs_bare", ratio(DURABLE), ">= 0.6")
    figure("fsynced_vs_bare", ratio(FSYNCED))
    figure("spool_vs_bare", ratio(SPOOL), ">= 0.8")
    p99 = {name: statistics.median(each.p99_ms for each in paced[name]) for name in servers}
    figure("p99_at_half_vs_bare", p99[DURABLE] / p99[BARE], "<= 3")
    if PEER in servers:
        figure("durable_vs_benthos", ratio(DURABLE) / ratio(PEER))
    return code


def main() -> int:
    """Run the benchmark or the server that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="in about a minute")
    parser.add_argument("--bare", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        gc.freeze()  # as ingest does
        gc.set_threshold(10_000)
        uvloop.run(bare(options.bare, options.data))
    try:
        return run(quick=options.quick)
    except (Died, FileNotFoundError) as error:
        print(f"NOT MEASURED: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
