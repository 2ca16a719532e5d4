"""`smspulse up`: the whole pipeline on one machine."""

import asyncio
import contextlib
import errno
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.text import Text

from core.background_tasks import keep_running
from expectations.settings import CheckSettings
from ingest.settings import IngestSettings
from smspulse.broker.locate import find_kafka_settings
from smspulse.broker.lockfile import read_broker_file
from smspulse.dashboard.settings import PageSettings
from smspulse.processes import children
from smspulse.processes.log_setup import print_process_line
from smspulse.processes.settings import MetricsSettings
from smspulse.processes.supervisor import ChildProcess, ProcessSupervisor
from smspulse.runtime.demo import run_demo
from smspulse.runtime.errors import PipelineError
from smspulse.runtime.maintenance import check_periodically, run_maintenance
from smspulse.runtime.settings import MaintenanceSettings

# The children of an earlier pipeline have 7 s to stop, and a busy machine takes longer.
_PREDECESSOR_S: Final = 20.0
# Maven fetches Kafka once, maybe on a slow line.
_FETCH_S: Final = 600.0


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """The options of one run of `smspulse up`.

    Args:
        data: The data folder.
        broker: `auto`, `kafka`, `memory` or `HOST:PORT`.
        port: Port of ingest; 0 for any free one.
        workers: Number of stream workers. Each is a process with its own state folder and static name.
        without: Processes to leave out, of `page` and `alerts`.
        page: Settings of the page, which gets a free port if its port is taken.
        demo: Whether to simulate traffic.
        seconds: Seconds until the end; None for no end but a signal.
    """

    data: Path
    broker: str
    port: int
    workers: int
    without: tuple[str, ...]
    page: PageSettings
    demo: bool
    seconds: float | None


async def run_pipeline(options: PipelineOptions, console: Console) -> int:
    """Run the pipeline until SIGINT, SIGTERM or the end of its time; return the exit code.

    Raises:
        SmspulseError: The pipeline could not be started.
    """
    with _lock_data_folder(options.data) as predecessor_was_killed:
        children.raise_file_limit()
        return await _supervise_pipeline(options, console, _PREDECESSOR_S if predecessor_was_killed else 0)


