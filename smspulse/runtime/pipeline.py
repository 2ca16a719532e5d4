"""`smspulse up`: the whole pipeline on one machine, and with `--demo` simulated traffic and its reconciliation."""

import asyncio
import contextlib
import errno
import itertools
import secrets
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from core.background_tasks import keep_running
from core.errors import SmspulseError
from core.kafka_settings import KafkaSettings
from expectations.settings import CheckSettings
from ingest.settings import IngestSettings
from smspulse.broker.download import BrokerError
from smspulse.broker.lockfile import BrokerFile, read_broker_file
from smspulse.broker.login import login_path, read_login
from smspulse.processes.children import LOOPBACK, build_server_url, find_free_port, find_listen_error, raise_file_limit
from smspulse.processes.log_setup import print_process_line
from smspulse.processes.metrics_endpoint import read_metrics_port
from smspulse.processes.supervisor import ChildProcess, ProcessSupervisor
from smspulse.runtime.maintenance import MaintenanceSettings, check_periodically, run_maintenance
from smspulse.runtime.pipeline_lock import PipelineLock
from smspulse.simulator.options import DEMO_BEHAVIOUR, DEMO_LONGEST_DELAY_S, DEMO_RATE, DEMO_TIME_SCALE

DEMO_SOURCE: Final = "demo"
OWN_SOURCE: Final = "mine"
_DEMO_GRACE_S: Final = 13.0
_DEMO_LANDING_S: Final = 5.0
_REFRESH_S: Final = 2.0
_SETTLE_S: Final = 45.0
_PREDECESSOR_S: Final = 20.0  # its children have 7 s to stop, and a busy machine takes its time
_POLL_INTERVAL_S: Final = 0.1
_FETCH_S: Final = 600.0  # Maven on a slow line, once


class PipelineError(SmspulseError):
    """The pipeline could not be started, or did not hold."""


class NoBrokerError(PipelineError):
    """No broker runs on the data folder, and none is named."""


class LoginUnreadableError(PipelineError):
    """The broker of the data folder lets in who can read its login, and this user cannot.

    Attributes:
        bootstrap: Where it listens.
    """

    def __init__(self, bootstrap: str, path: Path) -> None:
        super().__init__(
            f"Kafka at {bootstrap} lets in who may read {path}, and this user may not: "
            "run it as the user who runs the pipeline"
        )
        self.bootstrap = bootstrap


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """What `smspulse up` was asked for.

    Args:
        data: The data folder.
        broker: `auto`, `kafka`, `memory` or `HOST:PORT`.
        port: Ingest's.
        workers: Stream workers, each a process with a state folder and a static name of its own.
        without: Which of `page` and `alerts` to leave out.
        demo: Feed simulated traffic.
        seconds: End after so many; None goes on until a signal.
    """

    data: Path
    broker: str
    port: int
    workers: int
    without: frozenset[str]
    demo: bool
    seconds: float | None


async def run_pipeline(options: PipelineOptions, console: Console) -> int:
    """Run the pipeline until SIGINT, SIGTERM or its time; return the exit code.

    Raises:
        SmspulseError: It could not be started.
    """
    with PipelineLock(options.data) as lock:
        raise_file_limit()
        return await _supervise_pipeline(options, console, predecessor_was_killed=lock.predecessor_was_killed)


async def _supervise_pipeline(options: PipelineOptions, console: Console, *, predecessor_was_killed: bool) -> int:
    every_s, upkeep_minutes = CheckSettings().every_s, MaintenanceSettings().minutes
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    supervisor = ProcessSupervisor(lambda name, level, text: print_process_line(console, name, level, text))

    async def start_when_free() -> str:
        host = IngestSettings().host
        await _wait_until_free(options, host, _PREDECESSOR_S if predecessor_was_killed else 0)
        return await _start_processes(options, host, supervisor, console)

    def stop_on_failure(task: asyncio.Future[Any]) -> None:
        """End everything when a task fails that everything depends on; its error is raised below."""
        if not task.cancelled() and task.exception() is not None:
            stop.set()

    starting = asyncio.create_task(start_when_free())
    stopping = asyncio.create_task(stop.wait())
    watching = asyncio.create_task(_watch_broker(options.data, starting))
    watching.add_done_callback(stop_on_failure)
    supervisor.failure.add_done_callback(stop_on_failure)
    checking = asyncio.create_task(
        keep_running("the regular check", lambda: check_periodically(options.data, options.broker, every_s))
    )
    maintaining = asyncio.create_task(
        keep_running("the upkeep", lambda: _maintain_once_started(options.data, upkeep_minutes, starting, supervisor))
    )
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        code = 0
        if starting.done():
            url = starting.result()
            code = await _wait_for_end(stop, options, console, url)
        if supervisor.failure.done():
            supervisor.failure.result()
        if watching.done():
            watching.result()
        return code
    finally:
        tasks = (starting, stopping, watching, maintaining, checking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        console.print("stopping …", style="dim")
        await supervisor.stop()


async def _wait_for_end(stop: asyncio.Event, options: PipelineOptions, console: Console, url: str) -> int:
    """Wait for `stop` or the end of the time, with `--demo` under simulated traffic; return the exit code."""
    if options.demo:
        return await _run_demo(options, console, url, stop)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), options.seconds)
    return 0


