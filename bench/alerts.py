"""The detector of rising failure ratios and other rules, in simulated traffic with seeds.

How many messages each needs from the moment that failures rise, all set to one false alarm in thirty days; how often
ours is wrong in traffic in which nothing is, with a learnt baseline and from a unit's first message on; what becomes of
a rise that stays; what fires in the demo; and how many ends of messages it takes a second, on one core.

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
from multiprocessing.pool import Pool
from pathlib import Path

sys.path.remove(str(Path(__file__).parent))  # its streams.py would hide the package
sys.path.append(str(Path(__file__).parent))

from alert_cold_start import Episodes, NewUnit, demo_alerts, episodes, fired, known_fleet, new_fleet
from alert_traffic import DAY_S, Rule, Traffic, burn_rate_rule, delays, ewma_rule, ratio_rule, threshold
from measure import figure
from peers.environments import HERE, PeerMissingError, python_peer

from streams.change_detector import ChangeDetector
from streams.failure_baseline import DetectorPolicy

BUDGET_DAYS = 30.0
POLICY = DetectorPolicy(budget_days=BUDGET_DAYS)
RISES = (0.1, 0.2, 0.5, 1.0)
SEED = 8
GOALS = {
    (0.02, 20_000): ((125, 290), (38, 85), (11, 25), (5, 6)),
    (0.5, 20_000): ((200, 400), (52, 110), (14, 28), (6, 7)),
    (0.02, 2_000): (None, (45, 105), None, None),
    (0.02, 200): (None, (62, 145), None, None),
}
"""By messages per second and length of the history: median and 95 % quantile of messages for each rise."""
PER_BASELINE = 5
"""Repetitions with one baseline."""


@dataclass(frozen=True, slots=True)
class Calm:
    """Traffic without a fault.

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


def learnt(traffic: Traffic, messages: int, seed: int, fleet: float) -> tuple[ChangeDetector, float]:
    """Return a detector with a history of so many messages, and the time of the last one."""
    detector, at, units = ChangeDetector(), 0.0, known_fleet(fleet)
    for failed, at in traffic.ends(random.Random(seed)):
        detector.observe_outcome(failed, int(at * 1000), POLICY, units)
        messages -= 1
        if not messages:
            break
    if detector.phase == "firing":
        detector.end_alert()
    return detector, at


