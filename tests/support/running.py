"""A running `smspulse up`, for tests that inject faults from outside."""

import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from formatted_store import copy_formatted_store

from ingest.sources import add_source, webhook_url
from smspulse.processes.children import die_with_parent, find_free_port
from warehouse.errors import NoWarehouseError
from warehouse.reader import query

SETTLE_S = 240
"""Longer than any step on a busy machine. It only ends a wait for something that never occurs."""

LAND_OFTEN = {"SMSPULSE_LANDER_FLUSH_INTERVAL_S": "1"}
"""Environment of a pipeline whose rows a test waits for. An idle pipeline costs as much as a busy one."""


def program(name: str) -> str:
    """Return the path of a program. If it is missing, skip the test, or fail if all programs are required."""
    found = shutil.which(name)
    if found is None:
        line = f"this test needs the program `{name}`, which is not on PATH"
        if os.environ.get("SMSPULSE_REQUIRE_KAFKA") == "1":
            pytest.fail(line, pytrace=False)
        pytest.skip(line)
    return found


def running_children(parent: int) -> dict[int, str]:
    """Return the command lines of the running children of a process, by process id."""
    children: dict[int, str] = {}
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        # A process may end between two of these reads.
        with suppress(FileNotFoundError, ProcessLookupError):
            for pid in task.read_text().split():
                with suppress(FileNotFoundError, ProcessLookupError):
                    children[int(pid)] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return children


_ASK_AGAIN_S = 5
"""Time after which a query runs again without a changed file, because it may depend on the time."""


@dataclass
class Pipeline:
    """A running `smspulse up`. `log` has its output and that of its processes."""

    process: subprocess.Popen[str]
    data: Path
    url: str
    log: Path

    def source(self, name: str) -> str:
        return webhook_url(self.url, name, add_source(self.data, name))

    def rows(self, sql: str, *parameters: Any) -> list[Any]:
        return list(query(self.data, sql, parameters).itertuples(index=False))

    def wait_for(self, sql: str, *parameters: Any, within: float = SETTLE_S) -> list[Any]:
        """Wait until a query returns rows, and return them."""
        deadline = time.monotonic() + within
        files, asked_at = None, 0.0
        while (now := time.monotonic()) < deadline:
            # No event is available across processes, so it waits for new files. A query costs a hundred times as much.
            if files != (files := self._landed_files()) or now > asked_at + _ASK_AGAIN_S:
                asked_at = now
                try:
                    if rows := self.rows(sql, *parameters):
                        return rows
                except NoWarehouseError:
                    pass
            time.sleep(0.1)
        raise AssertionError(f"no rows within {within} s: {sql} {parameters}")

    def _landed_files(self) -> frozenset[Path]:
        """Return the catalog and the landed files."""
        return frozenset((*self.data.glob("*.duckdb"), *self.data.glob("*/date=*/*.parquet")))

    def find(self, command: str, worker: int | None = None) -> int | None:
        """Return the process id of a child by its command and worker number; None while it restarts."""
        marks = [f"-m smspulse {command} "] + ([] if worker is None else [f" --worker {worker} "])
        found = [pid for pid, line in running_children(self.process.pid).items() if all(mark in line for mark in marks)]
        assert len(found) <= 1, found
        return found[0] if found else None

    def pid(self, command: str, worker: int | None = None) -> int:
        """Return the process id of a running child."""
        found = self.find(command, worker)
        assert found is not None, f"{command} does not run now"
        return found

    def stop(self) -> int:
        """Stop it with SIGTERM; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(120)


def post(url: str, body: bytes, trusting: ssl.SSLContext | None = None) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=60, context=trusting) as answer:  # noqa: S310
        return answer.status, json.loads(answer.read())


def start(data: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> Pipeline:
    """Start it and wait until it is ready."""
    if "kafka" in arguments:
        copy_formatted_store(data)
    port = find_free_port()
    ports = {"SMSPULSE_BROKER_PORT": "0", "SMSPULSE_BROKER_CONTROLLER_PORT": "0"}
    log = data.with_name(data.name + ".log")
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "smspulse", "up", "--data", str(data), "--port", str(port), *arguments],
            env={**os.environ, **ports, **(environment or {})},
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
            # Otherwise, a killed test would leave a pipeline that restarts its processes without end.
            preexec_fn=die_with_parent(signal.SIGTERM),  # noqa: PLW1509 - safe after a fork
            umask=0o022,  # the usual one, with which others may read
        )
    scheme = "https" if environment and "SMSPULSE_INGEST_TLS_CERT" in environment else "http"
    pipeline = Pipeline(process, data, f"{scheme}://127.0.0.1:{port}", log)
    while not any(line.startswith("ready after") for line in log.read_text().splitlines()):
        if process.poll() is not None:
            raise AssertionError(log.read_text())
        time.sleep(0.05)  # no event is available across processes
    return pipeline