async def _wait_until_free(options: PipelineOptions, host: str, patience_s: float) -> None:
    """Wait until nothing else uses the data folder's broker and the port of ingest.

    Args:
        options: Of the pipeline.
        host: Where ingest listens.
        patience_s: What an earlier pipeline that was killed may take to end.

    Raises:
        PipelineError: Something uses them still.
    """
    deadline = time.monotonic() + patience_s
    while problem := _find_conflict(options, host):
        if time.monotonic() >= deadline:
            raise PipelineError(problem)
        await asyncio.sleep(_POLL_INTERVAL_S)


def _find_conflict(options: PipelineOptions, host: str) -> str:
    """Return what keeps the pipeline from starting, in a line; empty if nothing does."""
    running = None if ":" in options.broker else read_broker_file(options.data)
    if running is not None:
        return (
            f"a broker already runs on {options.data}: process {running.pid}; stop it, or use it with "
            f"--broker {running.bootstrap}"
        )
    error = find_listen_error(options.port, host)
    if error is None:
        return ""
    if error.errno == errno.EADDRINUSE:
        return f"port {options.port} is taken: stop what listens there, or choose another with --port"
    return (
        f"ingest cannot listen on {host}, port {options.port}: {error.strerror}; choose another with "
        "SMSPULSE_INGEST_HOST and --port"
    )


async def _maintain_once_started(
    data: Path, minutes: float, starting: asyncio.Task[str], supervisor: ProcessSupervisor
) -> None:
    await asyncio.wait([starting])
    await run_maintenance(
        minutes,
        lambda command: supervisor.run(ChildProcess(command[0], (*command, "--data", str(data)), 5)),
        asyncio.sleep,
    )


async def _watch_broker(data: Path, starting: asyncio.Task[str]) -> None:
    """Watch whether the embedded broker comes back as another one: what the others hold would not fit to it.

    Raises:
        PipelineError: It did.
    """
    await asyncio.wait([starting])
    first = read_broker_file(data)
    while first is not None:
        await asyncio.sleep(1)
        found = read_broker_file(data)
        if found is not None and (found.bootstrap, found.memory_run) != (first.bootstrap, first.memory_run):
            what = f"at {found.bootstrap}, not at {first.bootstrap}" if found.bootstrap != first.bootstrap else "empty"
            msg = f"the broker came back {what}; all was stopped, start again"
            raise PipelineError(msg)


