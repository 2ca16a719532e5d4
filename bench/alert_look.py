"""Cost of one evaluation of the alert rules: a warehouse of 5,000 devices and some millions of messages.

    python bench/alert_look.py [--quick]

The first look reads 28 days, as one an hour does; those that follow read two.
"""

import argparse
import resource
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.remove(str(Path(__file__).parent))  # its streams.py would hide the package
sys.path.append(str(Path(__file__).parent))

from measure import figure, our
from parquet import fill_messages, fill_raw

from smspulse.alerting.rules import WarehouseRules
from warehouse import catalog

DEVICES, MESSAGES, DAYS = 5_000, 4_200_000, 28
TIMES = 5


def filled(data: Path, devices: int, messages: int) -> datetime:
    """Fill a data folder up to a time of its last day, and return the time."""
    end = datetime.now(UTC).date()
    fill_raw(data, messages, DAYS, end, devices)
    catalog.publish_views(data)
    for fill in (fill_messages, None):  # the second time, the versions are in base files
        subprocess.run([*our("rebuild"), "--data", str(data), "--all"], check=True, stdout=subprocess.DEVNULL)
        if fill:
            fill(data)
    subprocess.run([*our("compact"), "--data", str(data)], check=True, stdout=subprocess.DEVNULL)
    return datetime(end.year, end.month, end.day, tzinfo=UTC) - timedelta(hours=2)


def looked(data: Path, at: datetime) -> list[float]:
    """Evaluate the rules twice; return the seconds of each evaluation."""
    warehouse, took = WarehouseRules(data), []
    for minute in range(TIMES):
        began = time.perf_counter()
        warehouse.read_findings(int((at + timedelta(minutes=minute)).timestamp() * 1000))
        took.append(time.perf_counter() - began)
    return took


def main() -> None:
    """Run the benchmark, with `--quick` on a tenth of the data."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of devices and messages")
    part = 10 if parser.parse_args().quick else 1
    with TemporaryDirectory() as folder:
        # In its own process, so that the memory for the data is not counted.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            at = pool.submit(filled, Path(folder), DEVICES // part, MESSAGES // part).result()
        first, *others = looked(Path(folder), at)
    figure("alert_look_s", max(others), "<= 1")
    figure("alert_hourly_look_s", first)
    figure("alert_look_peak_mb", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


if __name__ == "__main__":
    main()
