"""Injects every fault into simulated days, checks clean days, and measures. `make bench-checks [ARGS=--quick]`.

Writes docs/faults.md: which check saw which fault.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]  # before this folder, which has a `streams` too

from data_faults import COULD_NOT_RUN, FAULTS  # noqa: E402 - found by the line above
from days import LAST, Days, weeks  # noqa: E402
from measure import alone, figure, our  # noqa: E402
from parquet import SCENARIOS, fill_messages, fill_raw  # noqa: E402

from expectations.errors import UnreadableDataError  # noqa: E402
from expectations.runner import run_checks  # noqa: E402
from expectations.settings import CheckSettings  # noqa: E402
from warehouse import catalog  # noqa: E402

MESSAGES = 1_920  # a day
HISTORY = 29
CLEAN, CLEAN_QUICK = 100, 5
MILLION, MILLION_QUICK = 1_000_000, 100_000


def found(data: Path, end: datetime) -> dict[str, str]:
    """Return the checks that do not hold, with their severity."""
    try:
        report = run_checks(data, CheckSettings(), end)
    except UnreadableDataError:
        return {COULD_NOT_RUN: "exit code 2"}
    return {row.expectation: row.severity for row in report.rows if not row.success}


def inject(world: Path, end: datetime, name: str) -> dict[str, str]:
    """Return the checks that detect a fault."""
    fault = FAULTS[name]
    # Views name the folder that they read, so each process has its own folder, published once.
    data = world.with_name(f"faulty-{os.getpid()}")
    right = data.with_suffix(".right")
    if not right.exists():
        shutil.copytree(world, data)
        catalog.publish_views(data)
        data.rename(right)
    shutil.rmtree(data, ignore_errors=True)
    if fault.silent:
        weeks(data, 1, MESSAGES, back=(14, 7), skip=fault.silent)
    else:
        shutil.copytree(right, data)
    fault.inject(data)
    return found(data, end)


def faults(scratch: Path) -> None:
    """Inject each fault, and write the table."""
    world, start = scratch / "world", time.perf_counter()
    end = weeks(world, 1, MESSAGES)
    if alarms := found(world, end):
        sys.exit(f"false alarms before any fault: {alarms}")
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:  # a fork has no copy of DuckDB's threads
        failed = dict(zip(FAULTS, pool.map(partial(inject, world, end), FAULTS), strict=True))
    lines, seen = [], 0
    for name, fault in FAULTS.items():
        missed = set(fault.seen_by) - failed[name].keys()
        seen += not missed
        if missed:
            print(f"{name}: not seen by {', '.join(sorted(missed))}, but by {', '.join(failed[name]) or 'none'}")
        detected = ", ".join(f"`{check}` ({failed[name][check]})" for check in fault.seen_by if check in failed[name])
        others = ", ".join(f"`{check}`" for check in failed[name] if check not in fault.seen_by)
        lines.append(f"| {name} | {detected or 'none'} | {others} |")
    head = (
        "# Faults, and the checks that see them\n\nWritten by `make bench-checks`: each fault is injected into "
        f"landed files of {LAST}, the last of eleven\nsimulated days of {MESSAGES:,} messages, and everything is "
        "checked. Without a fault nothing fails.\n\n| fault | seen by | and by |\n|---|---|---|\n"
    )
    foot = (
        "\n\nSilence is traffic, not data: the alert [silent](runbooks/silent.md) covers a device, a source or all "
        "sources that stop.\n"
    )
    (ROOT / "docs" / "faults.md").write_text(head + "\n".join(lines) + foot)
    print(f"{len(FAULTS)} faults injected in {time.perf_counter() - start:.0f} s")
    figure("faults_seen", seen, f">= {len(FAULTS)}")


def clean(scratch: Path, count: int) -> None:
    """Check successive days, each with its own seed and four weeks of history; count false alarms."""
    data = scratch / "clean"
    days = Days(data, 7, MESSAGES)
    first, alarms = LAST - timedelta(days=HISTORY + count), 0
    for number in range(HISTORY + count):
        day = first + timedelta(days=number)
        end = days.simulate_day(day)
        for dataset in ("raw", "messages", "deadletters"):  # as retention does
            shutil.rmtree(data / dataset / f"date={day - timedelta(days=HISTORY + 1)}", ignore_errors=True)
        if number >= HISTORY and (failed := found(data, end)):
            print(f"false alarm on {day}: {failed}")
            alarms += 1
    print(f"{count} clean days of {MESSAGES:,} messages checked")
    figure("false_alarms", alarms, "<= 0")


def million(scratch: Path, messages: int) -> None:
    """Measure the command over many messages."""
    data = scratch / "many"
    catalog.publish_views(data)
    messages = max(messages // SCENARIOS, 28) * SCENARIOS  # every scenario at least once a day
    reports = fill_raw(data, messages, 28, datetime.now(UTC).date())
    subprocess.run([*our("rebuild"), "--data", str(data), "--all"], check=True, stdout=subprocess.DEVNULL)
    fill_messages(data)
    subprocess.run([*our("rebuild"), "--data", str(data), "--all"], check=False, stdout=subprocess.DEVNULL)
    code, took, peak = alone([*our("check"), "--data", str(data)])
    if code not in {0, 1}:
        sys.exit("the checks could not run")
    print(f"{messages:,} messages and {reports:,} webhooks checked, import and start included")
    figure("checked_million_s", took * MILLION / messages, "<= 10")
    figure("check_memory_mb", peak, "<= 800")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer days and messages, and no table")
    parser.add_argument("--only", choices=("faults", "clean", "million"))
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        scratch = Path(folder)
        if options.only in {None, "faults"} and not (options.quick and options.only is None):
            faults(scratch)
        if options.only in {None, "clean"}:
            clean(scratch, CLEAN_QUICK if options.quick else CLEAN)
        if options.only in {None, "million"}:
            million(scratch, MILLION_QUICK if options.quick else MILLION)


if __name__ == "__main__":
    main()
