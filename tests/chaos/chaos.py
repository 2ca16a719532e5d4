"""Inject faults into a running pipeline under traffic, and check every record and every message afterwards.

    make chaos                                             20 faults at random
    make chaos ARGS="--kills 100 --workers 3 --seed 7"
    make chaos ARGS="--faults stream:stop-begin,broker:kill"
    make chaos ARGS="--mutation no-fence"                  with an injected fault: the counts must be above 0

The pipeline has recovered from a fault when a webhook of each partition, sent after the fault, has landed. This
includes up to 5 s until the next landing. A quarter of the random faults occur before the previous recovery.

Exits with 0 if nothing was lost, counted twice or wrong, with 1 if something was, with 2 if the run failed.
"""

import argparse
import asyncio
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "support"))

from faults import SESSION_S, WEIGHTS, Faults, NotInflictedError, NotRecoveredError
from judge import judge
from running import Pipeline, start

from smspulse.simulator.client import Simulation, SimulationTotals
from smspulse.simulator.scenarios import generate_scenarios

MUTATIONS = {"no-fence": ["stream:stop-begin"], "offsets-outside": ["stream:kill-commit"]}
"""Each mutation, and the faults that expose it."""
_HURRY = 0.25
_TAILS_S = 4.0


async def inject_faults(
    pipeline: Pipeline, faults: Faults, plan: list[str], truth: Path, rate: float, seed: int, *, hurry: float
) -> tuple[dict[str, list[float]], SimulationTotals, float]:
    """Inject the faults under traffic; return recoveries by fault, the traffic, and its webhooks a second."""
    stop = asyncio.Event()
    recoveries: dict[str, list[float]] = {}
    url = pipeline.source("chaos")
    scenarios = generate_scenarios(seed, None)
    seen: list[SimulationTotals] = []

    def sent() -> int:
        return seen[0].accepted if seen else 0

    traffic = asyncio.create_task(
        Simulation(
            *(url, scenarios),
            rate=rate,
            truth=truth,
            time_scale=0.2,
            max_delay_s=5,
            timeout_s=20,
            grace_s=_TAILS_S,
            stop=stop,
            on_progress=lambda totals: seen.append(totals) if not seen else None,
        ).run()
    )

    async def recovered(number: int, kind: str) -> None:
        took = await faults.recovery()
        recoveries.setdefault(kind, []).append(took)
        print(f"{number}/{len(plan)} {kind}, recovered after {took:.1f} s", flush=True)

    began, before = time.monotonic(), sent()
    try:
        async with asyncio.TaskGroup() as group:
            await faults.warm_up()
            began, before = time.monotonic(), sent()
            for number, fault in enumerate(plan, 1):
                await asyncio.sleep(faults.rng.uniform(0.2, 2))
                under_way = group.create_task(recovered(number, await faults.inflict(fault)))
                if faults.rng.random() >= hurry:
                    await asyncio.wait([under_way])
    finally:
        rate = (sent() - before) / (time.monotonic() - began)
        stop.set()
        totals = await traffic
    return recoveries, totals, rate


def table(recoveries: dict[str, list[float]]) -> str:
    lines = [f"{'process':8} {'fault':28} {'times':>5} {'recovered p50':>14} {'max':>8}"]
    for kind, times in sorted(recoveries.items()):
        process, _, fault = kind.partition(":")
        lines.append(f"{process:8} {fault:28} {len(times):>5} {statistics.median(times):>12.1f} s {max(times):>6.1f} s")
    return "\n".join(lines)


def run(options: argparse.Namespace, folder: Path) -> int:
    rng = random.Random(options.seed)  # noqa: S311 - repeatable on purpose
    insist = True
    if options.faults:
        plan, hurry = options.faults.split(","), 0.0
    elif options.mutation != "none" and options.kills is None:
        plan, hurry = MUTATIONS[options.mutation], 0.0
    else:
        plan, hurry = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=options.kills or 20), _HURRY
        insist = False
    triggers = folder / "triggers"
    triggers.mkdir()
    hook = str(Path(__file__).parent / "hook")
    environment = {
        "PYTHONPATH": os.pathsep.join(filter(None, (hook, os.environ.get("PYTHONPATH")))),
        "SMSPULSE_CHAOS": str(triggers),
        "SMSPULSE_CHAOS_MUTATION": options.mutation,
        "SMSPULSE_STREAM_SESSION_TIMEOUT_S": str(SESSION_S),
        "SMSPULSE_LANDER_SESSION_TIMEOUT_S": str(SESSION_S),
    }
    if options.mutation != "none":
        # A transaction that is not fenced hides all later records from readers until it ends.
        environment["SMSPULSE_STREAM_TRANSACTION_TIMEOUT_S"] = str(2 * SESSION_S)
    # The page and alerts only read.
    arguments = ("--broker", "kafka", "--workers", str(options.workers), "--without", "page", "--without", "alerts")
    pipeline = start(folder / "data", *arguments, environment=environment)
    try:
        if pipeline.log.read_text().count(f"hooked, mutation {options.mutation}") < options.workers:
            print(f"the workers were not hooked, see {pipeline.log}", file=sys.stderr)
            return 2
        faults = Faults(pipeline, options.workers, triggers, rng, insist)
        failed = missed = ""
        try:
            truth = folder / "truth.jsonl"
            recoveries, totals, a_second = asyncio.run(
                inject_faults(pipeline, faults, plan, truth, options.rate, options.seed, hurry=hurry)
            )
        except* NotInflictedError as errors:
            missed = "; ".join(map(str, errors.exceptions))
        except* NotRecoveredError as errors:
            failed = "; ".join(map(str, errors.exceptions))
        if missed:
            print(f"NOT INFLICTED: {missed}")
            return 2
        if failed:
            print(f"NOT RECOVERED: {failed}")
            return 1
        found = judge(pipeline, truth)
    finally:
        pipeline.stop()
    print(f"\n{table(recoveries)}\n")
    ended = re.findall(r"smspulse │ (\S+) ended with code (\d+)", pipeline.log.read_text(errors="replace"))
    if ended:
        counts = [f"{name} {sum(each == name for each, _ in ended)}" for name in sorted({name for name, _ in ended})]
        print(f"processes that ended and were restarted: {', '.join(counts)}")
    print(
        f"{totals.accepted:,} webhooks accepted ({a_second:.0f}/s over all faults, {totals.retried:,} sent again), "
        f"{found.messages:,} messages, {found.versions:,} versions"
    )
    for problem in found.problems():
        print(f"  {problem}")
    print(f"{found.line}\n")
    print(f"{found.lost.total():,} lost, {found.twice.total():,} counted twice, {found.wrong.total():,} wrong")
    return 0 if found.ok else 1


def main() -> int:
    """Run the faults and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, help="number of random faults, 20 by default")
    parser.add_argument("--faults", help=f"these faults in this order, of {', '.join(WEIGHTS)}")
    parser.add_argument("--workers", type=int, default=2, help="stream workers")
    parser.add_argument("--rate", type=float, default=120, help="messages a second; each has some five webhooks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep",
        type=Path,
        help="folder of all files, which is kept",
    )
    parser.add_argument("--mutation", choices=["none", *MUTATIONS], default="none")
    options = parser.parse_args()
    if options.faults and (unknown := set(options.faults.split(",")) - WEIGHTS.keys()):
        parser.error(f"unknown faults: {', '.join(sorted(unknown))}")
    folder = options.keep or Path(tempfile.mkdtemp(prefix="smspulse-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    code = run(options, folder)
    if code == 0 and not options.keep:
        shutil.rmtree(folder)
    elif code:
        print(f"kept for inspection: {folder}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
