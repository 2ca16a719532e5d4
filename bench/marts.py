"""Measures the warehouse: marts, look-ups by key, rebuild, bytes a message. `make bench-warehouse [ARGS=--quick]`."""

import argparse
import random
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
from measure import alone, our
from parquet import fill_messages, fill_raw

from smspulse.dashboard.queries import PageFilter, PageSnapshot
from smspulse.dashboard.rendering import render_content
from warehouse import catalog
from warehouse.reader import open_warehouse

DAYS = 28
FULL, QUICK = 10_000_000, 280_000
REPEATS = 12
_RANDOM = random.Random(1)  # noqa: S311 - not for secrets
BY_DAY = ("delivery_hourly", "latency_hourly", "delivery_daily", "delivery_by_prefix", "funnel", "webhook_quality")
"""Marts that are queried for a week."""
BY_DEVICE = ("delivery_hourly", "delivery_by_device", "failure_reasons", "device_health", "stuck_messages")


def figure(name: str, value: float, goal: str = "") -> None:
    """Print a figure."""
    print(f"figure {name} {value:.3f}" + (f" goal {goal}" if goal else ""), flush=True)


def p95(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Return the 95th percentile of the milliseconds that a call takes."""
    run()  # the first call opens the files
    took = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        took.append((time.perf_counter() - start) * 1000)
    return sorted(took)[int(0.95 * len(took))]


def rebuild(data: Path) -> tuple[float, float]:
    """Run `smspulse rebuild --all`; return its seconds and its peak memory in GB."""
    code, took, peak = alone([*our("rebuild"), "--data", str(data), "--all"])
    if code:
        sys.exit(f"rebuild ended with {code}")
    return took, peak / 1000


def marts(connection: Any, end: date) -> None:
    """Query every mart for a week, and for a device."""
    weeks = [(end - timedelta(7 + back), end - timedelta(back)) for back in range(0, DAYS - 7, 3)]
    for name in BY_DAY:

        def week(name: str = name) -> None:
            since, until = _RANDOM.choice(weeks)
            # As `warehouse.query(…, arrow=True)`: a week by the hour and device is a hundred thousand rows, of which
            # Python's objects alone would take longer.
            connection.sql(f"FROM {name} WHERE day >= '{since}' AND day < '{until}'").to_arrow_table()

        figure(f"{name}_week_p95_ms", p95(week), "<= 250")
    for name in BY_DEVICE:

        def device(name: str = name) -> None:
            device_id = 8001 + _RANDOM.randrange(6) + _RANDOM.randrange(50) * 10
            connection.execute(f"FROM {name} WHERE device_id = {device_id}").fetchall()

        figure(f"{name}_device_p95_ms", p95(device), "<= 100")
    keys = connection.execute("SELECT message_key FROM messages USING SAMPLE 200").fetchall()
    look_up = "FROM messages WHERE message_key = ?"
    took = p95(lambda: connection.execute(look_up, _RANDOM.choice(keys)).fetchall(), 50)
    figure("message_by_key_p95_ms", took, "<= 20")


def size(data: Path, dataset: str) -> int:
    """Return the bytes of a dataset's files."""
    return sum(path.stat().st_size for path in data.glob(f"{dataset}/date=*/*.parquet"))


def over_json_lines(data: Path, dataset: str, day: date) -> float:
    """Return the bytes of a day's files over those of the same rows as JSON lines with zstd."""
    lines, sample = data / "lines.json.zst", f"{data}/{dataset}/date={day}/*.parquet"
    replace = "REPLACE (body::VARCHAR AS body)" if dataset == "raw" else ""
    with duckdb.connect() as plain:
        rows = f"SELECT * {replace} FROM '{sample}'"  # noqa: S608 - ours
        plain.execute(f"COPY ({rows}) TO '{lines}' (FORMAT json, COMPRESSION zstd)")
    return sum(path.stat().st_size for path in data.glob(f"{dataset}/date={day}/*.parquet")) / lines.stat().st_size


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer messages, under a minute")
    parser.add_argument("--messages", type=int)
    options = parser.parse_args()
    messages = options.messages or (QUICK if options.quick else FULL)
    end = datetime.now(UTC).date()
    with TemporaryDirectory() as folder:
        data = Path(folder)
        catalog.publish_views(data)
        start = time.perf_counter()
        reports = fill_raw(data, messages, DAYS, end)
        print(f"{reports:,} status reports written in {time.perf_counter() - start:.0f} s")
        rebuild(data)
        fill_messages(data)
        took, memory = rebuild(data)
        subprocess.run([*our("compact"), "--data", str(data)], stdout=sys.stderr, check=True)
        with open_warehouse(data) as connection:
            count = connection.execute("SELECT count(*) FROM messages").fetchall()[0][0]
            print(f"{count:,} messages rebuilt and compared in {took:.1f} s")
            figure("rebuilt_reports_per_s", reports / took, ">= 1000000")
            figure("rebuild_memory_gb", memory, "<= 4")
            for dataset in ("raw", "base"):
                figure(f"{dataset}_bytes_a_message", size(data, dataset) / count)
                ratio = over_json_lines(data, dataset, end - timedelta(1))
                figure(f"{dataset}_bytes_over_json_lines_with_zstd", ratio)
            marts(connection, end)
        numbers = PageSnapshot(data, dict)
        figure("page_first_numbers_s", numbers.refresh(), "<= 2")
        # The data end at midnight: the later the day, the fewer are in the page's last 24 hours.
        hours = numbers.query_view("delivery_now", PageFilter(), "FROM asked WHERE source IS NULL AND hours = 24")
        figure("page_messages", hours[0]["attempted"])
        figure("page_answered_p95_ms", p95(lambda: render_content(numbers, PageFilter())), "<= 500")


if __name__ == "__main__":
    main()
