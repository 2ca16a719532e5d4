"""A running `smspulse up`, for tests that hurt it from outside."""

import json
import os
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.sources import add_source, webhook_url
from smspulse.processes import free_port
from warehouse.errors import NoWarehouseError
from warehouse.read import query

SETTLE_S = 60


@dataclass
class Pipeline:
    """A running `smspulse up`."""

    process: subprocess.Popen[str]
    data: Path
    url: str

    def source(self, name: str) -> str:
        return webhook_url(self.url, name, add_source(self.data, name))

    def rows(self, sql: str, *parameters: Any) -> list[Any]:
        return list(query(self.data, sql, parameters).itertuples(index=False))

    def wait_for(self, sql: str, *parameters: Any, within: float = SETTLE_S) -> list[Any]:
        """Return the rows of a query as soon as there are any."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            try:
                if rows := self.rows(sql, *parameters):
                    return rows
            except NoWarehouseError:
                pass
            time.sleep(0.1)  # there is nothing to await across processes: files appear
        raise AssertionError(f"no rows within {within} s: {sql} {parameters}")

    def pid(self, command: str) -> int:
        """Return the process of a child by its command."""
        listed = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="], capture_output=True, text=True, check=True
        )
        (found,) = [line for line in listed.stdout.splitlines() if f"-m smspulse {command} " in line]
        return int(found.split()[0])


def post(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})  # noqa: S310 - loopback
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return answer.status, json.loads(answer.read())


def start(data: Path, *arguments: str) -> Pipeline:
    port = free_port()
    environment = {**os.environ, "SMSPULSE_BROKER_PORT": "0", "SMSPULSE_BROKER_CONTROLLER_PORT": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "smspulse", "up", "--data", str(data), "--port", str(port), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    pipeline = Pipeline(process, data, f"http://127.0.0.1:{port}")
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if line.startswith("ready after"):
            return pipeline
    raise AssertionError("".join(seen))
