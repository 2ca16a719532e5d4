"""`smspulse up`: the whole pipeline on one machine."""

import asyncio
import contextlib
import errno
import itertools
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from core.background_tasks import keep_running
from core.errors import SmspulseError
from expectations.settings import CheckSettings
from ingest.settings import IngestSettings
from smspulse.broker.locate import find_kafka_settings
from smspulse.broker.lockfile import read_broker_file
from smspulse.processes.children import build_server_url, find_free_port, find_listen_error, raise_file_limit
from smspulse.processes.log_setup import print_process_line
from smspulse.processes.metrics_endpoint import read_metrics_port
from smspulse.processes.supervisor import ChildProcess, ProcessSupervisor
from smspulse.runtime.demo import run_demo
from smspulse.runtime.maintenance import MaintenanceSettings, check_periodically, run_maintenance
from smspulse.runtime.pipeline_lock import PipelineLock

# The children of an earlier pipeline have 7 s to stop, and a busy machine takes longer.
_PREDECESSOR_S: Final = 20.0
_POLL_INTERVAL_S: Final = 0.1
# Maven fetches Kafka once, maybe on a slow line.
_FETCH_S: Final = 600.0


class PipelineError(SmspulseError):
    """The pipeline could not be started, or could not go on."""


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """The options of one run of `smspulse up`.

    Args:
        data: The data folder.
        broker: `auto`, `kafka`, `memory` or `HOST:PORT`.
        port: Port of ingest; 0 for any free one.
        workers: Number of stream workers. Each is a process with its own state folder and static name.
        without: Processes to leave out, of `page` and `alerts`.
        demo: Whether to simulate traffic.
        seconds: Seconds until the end; None for no end but a signal.
    """

    data: Path
    broker: str
    port: int
    workers: int
    without: frozenset[str]
    demo: bool
    seconds: float | None


