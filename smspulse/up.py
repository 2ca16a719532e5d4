"""`smspulse up`: the whole pipeline on one machine, and with `--demo` simulated traffic and its reconciliation."""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from expectations.settings import CheckSettings
from gateway.errors import SmspulseError
from gateway.kafka import KafkaSettings
from smspulse.broker_file import read_broker_file
from smspulse.endpoints import metrics_port
from smspulse.logs import show_line
from smspulse.processes import free_port, port_is_free
from smspulse.simulator.behaviour import DEMO_BEHAVIOUR, DEMO_LONGEST_DELAY_S, DEMO_RATE, DEMO_TIME_SCALE
from smspulse.supervisor import Child, Supervisor
from smspulse.upkeep import UpkeepSettings, check_regularly, keep_up

_log = logging.getLogger(__name__)

DEMO_SOURCE: Final = "demo"
OWN_SOURCE: Final = "mine"
_DEMO_GRACE_S: Final = 13.0
_DEMO_LANDING_S: Final = 5.0
_REFRESH_S: Final = 2.0
_SETTLE_S: Final = 45.0
_FETCH_S: Final = 600.0  # Maven on a slow line, once


class UpError(SmspulseError):
    """The pipeline could not be started, or did not hold."""


@dataclass(frozen=True, slots=True)
class UpOptions:
    """What `smspulse up` was asked for.

    Args:
        data: The data folder.
        broker: `auto`, `kafka`, `memory` or `HOST:PORT`.
        port: Ingest's.
        workers: Stream workers, each a process with a state folder and a static name of its own.
        demo: Feed simulated traffic.
        seconds: End after so many; None goes on until a signal.
    """

    data: Path
    broker: str
    port: int
    workers: int
    demo: bool
    seconds: float | None