async def _start_processes(options: PipelineOptions, host: str, supervisor: ProcessSupervisor, console: Console) -> str:
    """Start the pipeline, with ingest on a host; return ingest's URL."""
    from smspulse.broker.topic_admin import ensure_topics  # noqa: PLC0415 - heavy
    from smspulse.dashboard.server import PageSettings  # noqa: PLC0415 - heavy

    began = time.monotonic()
    data = options.data
    port = options.port or find_free_port(0, host)
    shutil.rmtree(data / "run", ignore_errors=True)  # of processes that there may be no more
    common: tuple[str, ...] = ("--data", str(data))
    if ":" not in options.broker:
        broker = ChildProcess("broker", ("broker", *common, "--mode", options.broker), 4, _FETCH_S)
        await supervisor.start(broker)
        await supervisor.wait_until_ready(broker)
        found = read_broker_file(data)
        if found is None:
            msg = f"the broker said that it is ready, but {data / 'broker.json'} names none; see its lines above"
            raise PipelineError(msg)
        # Started again, it must be where the others look for it.
        broker.environment["SMSPULSE_BROKER_PORT"] = found.bootstrap.rpartition(":")[2]
        if found.kind == "kafka":
            common = (*common, "--broker", found.bootstrap)  # a child that starts while it is away waits for it
    else:
        common = (*common, "--broker", options.broker)
    kafka = find_kafka_settings(data, options.broker)
    run = {"SMSPULSE_KAFKA_MEMORY_RUN": kafka.memory_run} if kafka.memory_run else {}
    if kafka.in_memory and options.workers > 1:
        msg = "the in-memory broker serves one stream worker: leave out --workers, or use a real Kafka"
        raise PipelineError(msg)
    if ":" in options.broker:
        await asyncio.to_thread(ensure_topics, kafka)
    ingest = ChildProcess("ingest", ("ingest", *common, "--host", host, "--port", str(port)), 1.5)
    streams = [
        ChildProcess(
            "stream" if options.workers == 1 else f"stream-{number}",
            ("stream", *common, "--worker", str(number), "--instance", f"up-{number}"),
            3,
        )
        for number in range(options.workers)
    ]
    lander = ChildProcess("lander", ("land", *common, "--instance", "up"), 2)
    # It logs its address when it has numbers; nobody waits for it.
    page_settings = PageSettings()
    page_port = page_settings.port
    if (error := find_listen_error(page_port, page_settings.host)) and error.errno == errno.EADDRINUSE:
        page_port = find_free_port(0, page_settings.host)
    page = ChildProcess("page", ("page", *common, "--port", str(page_port)), 2)
    alerts = ChildProcess("alerts", ("alerts", "send", *common), 2)
    if first := read_metrics_port():  # one each
        for number, child in enumerate((lander, alerts, *streams)):
            child.environment["SMSPULSE_METRICS_PORT"] = str(first + number)
    last = [child for child in (lander, page, alerts) if child.name not in options.without]
    for child in (ingest, *streams, *last):
        child.environment.update(run)
    await supervisor.start(ingest)
    await supervisor.start(*streams)
    await supervisor.start(*last)
    for child in (ingest, *streams, *last):
        if child is not page:
            await supervisor.wait_until_ready(child)
    url = build_server_url(host, port, tls=bool(IngestSettings().tls_cert))
    after = f" after {time.monotonic() - began:.1f} s: webhooks at {url}, SQL with `smspulse sql`"
    console.print(Text.assemble(("ready", "bold"), after))
    return url


def _prepare_demo_source(data: Path, name: str) -> tuple[str, str]:
    """Return the name and the token of one of the demo's sources, which is made at its first use.

    A source of that name that the demo did not make is left alone: the demo's own then has a number behind its name.
    Its token is kept in clear in the data folder.
    """
    from ingest.errors import SourceExistsError  # noqa: PLC0415 - as below
    from ingest.sources import SourceRegistry, add_source  # noqa: PLC0415 - aiohttp

    sources = SourceRegistry(data, IngestSettings().sources.get_secret_value())
    numbered = (name if number == 1 else f"{name}-{number}" for number in itertools.count(1))
    for candidate in numbered:
        path = data / f"{candidate}.token"
        token = path.read_text(encoding="utf-8") if path.exists() else ""
        if sources.accepts_token(candidate, token):
            return candidate, token
        if candidate in sources:
            continue
        with contextlib.suppress(SourceExistsError):  # it was added just now
            token = add_source(data, candidate)
            path.touch(mode=0o600)
            path.write_text(token, encoding="utf-8")
            return candidate, token
    raise AssertionError


async def _run_demo(options: PipelineOptions, console: Console, url: str, stop: asyncio.Event) -> int:
    """Feed simulated traffic and show its delivery rates, until `stop`, or until the time is up; then reconcile."""
    from ingest.sources import webhook_url  # noqa: PLC0415 - aiohttp

    source, token = await asyncio.to_thread(_prepare_demo_source, options.data, DEMO_SOURCE)
    webhook = webhook_url(url, source, token)
    by_hand = webhook_url(url, *await asyncio.to_thread(_prepare_demo_source, options.data, OWN_SOURCE))
    console.print(f"simulated phones report to {url}; send webhooks of your own, or let your gateway, to\n  {by_hand}")
    truth = options.data / "demo-truth.jsonl"
    traffic = asyncio.create_task(_simulate_traffic(webhook, truth, options.seconds))
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
            table, line = await asyncio.to_thread(_read_delivery_rates, options.data, source)
            if live is not None:
                live.update(table, refresh=True)
            elif line != shown:
                console.print(line, highlight=False)
            shown = line
    traffic.result()
    return await _reconcile_demo(options.data, truth, console, stop)