@contextmanager
def _lock_data_folder(data: Path) -> Iterator[bool]:
    """Hold the lock of a data folder for a context. The kernel releases it with the process, however that ends.

    Yields whether the last holder was killed: it did not release the lock, and its children may still be ending.

    Raises:
        PipelineError: Another process holds it.
        OSError: The folder cannot be written.
    """
    with open(os.open(data / "up.lock", os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as file:
        holder = file.read(20).decode(errors="replace")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            who = f"process {holder}" if holder else "another process"
            msg = f"`smspulse up` already runs on {data}: {who}; stop it, or choose another folder with --data"
            raise PipelineError(msg) from None
        file.truncate(0)
        os.pwrite(file.fileno(), str(os.getpid()).encode(), 0)
        try:
            yield holder != ""
        finally:
            # A process that ends by itself empties the file.
            file.truncate(0)


async def _supervise_pipeline(options: PipelineOptions, console: Console, patience_s: float) -> int:
    every_s, upkeep_minutes = CheckSettings().every_s, MaintenanceSettings().minutes
    stop = children.make_stop_event()
    supervisor = ProcessSupervisor(partial(print_process_line, console))

    async def run_command(name: str) -> int:
        return await supervisor.run(ChildProcess(name, (name, "--data", str(options.data)), 5))

    starting = asyncio.create_task(_start_processes(options, supervisor, console, patience_s))
    tasks: list[asyncio.Future[Any]] = [starting, asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return 0
        url = starting.result()
        # The first error of either ends the pipeline, and is raised below.
        failing = asyncio.gather(supervisor.failure, _watch_broker(options.data))
        failing.add_done_callback(lambda _: stop.set())
        check = partial(check_periodically, options.data, options.broker, every_s)
        checking = keep_running("the regular check", check)
        maintaining = keep_running("the upkeep", partial(run_maintenance, upkeep_minutes, run_command))
        tasks += [failing, asyncio.create_task(checking), asyncio.create_task(maintaining)]
        code = await _wait_for_end(stop, options, console, url)
        if failing.done():
            failing.result()
        return code
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        console.print("stopping …", style="dim")
        await supervisor.stop()


async def _wait_for_end(stop: asyncio.Event, options: PipelineOptions, console: Console, url: str) -> int:
    """Wait for `stop` or the end of the time, with `--demo` during simulated traffic; return the exit code."""
    if options.demo:
        return await run_demo(options.data, options.seconds, console, url, stop)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), options.seconds)
    return 0


def _find_conflict(options: PipelineOptions, host: str) -> str:
    """Return the reason in one line why the pipeline cannot start; empty without one."""
    # An external broker is expected to run.
    running = None if ":" in options.broker else read_broker_file(options.data)
    if running is not None:
        return (
            f"a broker already runs on {options.data}: process {running.pid}; stop it, or use it with "
            f"--broker {running.bootstrap}"
        )
    error = children.find_listen_error(options.port, host)
    if error is None:
        return ""
    if error.errno == errno.EADDRINUSE:
        return f"port {options.port} is taken: stop what listens there, or choose another with --port"
    return (
        f"ingest cannot listen on {host}, port {options.port}: {error.strerror}; choose another with "
        "SMSPULSE_INGEST_HOST and --port"
    )


async def _watch_broker(data: Path) -> None:
    """Watch whether a restarted broker is a different one. The state of the other processes would not match it.

    Raises:
        PipelineError: The broker came back at another address, or without its records.
    """
    # None with an external broker: there is nothing to watch.
    first = read_broker_file(data)
    while first is not None:
        await asyncio.sleep(1)
        found = read_broker_file(data)
        if found is not None and (found.bootstrap, found.memory_run) != (first.bootstrap, first.memory_run):
            what = f"at {found.bootstrap}, not at {first.bootstrap}" if found.bootstrap != first.bootstrap else "empty"
            msg = f"the broker came back {what}; all was stopped, start again"
            raise PipelineError(msg)


async def _start_processes(
    options: PipelineOptions, supervisor: ProcessSupervisor, console: Console, patience_s: float
) -> str:
    """Start the pipeline once nothing else uses its address and broker; return the URL of ingest."""
    from smspulse.broker.topic_admin import ensure_topics  # noqa: PLC0415 - heavy

    ingest = IngestSettings()
    host = ingest.host
    if problem := await children.wait_while(partial(_find_conflict, options, host), patience_s):
        raise PipelineError(problem)
    began = time.monotonic()
    port = options.port or children.find_free_port(0, host)
    # Endpoints of processes that may have ended.
    shutil.rmtree(options.data / "run", ignore_errors=True)
    is_external = ":" in options.broker
    broker_options = ("--broker", options.broker) if is_external else await _start_broker(options, supervisor)
    kafka = find_kafka_settings(options.data, options.broker)
    if kafka.in_memory and options.workers > 1:
        msg = "the in-memory broker serves one stream worker: leave out --workers, or use a real Kafka"
        raise PipelineError(msg)
    if is_external:
        await asyncio.to_thread(ensure_topics, kafka)
    groups = _make_children(options, ("--data", str(options.data), *broker_options), host, port)
    started = [child for group in groups for child in group]
    if kafka.memory_run:
        for child in started:
            child.environment["SMSPULSE_KAFKA_MEMORY_RUN"] = kafka.memory_run
    for group in groups:
        await supervisor.start(*group)
    for child in started:
        # The page logs its address when it has numbers. Nothing waits for it.
        if child.name != "page":
            await supervisor.wait_until_ready(child)
    url = children.build_server_url(host, port, tls=ingest.tls_cert is not None)
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


def _make_children(options: PipelineOptions, common: tuple[str, ...], host: str, port: int) -> list[list[ChildProcess]]:
    """Return ingest, the stream workers and the rest: processes that start together, in order of their start."""
    page_port = options.page.port
    page_error = children.find_listen_error(page_port, options.page.host)
    if page_error is not None and page_error.errno == errno.EADDRINUSE:
        page_port = children.find_free_port(0, options.page.host)
    ingest = ChildProcess("ingest", ("ingest", *common, "--host", host, "--port", str(port)), 1.5)
    streams = []
    for number in range(options.workers):
        name = "stream" if options.workers == 1 else f"stream-{number}"
        arguments = ("stream", *common, "--worker", str(number), "--instance", f"up-{number}")
        streams.append(ChildProcess(name, arguments, 3))
    lander = ChildProcess("lander", ("land", *common, "--instance", "up"), 2)
    page = ChildProcess("page", ("page", *common, "--port", str(page_port)), 2)
    alerts = ChildProcess("alerts", ("alerts", "send", *common), 2)
    # Each of these processes gets a port of its own.
    if first := MetricsSettings().port:
        for number, child in enumerate((lander, alerts, *streams)):
            child.environment["SMSPULSE_METRICS_PORT"] = str(first + number)
    return [[ingest], streams, [child for child in (lander, page, alerts) if child.name not in options.without]]
