"""The detector of rising failure ratios: a mixture Shiryaev-Roberts e-detector against a learnt baseline.

It looks at the ends of one unit's messages, one after the other: a channel's, a device's or a source's. Pure: what it
knows is in its fields, and the same ends in the same order give the same fields, bit by bit.

Method
    Shin, Ramdas and Rinaldo, "E-detectors" (2022). For each of a few ratios that failures could have risen to, evidence
    grows with each message by the likelihood ratio of that ratio to the highest that the baseline allows; and the mean
    over them is compared with a threshold. Evidence starts anew all the time, weighed by the time that passes: its
    expectation is then at most the time that has passed, whatever the traffic, so a threshold of thirty days means at
    most one false alarm in thirty days on average, at any number of messages.
Baseline
    Beta-binomial, shrunk towards the fleet. What is tested against is its upper credible bound, so a short history
    costs delay and no false alarms. Where the quarters of the day differ more than chance has it, it is that much
    higher. A message is learnt from once a CUSUM beside the evidence says that nothing has begun: what may be a rise
    stays apart, is discarded if it was one, and says since when.
Clusters
    Failures come in runs also when all is well. How likely an outcome repeats is learnt too, and a failure that follows
    one is less evidence by that much.
"""

from functools import lru_cache
from math import ceil, exp, log, sqrt
from typing import Any, Final, Literal

import msgspec

Phase = Literal["quiet", "pending", "firing"]

DEFAULT_RATIO: Final = 0.03
"""The ratio of failures of a fleet of which nothing is known."""

_DAY_MS: Final = 86_400_000
_PRIOR_STRENGTH: Final = 100.0  # messages that the fleet's ratio counts for
_MEMORY: Final = 60  # blocks; earlier ones fade, so that a slow drift is followed
_BLOCK: Final = 250  # messages, at least
_BLOCK_MS: Final = 3_600_000  # and at least an hour
_PART_MS: Final = 6 * 3_600_000
_REPEAT_STRENGTH: Final = 10.0  # failures without repetition that a unit is thought to have had
_REFRESH: Final = 16  # messages learnt before the bound is computed anew
_REFRESH_SHARE: Final = 0.02  # and this part of the baseline
_Z: Final = 1.645  # of the credible bound, 95 %
_GRID: Final = 1.005  # bounds are rounded up to powers of this: few are different, and ratios are computed once
_REPEAT_GRID: Final = 50
_MARGIN: Final = 1.09  # of the bound at least: a rise of less is no news
_SPREAD: Final = 1.8  # standard deviations between quarters of the day, by which the bound is higher
_RISES: Final = (2.4, 3.4, 7.0, 15.0, 42.0)  # alternatives, as multiples of the bound's odds
_WEIGHTS: Final = (0.3, 0.35, 0.15, 0.08, 0.08, 0.04)
_HIGHEST: Final = 0.98  # and the last alternative
# The alternatives whose CUSUMs say since when: what could be a small rise stays out of the baseline, and a failure of
# nearly all is not said to have begun with the chance failures before it.
_GENTLE: Final = 1
_STEEP: Final = 4
_CALIBRATION: Final = 0.55  # of the threshold that is provable, the share that simulation allows: bench/alerts.py
_PENDING: Final = 0.1  # of the threshold
_SUBSIDED: Final = 0.02  # of the threshold
_RECOVERED: Final = 100.0  # likelihood ratio of the baseline to a ratio half-way up to the alert's
_LONGEST_PAUSE: Final = 1 / 200  # of the budget; more says nothing, and two failures after a silence are no alert

