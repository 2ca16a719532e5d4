"""River's ADWIN and Page-Hinkley as rules on failure ratios, each set to a budget of false alarms; prints JSON.

python bench/peers/with_river.py RATE DAYS BUDGETS REPETITIONS SEED
"""

# ruff: noqa: S311 - traffic, not secrets

import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from alert_traffic import DAY_S, Rule, Traffic, delays
from river.drift import ADWIN, PageHinkley


def rule(make: Callable[[], Any]) -> Callable[[], Rule]:
    """Return a factory of rules that return 1 if the detector reports a rise of the ratio."""

    def fresh() -> Rule:
        detector, usual = make(), 0.03

        def take(failed: bool, _: float) -> float:
            detector.update(int(failed))
            return float(detector.drift_detected and getattr(detector, "estimation", 1.0) > usual)

        return take

    return fresh


def alarms(make: Callable[[], Rule], traffic: Traffic, days: float, seed: int) -> int:
    """Return how often it fires in so many days without a fault."""
    take, count = make(), 0
    for failed, at in traffic.ends(random.Random(seed)):
        if at > days * DAY_S:
            return count
        if take(failed, at):
            count, take = count + 1, make()
    raise AssertionError


def main() -> None:
    """Find the most sensitive setting of each detector within the budget, and its detection delay."""
    rate, days, budgets, repetitions, seed = (float(each) for each in sys.argv[1:])
    traffic, found = Traffic(rate), {}
    peers: dict[str, list[tuple[str, Callable[[], Any]]]] = {
        "river ADWIN": [
            (f"delta {delta:g}", lambda delta=delta: ADWIN(delta=delta, clock=1))
            for delta in (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
        ],
        "river Page-Hinkley": [
            (
                f"threshold {limit:g}",
                lambda limit=limit: PageHinkley(mode="up", min_instances=100, delta=0.03, threshold=limit),
            )
            for limit in (2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
        ],
    }
    for name, settings in peers.items():
        for setting, make in settings:
            if alarms(rule(make), traffic, days * budgets, int(seed)) <= budgets:
                found[name] = [
                    setting,
                    [delays(rule(make), 0, traffic, to, int(repetitions), int(seed)) for to in (0.1, 0.2, 0.5, 1.0)],
                ]
                break
        else:
            found[name] = ["no setting keeps the budget", []]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