def our_delays(task: tuple[float, int, float, int]) -> tuple[int, int]:
    """Return median and 95 % quantile of the messages that the detector needs: rate, history, rise, repetitions."""
    rate, history, to, repetitions = task
    traffic, chance, found = Traffic(rate), random.Random(SEED), []
    before, since, fleet = ChangeDetector(), 0.0, known_fleet(traffic.ratio)
    while len(found) < repetitions:
        if len(found) % PER_BASELINE == 0:
            before, since = learnt(traffic, history, chance.randrange(1 << 30), traffic.ratio)
        detector, at = copy.deepcopy(before), since
        # Each repetition starts at another message, while the detector has no evidence of the rise.
        for failed, at in traffic.ends(chance, since):
            if detector.observe_outcome(failed, int(at * 1000), POLICY, fleet) != "quiet" or at > since + 150 / rate:
                break
        if detector.phase == "firing":
            continue
        count = 0
        for failed, at in Traffic(rate, to).ends(chance, at):  # noqa: B020 - continues from there
            count += 1
            if detector.observe_outcome(failed, int(at * 1000), POLICY, fleet) == "firing" or count >= 20_000:
                break
        found.append(count)
    found.sort()
    return found[len(found) // 2], found[int(len(found) * 0.95)]


def our_alarms(task: tuple[Calm, int, int]) -> tuple[int, float]:
    """Return how often the detector fires per unit within a budget, and the share of time in which it fires."""
    calm, units, seed = task
    alarms, firing, chance = 0, 0.0, random.Random(seed)
    ratio = calm.traffic.ratio
    fleet = known_fleet(ratio)
    for _ in range(units):
        detector, since = learnt(calm.traffic, calm.learnt, chance.randrange(1 << 30), ratio)
        phase, fired = detector.phase, 0.0
        for failed, at in calm.traffic.ends(chance, since):
            was, phase = phase, detector.observe_outcome(failed, int(at * 1000), POLICY, fleet)
            if phase == "firing" != was:
                alarms, fired = alarms + 1, at
            elif was == "firing" != phase:
                firing += at - fired
            if at > since + BUDGET_DAYS * DAY_S:
                break
        if phase == "firing":
            firing += since + BUDGET_DAYS * DAY_S - fired
    return alarms, firing / (units * BUDGET_DAYS * DAY_S)


COLD_RATIOS = {0.02: (0.005, 0.01, 0.03, 0.08, 0.15, 0.2, 0.3, 0.4), 0.5: (0.005, 0.03, 0.1, 0.2, 0.4)}
"""Failure ratios of new units by messages per second, without a history of their fleet."""
FLEET_RATIOS = (0.005, 0.03, 0.15, 0.4)
LASTING = ((0.02, 0.03, 0.1), (0.02, 0.03, 0.15), (0.02, 0.1, 0.4), (0.02, 0.03, 0.9), (0.02, 0.005, 0.05))
LASTING_FAST = (0.5, 0.03, 0.15)
"""Messages per second, the ratio of the first five days, and the ratio afterwards."""
RISES_AFTER_DAYS, LASTING_DAYS = 5.0, 20.0
SICK_PHONE, DEMO_MINUTES = 8003, 10.0


def episodes_of(unit: NewUnit) -> Episodes:
    """Return the alerts of a unit."""
    return episodes(unit, POLICY)


def demo(task: tuple[int, float]) -> tuple[bool, int]:
    """Return whether the alert of the demo's failing phone fires, and the number of other alerts: seed, minutes."""
    seed, minutes = task
    return fired(demo_alerts(seed, minutes), sick=SICK_PHONE)


def cold_start(pool: Pool, *, quick: bool) -> None:
    """Print false alarms of new units."""
    print(
        f"\n{'from the first message, nothing is wrong':44}{'alarms':>8}{'of budget':>12}{'time firing':>14}",
        flush=True,
    )
    for rate, ratios in COLD_RATIOS.items():
        # In fast traffic, thirty days are 1.3 million messages.
        units, few = (48, 8) if rate < 0.1 else (24, 1)
        units = few if quick else units
        for ratio in ratios[:: 3 if quick else 1]:
            tasks = [NewUnit(ratio, rate, BUDGET_DAYS, SEED + number) for number in range(units)]
            found = pool.map(episodes_of, tasks, 1)
            count, firing = sum(len(each.fired) for each in found), sum(each.firing for each in found) / units
            _show_cold(f"{rate:g}_{ratio * 100:g}", f"{rate:g}/s, {ratio:.1%} fail", count, units, firing)
    channels = 8 if quick else 24
    tasks = [(ratio, 0.02, channels, BUDGET_DAYS, SEED) for ratio in FLEET_RATIOS[:: 2 if quick else 1]]
    for (ratio, *_), (count, firing) in zip(tasks, pool.map(new_fleet, tasks, 1), strict=True):
        name = f"a source and its {channels} channels, {ratio:.1%} fail"
        _show_cold(f"fleet_{ratio * 100:g}", name, count, channels + 1, firing)


def _show_cold(name: str, words: str, count: int, units: int, firing: float) -> None:
    print(f"{words:44}{count:>8}{count / units:>12.2f}{firing:>14.2%}")
    figure(f"cold_false_alarms_of_budget_{name}", count / units, "<= 1")
    figure(f"cold_time_firing_{name}", firing, "<= 0.01")


def lasting_rises(pool: Pool, *, quick: bool) -> None:
    """Print how often a permanent rise fires before it is the new normal, and the false alarms afterwards."""
    print(f"\n{'a rise that stays':44}{'alerts':>8}{'new normal':>12}{'alarms after':>14}", flush=True)
    units = 6 if quick else 48
    for rate, usual, risen in LASTING if quick else (*LASTING, LASTING_FAST):
        tasks = [
            NewUnit(usual, rate, LASTING_DAYS, SEED + number, RISES_AFTER_DAYS, risen, usual) for number in range(units)
        ]
        name, words = f"{rate:g}_{usual * 100:g}_to_{risen * 100:g}", f"{rate:g}/s, {usual:.1%} to {risen:.0%}"
        _show_lasting(name, words, RISES_AFTER_DAYS, pool.map(episodes_of, tasks, 1))
    tasks = [NewUnit(0.5, 0.02, LASTING_DAYS, SEED + number, fleet=0.12) for number in range(units)]
    _show_lasting("bad_from_start", "0.02/s, 50% from the start, fleet 12%", 0.0, pool.map(episodes_of, tasks, 1))


def _show_lasting(name: str, words: str, since: float, found: list[Episodes]) -> None:
    before = after = accepted = 0
    for each in found:
        until = min((day for day, why in each.ended if why == "new_normal" and day > since), default=LASTING_DAYS)
        accepted += until < LASTING_DAYS
        before += sum(since <= day < until for day in each.fired)
        after += sum(day >= until for day in each.fired)
    days = LASTING_DAYS - since - POLICY.relearn_ms / 86_400_000
    of_budget = after / len(found) * BUDGET_DAYS / days
    print(f"{words:44}{before / len(found):>8.2f}{accepted / len(found):>12.2f}{of_budget:>14.2f}")
    figure(f"lasting_rise_alerts_{name}", before / len(found), "<= 1.1")
    figure(f"lasting_rise_new_normal_{name}", accepted / len(found), ">= 1")
    figure(f"lasting_rise_false_alarms_of_budget_{name}", of_budget, "<= 1")


def demos(pool: Pool, *, quick: bool) -> None:
    """Print the alerts of the demo."""
    seeds, minutes = (2, 1.5) if quick else (20, DEMO_MINUTES)
    found = pool.map(demo, [(seed, minutes) for seed in range(seeds)], 1)
    sick, others = sum(each[0] for each in found), sum(each[1] for each in found)
    print(f"\ndemo, {seeds} seeds, {minutes:g} minutes each: the sick phone fires in {sick}, others {others} times")
    figure("demo_runs_in_which_the_sick_phone_fires", sick, f">= {seeds}")
    figure("demo_alerts_of_others", others, "<= 0")


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
    """Return river's settings and messages, or the reason why they are not available: rate, budgets, repetitions."""
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
    """Return the outcomes per second that the detector processes, with its state as loaded from the store."""
    ends = [(failed, int(at * 1000)) for (failed, at), _ in zip(Traffic().ends(random.Random(SEED)), range(messages))]  # noqa: B905
    detector = ChangeDetector()
    started = time.perf_counter()
    for failed, at in ends:
        detector.observe_outcome(failed, at, POLICY)
    return messages / (time.perf_counter() - started)


def main() -> None:
    """Run all benchmarks, or with `--quick` those that fit into a minute."""
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
        cold_start(pool, quick=quick)
        lasting_rises(pool, quick=quick)
        demos(pool, quick=quick)
    sys.exit(2 if failed else 0)


if __name__ == "__main__":
    main()