_Evidence = tuple[float, float, float, float, float, float]
_NONE: Final[_Evidence] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Detector(msgspec.Struct, gc=False):
    """One unit's baseline and evidence.

    Attributes:
        known, failed, repeated: The baseline: messages, failures, and failures that followed one. They fade.
        fresh: Messages in the baseline that the bound does not know yet.
        parts: The baseline by quarters of the day: messages and failures of each. They fade.
        block, block_at: Messages learnt since all faded last, and when that was.
        bound: The highest ratio of failures that the baseline allows; 0 before the first message.
        repeats: How likely an outcome is the one before, beyond chance.
        evidence: Days, for each alternative.
        cusum: Likelihood ratio of a small rise since `since`.
        since: When the present rise began, in milliseconds, if there is one.
        count, failures, repetitions: Messages, failures, and failures that followed one, since then.
        steep: Likelihood ratio of a large rise since `steep_since`, with `steep_count` and `steep_failures`.
        last_failed: Whether the last message failed.
        last_at: When the last message ended, in milliseconds; 0 before the first.
        phase: What is told about it.
        level: The ratio that has to be left behind for an alert to end.
        recovery: Likelihood ratio of that.
    """

    known: float = 0.0
    failed: float = 0.0
    repeated: float = 0.0
    fresh: int = 0
    parts: list[float] = msgspec.field(default_factory=lambda: [0.0] * 8)
    block: int = 0
    block_at: int = 0
    bound: float = 0.0
    repeats: float = 0.0
    evidence: _Evidence = _NONE
    cusum: float = 1.0
    since: int = 0
    count: int = 0
    failures: int = 0
    repetitions: int = 0
    steep: float = 1.0
    steep_since: int = 0
    steep_count: int = 0
    steep_failures: int = 0
    last_failed: bool = False
    last_at: int = 0
    phase: Phase = "quiet"
    level: float = 0.0
    recovery: float = 1.0

    def take(self, failed: bool, at: int, budget_days: float, fleet: float = DEFAULT_RATIO) -> Phase:
        """Take the end of a message; return the phase after it.

        Args:
            failed: Whether it failed.
            at: When it ended, in milliseconds. The order of calls counts; a time before the last one adds no time.
            budget_days: Days of one false alarm, on average.
            fleet: The ratio of failures of the fleet that the unit belongs to.
        """
        if not self.bound:
            self._refresh(fleet)
        ratios = _likelihoods(self.bound, self.repeats)[2 * self.last_failed + failed]
        if not self.count:
            self.since = at
        self.count += 1
        if failed:
            self.failures += 1
            self.repetitions += self.last_failed
        self.last_failed = failed
        days = 0.0
        if at > self.last_at:
            if self.last_at:
                days = min((at - self.last_at) / _DAY_MS, budget_days * _LONGEST_PAUSE)
            self.last_at = at
        if self.phase == "firing":
            self._recover(failed)
            return self.phase
        # Written out: this is where the time goes.
        a, b, c, d, e, f = self.evidence
        r, s, t, u, v, w = ratios
        self.evidence = a, b, c, d, e, f = (
            *((a + days) * r, (b + days) * s, (c + days) * t),
            *((d + days) * u, (e + days) * v, (f + days) * w),
        )
        i, j, k, l, m, n = _WEIGHTS  # noqa: E741
        share = (a * i + b * j + c * k + d * l + e * m + f * n) / (_CALIBRATION * budget_days)
        self.cusum = cusum = self.cusum * ratios[_GENTLE]
        if failed or self.steep_count:
            self._steepen(failed, at, ratios[_STEEP])
        if share >= 1:
            self.phase = "firing"
            if self.steep > cusum:
                self.since, self.count, self.failures = self.steep_since, self.steep_count, self.steep_failures
                self.repetitions = 0  # nothing is learnt from what fired
            self.level = max(sqrt(self.bound * min(self.ratio, _HIGHEST)), min(1.3 * self.bound, _HIGHEST))
            self.recovery = 1.0
        elif cusum <= 1:
            self._learn(fleet)
            if share < _SUBSIDED:
                self.phase = "quiet"
        elif share >= _PENDING:
            self.phase = "pending"
        return self.phase

    @property
    def ratio(self) -> float:
        """The ratio of failures since the present rise began."""
        return self.failures / self.count if self.count else 0.0

    @property
    def baseline(self) -> float:
        """The ratio of failures that is usual for the unit, of what was learnt alone."""
        return self.failed / self.known if self.known else 0.0

    def end(self) -> None:
        """End an alert, or what could become one: the evidence goes, the baseline stays."""
        self.phase = "quiet"
        self.evidence = _NONE
        self.cusum = self.steep = self.recovery = 1.0
        self.count = self.failures = self.repetitions = self.steep_count = self.steep_failures = 0

    def _steepen(self, failed: bool, at: int, ratio: float) -> None:
        self.steep *= ratio
        if self.steep <= 1:
            self.steep, self.steep_count, self.steep_failures = 1.0, 0, 0
            return
        if not self.steep_count:
            self.steep_since = at
        self.steep_count += 1
        self.steep_failures += failed

    def _recover(self, failed: bool) -> None:
        usual = self.bound / 1.1
        step = usual / self.level if failed else (1 - usual) / (1 - self.level)
        self.recovery = max(self.recovery, 1.0) * step
        if self.recovery >= _RECOVERED:
            self.end()

    def _learn(self, fleet: float) -> None:
        """Take what was apart into the baseline."""
        self.known += self.count
        self.failed += self.failures
        self.repeated += self.repetitions
        self.fresh += self.count
        part = self.last_at // _PART_MS % 4 * 2
        self.parts[part] += self.count
        self.parts[part + 1] += self.failures
        self.block += self.count
        if self.block >= _BLOCK and self.last_at - self.block_at >= _BLOCK_MS:
            self._fade()
        self.cusum = 1.0
        self.count = self.failures = self.repetitions = 0
        if self.fresh >= _REFRESH and self.fresh >= self.known * _REFRESH_SHARE:
            self._refresh(fleet)

    def _fade(self) -> None:
        self.block, self.block_at = 0, self.last_at
        rest = 1 - 1 / _MEMORY
        self.known *= rest
        self.failed *= rest
        self.repeated *= rest
        self.parts = [each * rest for each in self.parts]

    def _spread(self) -> float:
        """Return the variance of the ratio between quarters of the day, beyond chance."""
        usual, apart, parts = self.baseline, 0.0, -1
        for count, failed in zip(self.parts[::2], self.parts[1::2], strict=True):
            if count:
                apart += (failed - count * usual) ** 2 / count
                parts += 1
        if parts < 1:
            return 0.0
        return max(apart - (parts + sqrt(2 * parts)) * self._variance(usual), 0.0) / self.known

    def _variance(self, ratio: float) -> float:
        """Return the variance of failures a message that chance has, with their runs."""
        return ratio * (1 - ratio) * (1 + self.repeats) / (1 - self.repeats)

    def _refresh(self, fleet: float) -> None:
        self.fresh = 0
        fleet = min(max(fleet, 0.01), 0.5)
        failed = _PRIOR_STRENGTH * fleet + self.failed
        known = _PRIOR_STRENGTH + self.known
        usual = failed / known
        high = max(upper_bound(failed, known - failed), usual * _MARGIN)
        high = usual + sqrt((high - usual) ** 2 + _SPREAD**2 * self._spread())
        self.bound = min(_GRID ** ceil(log(high) / log(_GRID)), 0.9)
        excess = (self.repeated - self.failed * self.baseline) / (self.failed + _REPEAT_STRENGTH)
        self.repeats = min(max(round(excess * _REPEAT_GRID), 0), _REPEAT_GRID * 9 // 10) / _REPEAT_GRID


def _odds(ratio: float) -> float:
    return ratio / (1 - ratio)


@lru_cache(maxsize=4096)
def _likelihoods(bound: float, repeats: float) -> tuple[_Evidence, ...]:
    """Return the likelihood ratios of the alternatives, for twice whether the message before failed, plus this one."""
    odds = _odds(bound)
    alternatives = [rise * odds / (1 + rise * odds) for rise in _RISES] + [max(_HIGHEST, (1 + bound) / 2)]
    found: list[Any] = []
    for last in (0, 1):
        usual = repeats * last + (1 - repeats) * bound
        risen = [repeats * last + (1 - repeats) * each for each in alternatives]
        found += [tuple((1 - each) / (1 - usual) for each in risen), tuple(each / usual for each in risen)]
    return tuple(found)


def upper_bound(failed: float, passed: float) -> float:
    """Return about the 95 % quantile of a Beta distribution.

    Abramowitz and Stegun 26.5.22, for both parameters over 1/2.
    """
    a, b = max(2 * failed - 1, 1e-3), max(2 * passed - 1, 1e-3)
    curve = (_Z * _Z - 3) / 6
    mean = 2 / (1 / a + 1 / b)
    width = _Z * sqrt(mean + curve) / mean + (1 / b - 1 / a) * (curve + 5 / 6 - 2 / (3 * mean))
    return failed / (failed + passed * exp(-2 * width))
