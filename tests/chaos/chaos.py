"""Kill processes of a running pipeline at random, under traffic, and compare every message with its truth.

    python tests/chaos/chaos.py [--kills 20] [--rate 100] [--seed 1]

A kill is recovered when a webhook sent after it is readable by SQL; that includes up to 5 s until the next landing.
Exits with 0 when nothing was lost, counted twice or wrong.
"""

import argparse
import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

from running import SETTLE_S, Pipeline, post, start

from smspulse.simulator.stories import stories
from smspulse.simulator.traffic import simulate
from smspulse.truth import Comparison, compare

COMMANDS = ("stream", "land", "ingest", "broker")


def probe(pipeline: Pipeline, url: str, number: int) -> float:
    """Send a webhook until it is accepted, wait until SQL shows it, return the seconds that took."""
    began = time.monotonic()
    body = b'{"sms_id": %d, "status_id": 7, "device_id": 1}' % number
    while time.monotonic() - began < SETTLE_S:
        try:
            post(url, body)
            break
        except OSError:
            time.sleep(0.1)
    pipeline.wait_for("SELECT 1 FROM messages WHERE source = 'probe' AND sms_id = ?", number)
    return time.monotonic() - began


async def hurt(pipeline: Pipeline, truth: Path, kills: int, rate: float, seed: int) -> dict[str, list[float]]:
    """Kill processes while traffic flows; return the seconds of each recovery by process."""
    rng = random.Random(seed)  # noqa: S311 - repeatable on purpose
    recoveries: dict[str, list[float]] = {command: [] for command in COMMANDS}
    stop = asyncio.Event()
    url, probe_url = pipeline.source("chaos"), pipeline.source("probe")
    traffic = asyncio.create_task(
        simulate(
            url, stories(seed, None), rate=rate, truth=truth, time_scale=0.2, max_delay_s=5, timeout_s=20, stop=stop
        )
    )
    for number in range(kills):
        await asyncio.sleep(rng.uniform(0.5, 4))
        command = rng.choice(COMMANDS)
        os.kill(pipeline.pid(command), signal.SIGKILL)
        took = await asyncio.to_thread(probe, pipeline, probe_url, number)
        recoveries[command].append(took)
        print(f"kill {number + 1}/{kills}: {command}, recovered after {took:.1f} s", flush=True)
    stop.set()
    await traffic
    return recoveries


def settle(pipeline: Pipeline, truth: Path) -> Comparison:
    """Wait until everything has landed, or for a minute, and compare."""
    deadline = time.monotonic() + SETTLE_S
    while not (comparison := compare(pipeline.data, truth)).ok and time.monotonic() < deadline:
        time.sleep(1)
    return comparison


def main() -> int:
    """Run it and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rate", type=float, default=100, help="messages a second; each has some five webhooks")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pipeline = start(Path(folder) / "data", "--broker", "kafka")
        reader = subprocess.Popen(["cat"], stdin=pipeline.process.stdout, stdout=subprocess.DEVNULL)
        truth = Path(folder) / "truth.jsonl"
        try:
            recoveries = asyncio.run(hurt(pipeline, truth, options.kills, options.rate, options.seed))
            found = settle(pipeline, truth)
        finally:
            pipeline.process.send_signal(signal.SIGTERM)
            pipeline.process.wait(30)
            reader.wait(10)
    print(f"\n{'process':10} {'kills':>6} {'recovered p50':>14} {'max':>7}")
    for command, times in recoveries.items():
        if times:
            print(f"{command:10} {len(times):>6} {statistics.median(times):>12.1f} s {max(times):>5.1f} s")
    lost = found.accepted - found.landed + len(found.missing)
    print(
        f"\n{found.accepted:,} webhooks accepted, {found.messages:,} messages: "
        f"{lost} lost, {found.landed_twice} counted twice, {len(found.differences)} wrong\n{found.line()}"
    )
    return 0 if found.ok else 1


if __name__ == "__main__":
    sys.exit(main())
