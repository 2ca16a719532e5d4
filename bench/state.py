"""The worker with many open messages: their memory, and the speed of their recovery onto an empty disk."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from measure import LIMIT_S, Died, check, committed, cpu_s, memory_mb, our, positions, running
from records import PARTITIONS

from core.kafka_settings import KafkaSettings
from core.topics import RAW

GROUP = "smspulse-stream"
_OWNS = re.compile(
    rf"^(\S+ \S+) INFO owns partition \d+ of {re.escape(RAW)} .* recovered (\d+) \w+ in ([\d.]+) s", re.MULTILINE
)


def memory_when_all_are_open(kafka: KafkaSettings, data: Path, messages: int) -> tuple[float, float]:
    """Let a worker process so many messages; return its current and its peak memory, in MB.

    Raises:
        Died: It ended by itself or took too long.
    """
    log = data / "stream-open.log"
    with running(_command(kafka, data), {}, log) as process, positions(kafka, GROUP) as consumer:
        limit = time.monotonic() + LIMIT_S
        while sum(committed(consumer)) < messages:
            check(process, log)
            if time.monotonic() > limit:
                msg = f"the worker did not take up {messages:,} messages within {LIMIT_S} s"
                raise Died(msg)
            time.sleep(0.1)
        _settle(process, log)
        return memory_mb(process.pid, "VmRSS"), memory_mb(process.pid, "VmHWM")


@contextmanager
def recovered(kafka: KafkaSettings, data: Path) -> Iterator[tuple[int, float]]:
    """Delete the worker's state and start it; return the number of recovered versions and the seconds of wall time.

    The partitions recover side by side: the time is from the first one's begin to the last one's end. The worker goes
    on in the context.

    Raises:
        Died: It ended by itself or took too long.
    """
    shutil.rmtree(data / "state")
    log = data / "stream-recovered.log"
    with running(_command(kafka, data), {}, log) as process:
        limit = time.monotonic() + LIMIT_S
        while len(owned := _OWNS.findall(log.read_text())) < PARTITIONS:
            check(process, log)
            if time.monotonic() > limit:
                msg = f"the worker did not recover within {LIMIT_S} s"
                raise Died(msg)
            time.sleep(0.1)
        ends = [datetime.strptime(at, "%Y-%m-%d %H:%M:%S,%f").timestamp() for at, _, _ in owned]  # noqa: DTZ007 - only differences matter
        begin = min(end - float(took) for end, (_, _, took) in zip(ends, owned, strict=True))
        _settle(process, log)
        yield sum(int(versions) for _, versions, _ in owned), max(ends) - begin


def _settle(process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until the worker is idle: after the reports, it has to process other topics.

    Raises:
        Died: It ended by itself or took too long.
    """
    limit = time.monotonic() + LIMIT_S
    while True:
        before = cpu_s(process.pid)
        time.sleep(1)
        check(process, log)
        if cpu_s(process.pid) - before < 0.1:
            return
        if time.monotonic() > limit:
            msg = f"the worker was not idle within {LIMIT_S} s"
            raise Died(msg)


def _command(kafka: KafkaSettings, data: Path) -> list[str]:
    return our("stream", "--data", str(data), "--broker", kafka.bootstrap)
