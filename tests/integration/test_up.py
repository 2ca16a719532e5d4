"""`smspulse up` as an operator meets it: what it refuses, what it survives, and what it leaves alone."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smspulse.processes import free_port

PATIENCE_S = 120


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"SMSPULSE_BROKER_PORT": "0", "SMSPULSE_BROKER_CONTROLLER_PORT": "0"} | more


@contextmanager
def started(data: Path, *arguments: str, **more: str) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Start `smspulse up` in memory, yield it and its log, and stop it at the end."""
    log = data.with_name(data.name + ".log")
    command = (sys.executable, "-m", "smspulse", "up", "--data", str(data), "--broker", "memory", *arguments)
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment(**more), stdout=out, stderr=subprocess.STDOUT, text=True)
    try:
        yield process, log
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def wait_for_line(process: "subprocess.Popen[str]", log: Path, part: str) -> str:
    """Return the first line of the log with that part as soon as it is there."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := [line for line in log.read_text().splitlines() if part in line]:
            return found[0]
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)  # there is nothing to await across processes
    msg = f"no line with {part!r} within {PATIENCE_S} s:\n{log.read_text()}"
    raise AssertionError(msg)


def test_the_in_memory_broker_leaves_all_landed_data_in_place(tmp_path: Path) -> None:
    data = tmp_path / "data"
    landed = [data / "raw/date=2026-11-01/sms.raw+0+00000000000000000000.parquet", data / "accepted/2026-11-01.log"]
    for path in landed:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"landed from another broker")
    with started(data, "--port", str(free_port())) as (process, log):
        wait_for_line(process, log, "receiving webhooks at")
        assert [path.read_bytes() for path in landed] == [b"landed from another broker"] * 2
        assert not list(data.glob("before-*"))