async def run_pipeline(options: PipelineOptions, console: Console) -> int:
    """Run the pipeline until SIGINT, SIGTERM or the end of its time; return the exit code.

    Raises:
        SmspulseError: The pipeline could not be started.
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

    def stop_on_failure(task: asyncio.Future[Any]) -> None:
        """End the pipeline when an essential task fails. Its error is raised below."""
        if not task.cancelled() and task.exception() is not None:
            stop.set()

    patience_s = _PREDECESSOR_S if predecessor_was_killed else 0
    starting = asyncio.create_task(_start_when_free(options, supervisor, console, patience_s))
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
        code = await _wait_for_end(stop, options, console, starting.result()) if starting.done() else 0
        # These tasks can also have set `stop`; then their errors are raised here.
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


async def _start_when_free(
    options: PipelineOptions, supervisor: ProcessSupervisor, console: Console, patience_s: float
) -> str:
    host = IngestSettings().host
    await _wait_until_free(options, host, patience_s)
    return await _start_processes(options, host, supervisor, console)


async def _wait_for_end(stop: asyncio.Event, options: PipelineOptions, console: Console, url: str) -> int:
    """Wait for `stop` or the end of the time, with `--demo` during simulated traffic; return the exit code."""
    if options.demo:
        return await run_demo(options.data, options.seconds, console, url, stop)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), options.seconds)
    return 0


async def _wait_until_free(options: PipelineOptions, host: str, patience_s: float) -> None:
    """Wait until no other process uses the broker of the data folder or the port of ingest.

    Args:
        options: Options of the pipeline.
        host: Address of ingest.
        patience_s: Seconds that an earlier, killed pipeline may take to end.

    Raises:
        PipelineError: They are still in use.
    """
    deadline = time.monotonic() + patience_s
    while problem := _find_conflict(options, host):
        if time.monotonic() >= deadline:
            raise PipelineError(problem)
        await asyncio.sleep(_POLL_INTERVAL_S)


def _find_conflict(options: PipelineOptions, host: str) -> str:
    """Return the reason in one line why the pipeline cannot start; empty without one."""
    # An external broker is expected to run.
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
    # Commands of the maintenance need the broker and the views.
    await asyncio.wait([starting])
    await run_maintenance(
        minutes,
        lambda command: supervisor.run(ChildProcess(command[0], (*command, "--data", str(data)), 5)),
        asyncio.sleep,
    )


async def _watch_broker(data: Path, starting: asyncio.Task[str]) -> None:
    """Watch whether a restarted broker is a different one. The state of the other processes would not match it.

    Raises:
        PipelineError: The broker came back at another address, or without its records.
    """
    await asyncio.wait([starting])
    # None with an external broker: there is nothing to watch.
    first = read_broker_file(data)
    while first is not None:
        await asyncio.sleep(1)
        found = read_broker_file(data)
        if found is not None and (found.bootstrap, found.memory_run) != (first.bootstrap, first.memory_run):
            what = f"at {found.bootstrap}, not at {first.bootstrap}" if found.bootstrap != first.bootstrap else "empty"
            msg = f"the broker came back {what}; all was stopped, start again"
            raise PipelineError(msg)


async def _start_processes(options: PipelineOptions, host: str, supervisor: ProcessSupervisor, console: Console) -> str:
    """Start the pipeline, with ingest on a host; return the URL of ingest."""
    from smspulse.broker.topic_admin import ensure_topics  # noqa: PLC0415 - heavy

    began = time.monotonic()
    port = options.port or find_free_port(0, host)
    # Endpoints of processes that may have ended.
    shutil.rmtree(options.data / "run", ignore_errors=True)
    if ":" in options.broker:
        broker_options: tuple[str, ...] = ("--broker", options.broker)
    else:
        broker_options = await _start_broker(options, supervisor)
    kafka = find_kafka_settings(options.data, options.broker)
    if kafka.in_memory and options.workers > 1:
        msg = "the in-memory broker serves one stream worker: leave out --workers, or use a real Kafka"
        raise PipelineError(msg)
    if ":" in options.broker:
        await asyncio.to_thread(ensure_topics, kafka)
    groups = _build_children(options, ("--data", str(options.data), *broker_options), host, port)
    for child in itertools.chain(*groups):
        child.environment.update({"SMSPULSE_KAFKA_MEMORY_RUN": kafka.memory_run} if kafka.memory_run else {})
    for group in groups:
        await supervisor.start(*group)
    for child in itertools.chain(*groups):
        # The page logs its address when it has numbers. Nothing waits for it.
        if child.name != "page":
            await supervisor.wait_until_ready(child)
    url = build_server_url(host, port, tls=bool(IngestSettings().tls_cert))
    after = f" after {time.monotonic() - began:.1f} s: webhooks at {url}, SQL with `smspulse sql`"
    console.print(Text.assemble(("ready", "bold"), after))
    return url


async def _start_broker(options: PipelineOptions, supervisor: ProcessSupervisor) -> tuple[str, ...]:
    """Start the embedded broker; return the options with which the other processes find it."""
    broker = ChildProcess("broker", ("broker", "--data", str(options.data), "--mode", options.broker), 4, _FETCH_S)
    await supervisor.start(broker)
    await supervisor.wait_until_ready(broker)
    found = read_broker_file(options.data)
    if found is None:
        msg = f"the broker reported ready, but {options.data / 'broker.json'} names none; see its lines above"
        raise PipelineError(msg)
    # After a restart it must listen where the other processes look for it.
    broker.environment["SMSPULSE_BROKER_PORT"] = found.bootstrap.rpartition(":")[2]
    # A child that starts while a named broker is away waits for it.
    return ("--broker", found.bootstrap) if found.kind == "kafka" else ()


def _build_children(
    options: PipelineOptions, common: tuple[str, ...], host: str, port: int
) -> tuple[list[ChildProcess], list[ChildProcess], list[ChildProcess]]:
    """Return ingest, the stream workers and the rest: processes that start together, in order of their start."""
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
    page = ChildProcess("page", ("page", *common, "--port", str(_find_page_port())), 2)
    alerts = ChildProcess("alerts", ("alerts", "send", *common), 2)
    # Each of these processes gets a port of its own.
    if first := read_metrics_port():
        for number, child in enumerate((lander, alerts, *streams)):
            child.environment["SMSPULSE_METRICS_PORT"] = str(first + number)
    return [ingest], streams, [child for child in (lander, page, alerts) if child.name not in options.without]


def _find_page_port() -> int:
    """Return the port of the page: as set, or a free one where that one is taken."""
    from smspulse.dashboard.settings import PageSettings  # noqa: PLC0415 - heavy

    settings = PageSettings()
    error = find_listen_error(settings.port, settings.host)
    is_taken = error is not None and error.errno == errno.EADDRINUSE
    return find_free_port(0, settings.host) if is_taken else settings.port