async def _simulate_traffic(url: str, truth: Path, seconds: float | None) -> None:
    from smspulse.simulator.client import run_simulation  # noqa: PLC0415 - aiohttp
    from smspulse.simulator.scenarios import generate_scenarios  # noqa: PLC0415 - heavy

    # Ids of its own in each run: messages told twice would be others than their truth says.
    seed = secrets.randbelow(1 << 20)
    await run_simulation(
        url,
        generate_scenarios(seed, None, DEMO_BEHAVIOUR),
        rate=DEMO_RATE,
        truth=truth,
        time_scale=DEMO_TIME_SCALE,
        max_delay_s=DEMO_LONGEST_DELAY_S,
        stop_after=None if seconds is None else max(seconds - _DEMO_GRACE_S - _DEMO_LANDING_S, 1),
        grace_s=_DEMO_GRACE_S,
    )


def _read_delivery_rates(data: Path, source: str) -> tuple[Table, str]:
    """Read the delivery rates of the demo's source from the warehouse, by device; return a table and a line of them."""
    import duckdb  # noqa: PLC0415 - heavy

    from warehouse.errors import NoWarehouseError  # noqa: PLC0415 - heavy
    from warehouse.reader import query  # noqa: PLC0415 - heavy

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
        rows: list[Any] = list(query(data, sql, [source]).itertuples(index=False))
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


async def _reconcile_demo(data: Path, truth: Path, console: Console, stop: asyncio.Event) -> int:
    """Wait until everything accepted has landed, then compare with the truth; return the exit code."""
    from smspulse.simulator.ground_truth import compare_with_truth  # noqa: PLC0415 - heavy

    deadline = time.monotonic() + _SETTLE_S
    while True:
        comparison = await asyncio.to_thread(compare_with_truth, data, truth)
        if comparison.is_reconciled or stop.is_set() or time.monotonic() > deadline:
            break
        await asyncio.sleep(1)
    for problem in comparison.list_problems():
        console.print(Text(problem, style="red"))
    console.print(Text(comparison.format_result(), style="bold green" if comparison.is_reconciled else "bold red"))
    return 0 if comparison.is_reconciled else 1


def find_kafka_settings(data: Path, broker: str) -> KafkaSettings:
    """Return how to reach the broker that a command was told: `HOST:PORT`, or `auto`.

    `auto` is the broker that runs on the data folder, else what the environment says. The login of the data folder's
    own Kafka is in the data folder; that of any other is in the environment.

    Raises:
        NoBrokerError: There is neither.
        LoginUnreadableError: It is the data folder's own, whose login this user may not read.
        BrokerError: That login is damaged.
    """
    found = read_broker_file(data)
    if found is not None and (":" not in broker or _is_same_address(broker, found.bootstrap)):
        return read_embedded_settings(data, found)
    settings = KafkaSettings()
    if ":" in broker:
        login = None
        if "security_protocol" not in settings.model_fields_set:
            with contextlib.suppress(PermissionError):  # then it is not this user's broker
                login = read_login(data)
        if login is not None and _is_same_address(broker, login.bootstrap):
            return KafkaSettings(
                bootstrap=broker, **login.to_kafka_options()
            )  # it is starting, or was stopped for a moment
        return KafkaSettings(bootstrap=broker)
    if "bootstrap" not in settings.model_fields_set:
        msg = (
            f"no broker runs on {data}: start `smspulse up` or `smspulse broker`, or name yours with --broker HOST:PORT"
        )
        raise NoBrokerError(msg)
    return settings


def read_embedded_settings(data: Path, running: BrokerFile) -> KafkaSettings:
    """Return how to reach the embedded broker that runs on the data folder, whatever the environment says of another.

    Raises:
        LoginUnreadableError: This user may not read its login.
        BrokerError: The login is damaged, or missing.
    """
    access: dict[str, Any] = {"security_protocol": "PLAINTEXT"}
    if running.has_login:
        try:
            login = read_login(data)
        except PermissionError as error:
            raise LoginUnreadableError(running.bootstrap, login_path(data)) from error
        if login is None:
            msg = f"{login_path(data)} is missing: start the broker again, which makes another"
            raise BrokerError(msg)
        access = login.to_kafka_options()
    # The file is newer than the environment of a process that outlived a run of the in-memory broker.
    return KafkaSettings(
        bootstrap=running.bootstrap,
        in_memory=running.kind == "memory",
        memory_run=running.memory_run,
        **access,
    )


def _is_same_address(one: str, other: str) -> bool:
    """Return whether two `HOST:PORT` name the same listener: `localhost` and 127.0.0.1 are one host."""
    return _canonical_address(one) == _canonical_address(other)


def _canonical_address(address: str) -> tuple[str, str]:
    host, _, port = address.rpartition(":")
    host = host.lower()
    return LOOPBACK if host == "localhost" else host, port