async def up(options: UpOptions, console: Console) -> int:
    """Run the pipeline until SIGINT, SIGTERM or its time; return the exit code.

    Raises:
        SmspulseError: It could not be started.
    """
    every_s = CheckSettings().every_s
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    supervisor = Supervisor(lambda name, level, text: show_line(console, name, level, text))
    starting = asyncio.create_task(_start(options, supervisor, console))
    stopping = asyncio.create_task(stop.wait())
    watching = asyncio.create_task(_watch_broker(options.data, starting, stop))
    checking = asyncio.create_task(check_regularly(options.data, options.broker, every_s))
    keeping = asyncio.create_task(_keep_up(options.data, UpkeepSettings().minutes, starting, supervisor))
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return 0
        url = starting.result()
        code = 0
        if options.demo:
            code = await _demo(options, console, url, stop)
        else:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), options.seconds)
        if watching.done():
            watching.result()
        return code
    finally:
        tasks = (starting, stopping, watching, keeping, checking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        console.print("stopping …", style="dim")
        await supervisor.stop()


async def _keep_up(data: Path, minutes: float, starting: asyncio.Task[str], supervisor: Supervisor) -> None:
    await asyncio.wait([starting])
    await keep_up(
        minutes,
        lambda command: supervisor.run(Child(command[0], (*command, "--data", str(data)), 5)),
        asyncio.sleep,
    )


async def _watch_broker(data: Path, starting: asyncio.Task[str], stop: asyncio.Event) -> None:
    """End everything if the embedded broker comes back as another one: what the others hold would not fit to it."""
    await asyncio.wait([starting])
    first = read_broker_file(data)
    while first is not None:
        await asyncio.sleep(1)
        found = read_broker_file(data)
        if found is not None and found.bootstrap != first.bootstrap:
            stop.set()
            msg = f"the broker came back at {found.bootstrap}, not at {first.bootstrap}; all was stopped, start again"
            raise UpError(msg)


async def _start(options: UpOptions, supervisor: Supervisor, console: Console) -> str:
    """Start the pipeline; return ingest's address."""
    from smspulse.page.server import PageSettings  # noqa: PLC0415 - heavy
    from smspulse.topics import ensure_topics  # noqa: PLC0415 - heavy

    began = time.monotonic()
    data = options.data
    if not port_is_free(options.port):
        msg = f"port {options.port} is taken: stop what listens there, or choose another with --port"
        raise UpError(msg)
    shutil.rmtree(data / "run", ignore_errors=True)  # of processes that there may be no more
    common: tuple[str, ...] = ("--data", str(data))
    if ":" not in options.broker:
        broker = Child("broker", ("broker", *common, "--mode", options.broker), 4, _FETCH_S)
        await supervisor.start(broker)
        await supervisor.wait_ready(broker)
        found = read_broker_file(data)
        if found is None:
            msg = f"the broker said that it is ready, but {data / 'broker.json'} names none; see its lines above"
            raise UpError(msg)
        if found.kind == "memory":
            _set_aside(data)
        # Started again, it must be where the others look for it.
        broker.environment["SMSPULSE_BROKER_PORT"] = found.bootstrap.rpartition(":")[2]
        if found.kind == "kafka":
            common = (*common, "--broker", found.bootstrap)  # a child that starts while it is away waits for it
    else:
        common = (*common, "--broker", options.broker)
    kafka = kafka_settings(data, options.broker)
    if kafka.in_memory and options.workers > 1:
        msg = "the in-memory broker serves one stream worker: leave out --workers, or use a real Kafka"
        raise UpError(msg)
    if ":" in options.broker:
        await asyncio.to_thread(ensure_topics, kafka)
    ingest = Child("ingest", ("ingest", *common, "--port", str(options.port)), 1.5)
    streams = [
        Child(
            "stream" if options.workers == 1 else f"stream-{number}",
            ("stream", *common, "--worker", str(number), "--instance", f"up-{number}"),
            3,
        )
        for number in range(options.workers)
    ]
    lander = Child("lander", ("land", *common, "--instance", "up"), 2)
    page_port = free_port(PageSettings().port)  # it tells its address when it has numbers; nobody waits for it
    page = Child("page", ("page", *common, "--port", str(page_port), "--ingest-port", str(options.port)), 2)
    alerts = Child("alerts", ("alerts", "send", *common), 2)
    if first := metrics_port():  # one each
        for number, child in enumerate((lander, alerts, *streams)):
            child.environment["SMSPULSE_METRICS_PORT"] = str(first + number)
    await supervisor.start(ingest)
    await supervisor.start(*streams)
    await supervisor.start(lander, page, alerts)
    for child in (ingest, *streams, lander, alerts):
        await supervisor.wait_ready(child)
    url = f"{'https' if os.environ.get('SMSPULSE_INGEST_TLS_CERT') else 'http'}://127.0.0.1:{options.port}"
    console.print(f"[bold]ready[/] after {time.monotonic() - began:.1f} s: webhooks at {url}, SQL with `smspulse sql`")
    return url


def _set_aside(data: Path) -> None:
    """Move what was landed before out of the way: an in-memory broker counts from 0 again, and its records are others.

    Nothing is deleted.
    """
    from warehouse.schemas import SCHEMAS  # noqa: PLC0415 - pyarrow

    names = [name for name in SCHEMAS if name != "prefixes" and "/" not in name]
    landed = [data / name for name in (*names, "accepted") if (data / name).is_dir()]
    if not landed:
        return
    aside = data / f"before-{datetime.now(UTC):%Y%m%dT%H%M%S}"
    aside.mkdir()
    for folder in landed:
        shutil.move(folder, aside)
    _log.warning("what was landed from an earlier broker is in %s now", aside)


def _kept_webhook(data: Path, url: str, source: str) -> str:
    """Return the webhook of one of the demo's sources, made at its first use; its token is kept in clear."""
    from ingest.sources import add_source, webhook_url  # noqa: PLC0415 - aiohttp

    path = data / f"{source}.token"
    if not path.exists():
        token = add_source(data, source)
        path.touch(mode=0o600)
        path.write_text(token, encoding="ascii")
    return webhook_url(url, source, path.read_text(encoding="ascii"))


async def _demo(options: UpOptions, console: Console, url: str, stop: asyncio.Event) -> int:
    """Feed simulated traffic and show its delivery rates, until `stop`, or until the time is up; then reconcile."""
    webhook = await asyncio.to_thread(_kept_webhook, options.data, url, DEMO_SOURCE)
    by_hand = await asyncio.to_thread(_kept_webhook, options.data, url, OWN_SOURCE)
    console.print(f"simulated phones report to {url}; send webhooks of your own, or let your gateway, to\n  {by_hand}")
    truth = options.data / "demo-truth.jsonl"
    traffic = asyncio.create_task(_traffic(webhook, truth, options.seconds))
    stopped = asyncio.create_task(stop.wait())
    with Live(console=console, auto_refresh=False) if console.is_terminal else contextlib.nullcontext() as live:
        shown = ""
        while not traffic.done():
            await asyncio.wait([traffic, stopped], timeout=_REFRESH_S, return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                for _ in range(2):  # once would let it tell the stories that it has begun
                    traffic.cancel()
                    await asyncio.sleep(0.05)
                return 0
            table, line = await asyncio.to_thread(_rates, options.data)
            if live is not None:
                live.update(table, refresh=True)
            elif line != shown:
                console.print(line, highlight=False)
            shown = line
    traffic.result()
    return await _reconcile(options.data, truth, console, stop)


async def _traffic(url: str, truth: Path, seconds: float | None) -> None:
    from smspulse.simulator.stories import stories  # noqa: PLC0415 - heavy
    from smspulse.simulator.traffic import simulate  # noqa: PLC0415 - aiohttp

    # Ids of its own in each run: messages told twice would be others than their truth says.
    seed = secrets.randbelow(1 << 20)
    await simulate(
        url,
        stories(seed, None, DEMO_BEHAVIOUR),
        rate=DEMO_RATE,
        truth=truth,
        time_scale=DEMO_TIME_SCALE,
        max_delay_s=DEMO_LONGEST_DELAY_S,
        stop_after=None if seconds is None else max(seconds - _DEMO_GRACE_S - _DEMO_LANDING_S, 1),
        grace_s=_DEMO_GRACE_S,
    )


def _rates(data: Path) -> tuple[Table, str]:
    """Ask the warehouse for the demo's delivery rates, by device; return them as a table and in one line."""
    import duckdb  # noqa: PLC0415 - heavy

    from warehouse.errors import NoWarehouseError  # noqa: PLC0415 - heavy
    from warehouse.read import query  # noqa: PLC0415 - heavy

    sql = """
        SELECT coalesce(device_id::VARCHAR, 'all') AS device, count(*) AS attempted,
               count(*) FILTER (is_ended) AS ended, count(*) FILTER (outcome = 'delivered') AS delivered,
               median(network_s) AS network_s
        FROM messages WHERE source = ? AND outcome <> 'incoming'
        GROUP BY ROLLUP (device_id) HAVING grouping(device_id) = 1 OR device_id IS NOT NULL
        ORDER BY grouping(device_id), device_id
    """
    table = Table(title="smspulse: delivery rates by device, read by SQL", title_justify="left")
    for name in (
        "device",
        "messages",
        "ended",
        "delivered / attempted",
        "delivered / ended",
        "open share",
        "network p50",
    ):
        table.add_column(name, justify="right")
    line = ""
    try:
        rows: list[Any] = list(query(data, sql, [DEMO_SOURCE]).itertuples(index=False))
    except (NoWarehouseError, duckdb.Error):
        return table, line  # nothing has landed yet; what stays broken shows when the run is reconciled
    for row in rows:
        if not row.attempted:
            continue
        shares = [
            f"{100 * row.delivered / row.attempted:.1f} %",
            f"{100 * row.delivered / row.ended:.1f} %" if row.ended else "",
            f"{100 * (row.attempted - row.ended) / row.attempted:.1f} %",
        ]
        network = "" if row.network_s != row.network_s else f"{row.network_s:.1f} s"  # NaN: none yet
        table.add_row(row.device, f"{row.attempted:,}", f"{row.ended:,}", *shares, network)
        if row.device == "all":
            of_attempted, of_ended, still_open = shares
            line = (
                f"{row.attempted:,} messages; delivered: {of_attempted} of attempted, {of_ended} of ended; "
                f"open: {still_open}"
            )
    return table, line


async def _reconcile(data: Path, truth: Path, console: Console, stop: asyncio.Event) -> int:
    """Wait until everything accepted has landed, then compare with the truth; return the exit code."""
    from smspulse.truth import compare  # noqa: PLC0415 - heavy

    deadline = time.monotonic() + _SETTLE_S
    while True:
        comparison = await asyncio.to_thread(compare, data, truth)
        if comparison.ok or stop.is_set() or time.monotonic() > deadline:
            break
        await asyncio.sleep(1)
    for problem in comparison.problems():
        console.print(Text(problem, style="red"))
    console.print(Text(comparison.line(), style="bold green" if comparison.ok else "bold red"))
    return 0 if comparison.ok else 1


def kafka_settings(data: Path, broker: str) -> KafkaSettings:
    """Return how to reach the broker that a command was told: `HOST:PORT`, or `auto`.

    `auto` is the broker that runs on the data folder, else what the environment says.

    Raises:
        UpError: There is neither.
    """
    found = read_broker_file(data)
    if ":" in broker:
        return KafkaSettings(
            bootstrap=broker, in_memory=bool(found and found.bootstrap == broker and found.kind == "memory")
        )
    if found is not None:
        return KafkaSettings(bootstrap=found.bootstrap, in_memory=found.kind == "memory")
    settings = KafkaSettings()
    if "bootstrap" not in settings.model_fields_set:
        msg = (
            f"no broker runs on {data}: start `smspulse up` or `smspulse broker`, or name yours with --broker HOST:PORT"
        )
        raise UpError(msg)
    return settings
