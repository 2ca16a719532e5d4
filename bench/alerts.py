"""The detector of rising failure ratios beside other rules, in simulated traffic with seeds.

How many messages each needs from the moment that failures rise, all set to one false alarm in thirty days; how often
ours is wrong in traffic in which nothing is; and how many ends of messages it takes a second, on one core.

    python bench/alerts.py [--quick]

Ends with 2 if a peer could not be set up.
"""

# ruff: noqa: S311 - traffic, not secrets

import argparse
import copy
import json
import multiprocessing
import random
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.remove(str(Path(__file__).parent))  # its streams.py is a benchmark, and not the room
sys.path.append(str(Path(__file__).parent))

from alert_traffic import DAY_S, Rule, Traffic, burn_rate_rule, delays, ewma_rule, ratio_rule, threshold
from measure import figure
from peers.environments import HERE, PeerMissingError, python_peer

from streams.detector import Detector

BUDGET_DAYS = 30.0
RISES = (0.1, 0.2, 0.5, 1.0)
SEED = 8
GOALS = {
    (0.02, 20_000): ((125, 290), (38, 85), (11, 25), (5, 6)),
    (0.5, 20_000): ((200, 400), (52, 110), (14, 28), (6, 7)),
    (0.02, 2_000): (None, (45, 105), None, None),
    (0.02, 200): (None, (62, 145), None, None),
}
"""By messages a second and messages learnt from: median and 95 % quantile of messages for each rise."""
PER_BASELINE = 5
"""Repetitions with one learnt baseline."""


@dataclass(frozen=True, slots=True)
class Calm:
    """Traffic in which nothing is wrong.

    Args:
        name: For the table.
        traffic: It.
        learnt: Messages that the baseline was learnt from before false alarms count.
    """

    name: str
    traffic: Traffic
    learnt: int = 2_000


CALM = (
    Calm("baseline_0.5", Traffic(ratio=0.005)),
    Calm("baseline_1", Traffic(ratio=0.01)),
    Calm("baseline_3", Traffic()),
    Calm("baseline_3_learnt_from_20000", Traffic(), 20_000),
    Calm("baseline_3_learnt_from_200", Traffic(), 200),
    Calm("baseline_8", Traffic(ratio=0.08)),
    Calm("baseline_15", Traffic(ratio=0.15)),
    Calm("baseline_15_learnt_from_200", Traffic(ratio=0.15), 200),
    Calm("clustered_3", Traffic(repeat=0.2)),
    Calm("clustered_3_learnt_from_200", Traffic(repeat=0.2), 200),
    Calm("clustered_15", Traffic(ratio=0.15, repeat=0.2)),
    Calm("rhythm_of_a_third", Traffic(rhythm=1 / 3, swing=0.8)),
    Calm("rhythm_of_a_half", Traffic(rhythm=1 / 2, swing=0.8)),
    Calm("drift_by_a_quarter_in_30_days", Traffic(drift=1.25), 20_000),
    Calm("drift_by_half_in_30_days", Traffic(drift=1.5), 20_000),
    Calm("fast_traffic", Traffic(rate=0.1), 20_000),
)


def learnt(traffic: Traffic, messages: int, seed: int, fleet: float) -> tuple[Detector, float]:
    """Return a detector that has seen so many messages, and the time of the last one."""
    detector, at = Detector(), 0.0
    for failed, at in traffic.ends(random.Random(seed)):
        detector.take(failed, int(at * 1000), BUDGET_DAYS, fleet)
        messages -= 1
        if not messages:
            break
    if detector.phase == "firing":
        detector.end()
    return detector, at


