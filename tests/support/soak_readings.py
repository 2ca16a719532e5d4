"""Readings of a running pipeline from outside: its processes, files, log, lag, queries and checks.

They disturb the pipeline little. A sample reads `/proc` and lists folders. Checks run with the lowest priority. A query
is repeated only while it is fast.
"""

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from running import running_children
from soak_figures import ProcessReading, Sample

from smspulse.processes.children import die_with_parent
from warehouse.catalog import publish_views
from warehouse.datasets import DATASET_NAMES
from warehouse.maintenance.atomic_replace import lock_maintenance
from warehouse.reader import query

QUERIES: Final = {
    "messages_count": "SELECT count(*) FROM messages",
    "message_by_id": "FROM messages WHERE message_key = ?",
    "device_health": "FROM device_health",
    "delivery_hourly": "FROM delivery_hourly",
    "delivery_now": "FROM delivery_now",
    "latency_now": "FROM latency_now",
}
_COMMAND: Final = re.compile(r"-m smspulse (\S+)(?:.* --worker (\S+))?")
_NAMES: Final = {"land": "lander", "java": "kafka"}
_STATUS: Final = re.compile(r"^(VmRSS|RssAnon):\s+(\d+) kB$", re.MULTILINE)
_BYTES_PER_KB: Final = 1024
_BYTES_PER_BLOCK: Final = 512
_READY: Final = "ready after"


def take_sample(pid: int, data: Path, at_s: float) -> Sample:
    """Read all processes of the pipeline with this process id, and count its live files."""
    processes: dict[str, ProcessReading] = {}
    for each, name in _descendants(pid, "up"):
        try:
            reading = _read_process(each)
        except (FileNotFoundError, ProcessLookupError):
            continue
        # A process that has ended, but whose parent has not read its exit code, has no memory.
        if reading is not None:
            processes[_unique_name(name, processes)] = reading
    return Sample(at_s, processes, count_live_files(data))


def _descendants(pid: int, name: str) -> Iterator[tuple[int, str]]:
    yield pid, name
    for child, command in sorted(running_children(pid).items()):
        yield from _descendants(child, name_process(command))


def name_process(command: str) -> str:
    """Return the name of a process by its command line, as its lines of the log have it."""
    found = _COMMAND.search(command)
    if found is None:
        program = Path(command.partition(" ")[0]).name
        return _NAMES.get(program, program)
    if found[1] == "stream":
        return f"stream-{found[2]}"
    return _NAMES.get(found[1], found[1])


def _unique_name(name: str, taken: dict[str, ProcessReading]) -> str:
    """Return the name, with a number if another process has it: ingest can have several."""
    unique, number = name, 1
    while unique in taken:
        number += 1
        unique = f"{name}-{number}"
    return unique


def _read_process(pid: int) -> ProcessReading | None:
    memory = {
        name: int(kb) * _BYTES_PER_KB / 1e6 for name, kb in _STATUS.findall(Path(f"/proc/{pid}/status").read_text())
    }
    if not memory:
        return None
    return ProcessReading(pid, memory["VmRSS"], memory["RssAnon"], len(os.listdir(f"/proc/{pid}/fd")))


def count_live_files(data: Path) -> dict[str, int]:
    """Return the number of Parquet files by dataset, `base/{rollup}` apart from `base`."""
    files: Counter[str] = Counter()
    for folder in (*data.glob("[!.]*/date=*"), *data.glob("base/*/date=*")):
        # A merge may exchange the folder meanwhile.
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            continue
        files[folder.parent.relative_to(data).as_posix()] += sum(name.endswith(".parquet") for name in names)
    return dict(files)


def copy_warehouse(data: Path, target: Path) -> None:
    """Copy the datasets of a running pipeline as hard links, since files are never changed; publish the views."""
    folders = {name.partition("/")[0] for name in DATASET_NAMES}
    # So that no file is replaced meanwhile.
    with lock_maintenance(data):
        for name in sorted(folders):
            shutil.copytree(data / name, target / name, copy_function=os.link)
    publish_views(target)


def disk_use_mb(folder: Path) -> float:
    """Return the disk use of a folder in 10^6 bytes. Sparse files count as what they occupy."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            # Files are deleted all the time.
            try:
                total += os.lstat(os.path.join(path, name)).st_blocks * _BYTES_PER_BLOCK
            except FileNotFoundError:
                continue
    return total / 1e6


def lines_after_ready(log: Path) -> list[str]:
    """Return the lines of the log after the one that says "ready"."""
    lines = log.read_text(errors="replace").splitlines()
    ready = next(number for number, line in enumerate(lines) if line.startswith(_READY))
    return lines[ready + 1 :]


def time_queries(data: Path, key: str, *, repeats: int, budget_s: float) -> dict[str, float]:
    """Return the median milliseconds of each query. Each opens the warehouse, as `smspulse sql` does.

    Args:
        data: The data folder.
        key: The `message_key` of a message.
        repeats: Most repetitions of a query.
        budget_s: Seconds after which a query is not repeated.
    """
    return {name: _time_query(data, name, key, repeats, budget_s) for name in QUERIES}


def _time_query(data: Path, name: str, key: str, repeats: int, budget_s: float) -> float:
    parameters = [key] if name == "message_by_id" else []
    times: list[float] = []
    while not times or (len(times) < repeats and sum(times) < budget_s):
        began = time.perf_counter()
        rows = query(data, QUERIES[name], parameters, arrow=True)
        times.append(time.perf_counter() - began)
        if not rows.num_rows:
            msg = f"{QUERIES[name]} returned no row, so its time says nothing"
            raise AssertionError(msg)
    return statistics.median(times) * 1000


class CheckRuns:
    """Runs of `smspulse check`, one at a time, in a process of lowest priority.

    Args:
        data: The data folder.
        folder: Folder of the output of the last run.

    Attributes:
        failed: For each run that has ended, the names of the checks that failed.
    """

    def __init__(self, data: Path, folder: Path) -> None:
        self._command = [*(sys.executable, "-m", "smspulse", "check", "--data", str(data), "--format", "json")]
        # Not pipes, whose buffer a long result would fill while nobody reads it.
        self._output, self._errors = folder / "checks.json", folder / "checks.log"
        self._running: subprocess.Popen[bytes] | None = None
        self.failed: list[list[str]] = []

    def start(self) -> None:
        """Start a run, unless one is under way. The run is killed when the calling thread ends."""
        if self._running is not None:
            return
        tie = die_with_parent()
        with self._output.open("wb") as output, self._errors.open("wb") as errors:
            self._running = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                preexec_fn=lambda: (tie(), os.nice(19)),  # noqa: PLW1509 - safe after a fork
            )

    def collect(self, *, wait: bool = False) -> None:
        """Read the result of the run under way, if it has ended or `wait` is set."""
        if self._running is None or (not wait and self._running.poll() is None):
            return
        code = self._running.wait()
        self._running = None
        output, errors = (path.read_text(errors="replace") for path in (self._output, self._errors))
        self.failed.append(read_failed_checks(code, output, errors))


def read_failed_checks(code: int, output: str, errors: str) -> list[str]:
    """Return the names of the failed checks in the output of `smspulse check --format json`."""
    if code not in {0, 1}:
        last = (errors.strip().splitlines() or [""])[-1]
        return [f"the checks ended with {code}: {last}"]
    expectations: list[dict[str, Any]] = json.loads(output)["expectations"]
    if not expectations:
        return ["no check was run"]
    return [f"{each['expectation']}: {each['observed']}" for each in expectations if not each["success"]]
