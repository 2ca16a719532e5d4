"""Simulated outcomes of one unit's messages, with seeds, and rules for comparison with the detector. Only Python.

A rule takes `(failed, at)` with `at` in seconds, and returns its statistic: it fires where that is over its threshold.
"""

# ruff: noqa: S311 - traffic, not secrets

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

DAY_S = 86_400.0
Rule = Callable[[bool, float], float]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Outcomes of a unit's messages.

    Args:
        rate: Messages a second, on average.
        ratio: Of failures, on average.
        repeat: Probability of the same outcome as that of the previous message, in addition to chance.
        rhythm: How far the ratio goes up and down over a day, as part of it; not when traffic does.
        swing: How far the rate does, as part of it.
        drift: Factor of the ratio after thirty days, if it grows steadily.
    """

    rate: float = 0.02
    ratio: float = 0.03
    repeat: float = 0.0
    rhythm: float = 0.0
    swing: float = 0.0
    drift: float = 1.0

    def ends(self, chance: random.Random, since: float = 0.0) -> Iterator[tuple[bool, float]]:
        """Yield whether each message failed, and the time of its outcome in seconds, without end."""
        uniform, pause, at, failed = chance.random, chance.expovariate, since, False
        while True:
            phase = 2 * math.pi * at / DAY_S
            at += pause(self.rate * (1 + self.swing * math.sin(phase)))
            if not (self.repeat and uniform() < self.repeat):
                ratio = self.ratio * (1 + self.rhythm * math.cos(phase))
                failed = uniform() < ratio * (1 + (self.drift - 1) * (at - since) / (30 * DAY_S))
            yield failed, at


class _Window:
    """The messages of the last seconds."""

    def __init__(self, seconds: float, least: int) -> None:
        self._seconds, self._least, self._failed = seconds, least, 0
        self._ends: deque[tuple[bool, float]] = deque()

    def __call__(self, failed: bool, at: float) -> float:
        ends = self._ends
        ends.append((failed, at))
        self._failed += failed
        while ends[0][1] <= at - self._seconds:
            self._failed -= ends.popleft()[0]
        return self._failed / len(ends) if len(ends) >= self._least else 0.0


def ratio_rule() -> Rule:
    """Return the ratio of fifteen minutes, of ten messages or more."""
    return _Window(900, 10)


def burn_rate_rule() -> Rule:
    """Return the multi-window burn rate of the SRE workbook, each pair's over its own limit there: 14.4 and 6."""
    pairs = ((_Window(3600, 10), _Window(300, 1), 14.4), (_Window(21_600, 10), _Window(1800, 1), 6.0))

    def rule(failed: bool, at: float) -> float:
        return max(min(long(failed, at), short(failed, at)) / limit for long, short, limit in pairs)

    return rule


def ewma_rule(weight: float = 0.02, start: float = 0.03) -> Rule:
    """Return the exponentially weighted mean of outcomes."""
    mean = start

    def rule(failed: bool, _: float) -> float:
        nonlocal mean
        mean += weight * (failed - mean)
        return mean

    return rule


def threshold(make: Callable[[], Rule], traffic: Traffic, days: float, budgets: int, seed: int) -> float:
    """Return where a rule fires once in so many days, on average. It restarts after each alarm.

    Args:
        make: The rule.
        traffic: In which nothing is wrong.
        days: The budget.
        budgets: Over how many of them.
        seed: Of the traffic.
    """
    rule, peaks, peak, until = make(), [], 0.0, DAY_S / 4
    for failed, at in traffic.ends(random.Random(seed)):
        if at > until:  # a threshold that is exceeded for hours is one alarm
            peaks.append(peak)
            peak, until = 0.0, until + DAY_S / 4
            if at > days * budgets * DAY_S:
                break
        peak = max(peak, rule(failed, at))
    return sorted(peaks, reverse=True)[budgets] + 1e-9


def delays(
    make: Callable[[], Rule], limit: float, traffic: Traffic, to: float, repetitions: int, seed: int
) -> tuple[int, int]:
    """Return the number of messages from a rise of failures until a rule fires: median and 95 % quantile.

    Each begins after 500 messages in which nothing is wrong.
    """
    chance, found = random.Random(seed), []
    after = Traffic(traffic.rate, to)
    while len(found) < repetitions:
        rule, at = make(), 0.0
        ends = traffic.ends(chance)
        if any([rule(*next(ends)) > limit for _ in range(500)][400:]):
            continue
        at = next(ends)[1]
        count = 0
        for failed, at in after.ends(chance, at):  # noqa: B020 - continues from there
            count += 1
            if rule(failed, at) > limit or count >= 20_000:
                break
        found.append(count)
    found.sort()
    return found[len(found) // 2], found[int(len(found) * 0.95)]