def our_delays(task: tuple[float, int, float, int]) -> tuple[int, int]:
    """Return median and 95 % quantile of the messages that ours needs: rate, history, rise, repetitions."""
    rate, history, to, repetitions = task
    traffic, chance, found = Traffic(rate), random.Random(SEED), []
    before, since = Detector(), 0.0
    while len(found) < repetitions:
        if len(found) % PER_BASELINE == 0:
            before, since = learnt(traffic, history, chance.randrange(1 << 30), traffic.ratio)
        detector, at = copy.deepcopy(before), since
        # Not from the same message on each time: a moment later, when nothing has been said about it yet.
        for failed, at in traffic.ends(chance, since):
            if detector.take(failed, int(at * 1000), BUDGET_DAYS) != "quiet" or at > since + 150 / rate:
                break
        if detector.phase == "firing":
            continue
        count = 0
        for failed, at in Traffic(rate, to).ends(chance, at):  # noqa: B020 - goes on from there
            count += 1
            if detector.take(failed, int(at * 1000), BUDGET_DAYS) == "firing" or count >= 20_000:
                break
        found.append(count)
    found.sort()
    return found[len(found) // 2], found[int(len(found) * 0.95)]


def our_alarms(task: tuple[Calm, int, int]) -> tuple[int, float]:
    """Return how often ours fires within a budget each of so many units, and the part of the time that it does."""
    calm, units, seed = task
    alarms, firing, chance = 0, 0.0, random.Random(seed)
    fleet = calm.traffic.ratio
    for _ in range(units):
        detector, since = learnt(calm.traffic, calm.learnt, chance.randrange(1 << 30), fleet)
        phase, fired = detector.phase, 0.0
        for failed, at in calm.traffic.ends(chance, since):
            was, phase = phase, detector.take(failed, int(at * 1000), BUDGET_DAYS, fleet)
            if phase == "firing" != was:
                alarms, fired = alarms + 1, at
            elif was == "firing" != phase:
                firing += at - fired
            if at > since + BUDGET_DAYS * DAY_S:
                break
        if phase == "firing":
            firing += since + BUDGET_DAYS * DAY_S - fired
    return alarms, firing / (units * BUDGET_DAYS * DAY_S)


def peer_delays(task: tuple[str, float, int, int]) -> tuple[str, list[tuple[int, int]]]:
    """Return a rule's threshold and its messages for each rise: rule, rate, budgets to set it in, repetitions."""
    name, rate, budgets, repetitions = task
    make, traffic = RULES[name], Traffic(rate)
    limit = threshold(make, traffic, BUDGET_DAYS, budgets, SEED)
    return f"{limit:.3f}", [delays(make, limit, traffic, to, repetitions, SEED) for to in RISES]


RULES: dict[str, Callable[[], Rule]] = {
    "ratio of 15 minutes, n >= 10": ratio_rule,
    "multi-window burn rate": burn_rate_rule,
    "EWMA, weight 0.02": ewma_rule,
}


def river_delays(task: tuple[float, int, int]) -> dict[str, tuple[str, list[tuple[int, int]]]] | str:
    """Return river's settings and messages, or why they could not be had: rate, budgets, repetitions."""
    try:
        python = python_peer("river")
    except PeerMissingError as error:
        return str(error)
    rate, budgets, repetitions = task
    command = [
        python,
        str(HERE / "with_river.py"),
        *(str(each) for each in (rate, BUDGET_DAYS, budgets, repetitions, SEED)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"river ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"
    found: dict[str, tuple[str, list[tuple[int, int]]]] = json.loads(done.stdout)
    return found


def ends_per_second(messages: int) -> float:
    """Return how many ends of messages the detector takes a second, its state as small as it comes from the store."""
    ends = [(failed, int(at * 1000)) for (failed, at), _ in zip(Traffic().ends(random.Random(SEED)), range(messages))]  # noqa: B905
    detector = Detector()
    started = time.perf_counter()
    for failed, at in ends:
        detector.take(failed, at, BUDGET_DAYS)
    return messages / (time.perf_counter() - started)


def main() -> None:
    """Run everything, or with `--quick` what fits into a minute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions, and the slow traffic of peers alone")
    quick: bool = parser.parse_args().quick
    repetitions, units, budgets = (50, 4, 5) if quick else (250, 24, 15)
    figure("alert_ends_per_s", max(ends_per_second(100_000) for _ in range(3)), ">= 200000")
    failed = False
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        print(
            f"\n{'median/95 % of messages to the alarm':44}" + "".join(f"{f'to {to:.0%}':>12}" for to in RISES),
            flush=True,
        )
        for (rate, history), goals in GOALS.items():
            ours = pool.map(our_delays, [(rate, history, to, repetitions) for to in RISES], 1)
            print(f"{f'ours, {rate:g}/s, learnt from {history:,}':44}" + "".join(f"{f'{a}/{b}':>12}" for a, b in ours))
            for to, goal, found in zip(RISES, goals, ours, strict=True):
                for what, value, most in zip(("p50", "p95"), found, goal or ("", ""), strict=True):
                    figure(f"alert_{rate:g}_{history}_to_{to * 100:.0f}_{what}", value, f"<= {most}" if most else "")
        # In fast traffic, thirty days are 1.3 million messages.
        tasks = [
            (name, rate, budgets if rate < 0.1 else 3, repetitions)
            for rate in ((0.02,) if quick else (0.02, 0.5))
            for name in RULES
        ]
        for (name, rate, *_), (limit, found) in zip(tasks, pool.map(peer_delays, tasks, 1), strict=True):
            print(
                f"{f'{name}, {rate:g}/s, over {limit}':44}" + "".join(f"{f'{a}/{b}':>12}" for a, b in found), flush=True
            )
        rivers = [(0.02, 1 if quick else 4, repetitions // 5)]
        for (rate, *_), answer in zip(rivers, pool.map(river_delays, rivers, 1), strict=True):
            if isinstance(answer, str):
                print(f"NOT MEASURED: river: {answer}", flush=True)
                failed = True
                continue
            for name, (setting, found) in answer.items():
                print(
                    f"{f'{name}, {rate:g}/s, {setting}':44}" + "".join(f"{f'{a}/{b}':>12}" for a, b in found),
                    flush=True,
                )
        print(f"\n{'nothing is wrong':44}{'alarms':>8}{'of budget':>12}{'time firing':>14}", flush=True)
        parts = 2 if quick else 4
        calm_tasks = [(calm, units // parts, SEED + part) for calm in CALM for part in range(parts)]
        alarms = pool.map(our_alarms, calm_tasks, 1)
        for number, calm in enumerate(CALM):
            mine = alarms[number * parts : (number + 1) * parts]
            count, firing = sum(each[0] for each in mine), sum(each[1] for each in mine) / parts
            print(f"{calm.name:44}{count:>8}{count / units:>12.2f}{firing:>14.2%}")
            figure(f"false_alarms_of_budget_{calm.name}", count / units, "<= 1")
    sys.exit(2 if failed else 0)


if __name__ == "__main__":
    main()
