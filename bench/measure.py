"""Runs one contestant, or several processes of one, and measures all of them from outside in the same way."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Consumer, KafkaException, TopicPartition
from records import PARTITIONS

from core.kafka_retry import COORDINATOR_IS_STARTING
from core.kafka_settings import KafkaSettings
from core.topics import RAW
from smspulse.broker.kafka_broker import KafkaBroker
from smspulse.broker.settings import BrokerSettings
from smspulse.broker.topic_admin import ensure_topics
from smspulse.processes.children import die_with_parent

LIMIT_S = 240
# The embedded Kafka fsyncs each batch. A cluster need not, and no peer expects it, so figures use Kafka's defaults.
# Neither has a login. It costs nothing after the connection, and no peer has the password.
OUR_KAFKA = BrokerSettings(port=0, controller_port=0, login=False)
PLAIN_KAFKA = BrokerSettings(port=0, controller_port=0, login=False, flush_messages=2**63 - 1)


@dataclass(frozen=True, slots=True)
class Contestant:
    """A program that computes versions from `sms.raw`.

    Args:
        name: As the table shows it.
        command: Each of its processes.
        group: Its consumer group.
        output: The topic that it writes versions to.
        env: Environment variables that it needs.
    """

    name: str
    command: Sequence[Sequence[str]]
    group: str
    output: str
    env: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Run:
    """Measurements: events a second, CPU an event in µs, peak memory in MB, and the position of each partition."""

    rate: float
    cpu_us: float
    rss_mb: float
    positions: list[int]


# A child's peak begins with the memory of its parent, so a small program starts the command.
_ALONE = """
import os, subprocess, sys
_, status, usage = os.wait4(subprocess.Popen(sys.argv[1:], stdout=sys.stderr).pid, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_maxrss)
"""


def alone(command: Sequence[str]) -> tuple[int, float, float]:
    """Run a command; return its exit code, its seconds and its peak memory in MB."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", _ALONE, *command], stdout=subprocess.PIPE, text=True, check=True)
    code, peak = done.stdout.split()
    return int(code), time.perf_counter() - start, int(peak) * 1024 / 1e6


class Died(Exception):  # noqa: N818 - it names the finding
    """A process ended unexpectedly. The text has its last line of output."""


def figure(name: str, value: float, goal: str = "") -> None:
    """Print one figure."""
    print(f"figure {name} {value:.3f}" + (f" goal {goal}" if goal else ""))


@contextmanager
def kafka_node(settings: BrokerSettings) -> Iterator[tuple[KafkaSettings, Path]]:
    """Run a Kafka with the topics of smspulse in its own folder."""
    with tempfile.TemporaryDirectory() as folder, KafkaBroker(Path(folder), settings) as broker:
        kafka = KafkaSettings(bootstrap=broker.address, partitions=PARTITIONS)
        ensure_topics(kafka)
        yield kafka, Path(folder)


@contextmanager
def running(command: Sequence[str], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process with its output in a file. At the end, it has ten seconds to stop."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | env,
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=die_with_parent(),  # noqa: PLW1509 - safe after a fork
        )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def check(process: subprocess.Popen[bytes], log: Path) -> None:
    """Raise if the process has ended.

    Raises:
        Died: It has.
    """
    if process.poll() is not None:
        words = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        msg = f"{log.stem} ended with {process.returncode}:\n{words}"
        raise Died(msg)


def our(*arguments: str) -> list[str]:
    """Return a command of smspulse."""
    return [sys.executable, "-m", "smspulse", *arguments]


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int, field: str) -> float:
    """Return the memory of a process, in 10^6 bytes: `VmRSS` now, `VmHWM` at its peak."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition(f"{field}:")[2].split()[0]) * 1024 / 1e6


@contextmanager
def positions(kafka: KafkaSettings, group: str) -> Iterator[Consumer]:
    """Yield a client for `committed`."""
    consumer = Consumer(kafka.confluent_options() | {"group.id": group})
    try:
        yield consumer
    finally:
        consumer.close()


def committed(consumer: Consumer) -> list[int]:
    """Return the committed offset of each partition of `sms.raw`; empty before the group has a coordinator."""
    try:
        offsets = consumer.committed([TopicPartition(RAW, number) for number in range(PARTITIONS)], 10)
    except KafkaException as error:
        if error.args[0].code() in COORDINATOR_IS_STARTING:
            return [0] * PARTITIONS
        raise
    return [max(each.offset, 0) for each in offsets]


def measure(kafka: KafkaSettings, who: Contestant, folder: Path, events: int, skip: float = 0) -> Run:
    """Run a contestant until its group has committed so many events.

    The rate is that between the first commit and the last but one: the last may come an interval after the last
    event. What happens before the first, such as starting a JVM and joining the group, does not count.

    Args:
        kafka: Where the records are.
        who: Whom to run.
        folder: For logs and state.
        events: How many.
        skip: The share of events whose commits do not count either.

    Raises:
        Died: It ended, came to nothing, or committed too seldom to be measured.
    """
    points: list[tuple[float, list[int], float]] = []
    logs = [folder / f"{who.group}-{number}.log" for number in range(len(who.command))]
    with positions(kafka, who.group) as consumer, _all(who, logs) as processes:
        limit = time.monotonic() + LIMIT_S
        while not points or sum(points[-1][1]) < events:
            if time.monotonic() > limit:
                msg = f"{who.name} did not do {events:,} events within {LIMIT_S} s; see {folder}"
                raise Died(msg)
            for process, log in zip(processes, logs, strict=True):
                check(process, log)
            at = committed(consumer)
            if sum(at) > max(skip * events, sum(points[-1][1]) if points else 0):
                points.append((time.perf_counter(), at, sum(cpu_s(each.pid) for each in processes)))
            time.sleep(0.02)
        rss = sum(memory_mb(each.pid, "VmHWM") for each in processes)
    if len(points) < 3:
        msg = f"{who.name} committed {len(points)} times only, which measures nothing"
        raise Died(msg)
    (since, first, cpu_before), (until, last, cpu_after) = points[0], points[-2]
    done = sum(last) - sum(first)
    return Run(done / (until - since), (cpu_after - cpu_before) / done * 1e6, rss, last)


@contextmanager
def _all(who: Contestant, logs: Sequence[Path]) -> Iterator[list[subprocess.Popen[bytes]]]:
    if not logs:
        yield []
        return
    *rest, log = logs
    others = Contestant(who.name, who.command[:-1], who.group, who.output, who.env)
    with running(who.command[-1], who.env, log) as process, _all(others, rest) as processes:
        yield [*processes, process]
