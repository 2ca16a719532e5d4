"""The usual ratio of failures of one channel, device or source, learnt from its messages and from its fleet.

Beta-binomial, shrunk towards the fleet. A change detector tests against its upper credible bound. So a short history
costs delay and no false alarms. If the quarters of the day differ more than by chance, the bound is higher accordingly.
"""

from math import ceil, exp, log, sqrt
from typing import Final

import msgspec

# The ratio of failures of a fleet without data.
_DEFAULT_RATIO: Final = 0.03

# A proven fleet's ratio counts as this many messages where a unit agrees with it. A ratio that is a guess, or that the
# unit's own messages contradict, counts as few: with 100, a guess of 3 % hides a true 20 % for thousands of messages.
_PROVEN_STRENGTH: Final = 100.0
_WIDE_STRENGTH: Final = 20.0
# Failures, and other messages. `upper_bound` is accurate from that many on.
_LEAST_PRIOR: Final = 1.0
# Standard deviations between the failures of a unit and those that the ratio of its fleet predicts.
_AGREES: Final = 2.0
# Blocks. Earlier ones fade, so that the baseline follows a slow drift.
_MEMORY: Final = 60
# Failures without repetition that every unit is assumed to have had.
_REPEAT_STRENGTH: Final = 10.0
# Bounds are rounded up to powers of this. Few values are different, so likelihood ratios are computed once.
_GRID: Final = 1.005
# The probability of a repetition is rounded to this part, for the same reason.
_REPEAT_GRID: Final = 50
# The bound is at least this multiple of the ratio. A smaller rise is not worth an alert.
_MARGIN: Final = 1.09
# Standard deviations between quarters of the day that are added to the bound.
_SPREAD: Final = 1.8
# Likelihood ratio of the baseline before an accepted rise to a ratio half-way up to the rise.
_RETURNED: Final = 1e5
# One false alarm in a thousand units: each unit is compared once with its fleet.
_BAD_FROM_START_Z: Final = 3.09
REFRESH: Final = 16
"""Messages learnt before the bound is computed again."""


# Standard score of the credible bound, 95 %.
_Z: Final = 1.645
RISES: Final = (2.4, 3.4, 7.0, 15.0, 42.0)
"""Alternatives, as multiples of the bound's odds."""
HIGHEST: Final = 0.98
"""The last alternative, and the largest ratio that has finite odds here."""


class DetectorPolicy(msgspec.Struct, frozen=True, gc=False):
    """Settings of all detectors of a stream.

    Attributes:
        budget_days: Days per false alarm of each unit, on average.
        learn_messages: Messages from which a new unit learns before its ratio of failures is judged.
        relearn_messages: Messages after which a lasting rise becomes the new normal; None: never.
        relearn_ms: Milliseconds for which the alert must also have fired.
    """

    budget_days: float = 30.0
    learn_messages: int = 200
    relearn_messages: int | None = 500
    relearn_ms: int = 7 * 86_400_000


class FailureBaseline(msgspec.Struct, gc=False):
    """The baseline of one unit.

    Attributes:
        known, failed, repeated: Messages, failures, and failures that followed a failure. They fade.
        fresh: Messages in the baseline that the bound does not include yet.
        parts: The baseline by quarters of the day: messages and failures of each. They fade.
        block, block_at: Messages learnt since the last fading, and its time in milliseconds.
        bound: The highest ratio of failures that the baseline allows; 0 before the first message.
        repeats: Probability that an outcome repeats the one before, beyond chance.
        usual: Expected ratio of failures: that of the baseline, shrunk towards the fleet. While the unit learns, that
            of the fleet, or 0 if it is not known.
        learning_since: Time when the unit began to learn, in milliseconds.
        former_known, former_failed, former_repeated, former_usual: The baseline before the last rise that became the
            new normal, and its expected ratio; the latter is 0 if there is none.
        accepted: The ratio that became the new normal then.
        returning: Likelihood ratio of the failures being back at the former baseline.
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
    usual: float = 0.0
    learning_since: int = 0
    former_known: float = 0.0
    former_failed: float = 0.0
    former_repeated: float = 0.0
    former_usual: float = 0.0
    accepted: float = 0.0
    returning: float = 1.0

    @property
    def baseline_ratio(self) -> float:
        """The ratio of failures of the learnt messages alone."""
        return self.failed / self.known if self.known else 0.0

    def _rest_of(self, fleet: "FailureBaseline | None") -> tuple[float, float, float]:
        """Return messages, failures and estimated ratio of failures of the unit's fleet without the unit."""
        known = failed = 0.0
        if fleet is not None:
            known = max(fleet.known - self.known, 0.0)
            failed = min(max(fleet.failed - self.failed, 0.0), known)
        ratio = (_WIDE_STRENGTH * _DEFAULT_RATIO + failed) / (_WIDE_STRENGTH + known)
        return known, failed, min(max(ratio, 0.01), 0.5)

    def _is_bad_from_start(self, others: float, others_failed: float) -> bool:
        """Whether the unit fails more than the rest of its fleet by a rise that would be an alert."""
        passed = max(self.known - self.failed, 0.0)
        low = 1 - upper_bound(passed + 1, self.failed + 1, _BAD_FROM_START_Z)
        high = RISES[0] * to_odds(min(upper_bound(others_failed + 1, others - others_failed + 1), HIGHEST))
        return to_odds(low) > high

    def _fade_baseline(self, at: int) -> None:
        self.block, self.block_at = 0, at
        rest = 1 - 1 / _MEMORY
        self.known *= rest
        self.failed *= rest
        self.repeated *= rest
        self.parts = [each * rest for each in self.parts]

    def _restore_former_baseline(self, count: int, failures: int, at: int) -> None:
        """Restore the baseline before an accepted rise when the failures are back at it."""
        usual, middle = self.former_usual, sqrt(self.former_usual * min(self.accepted, HIGHEST))
        if middle <= usual:
            return
        passed = count - failures
        self.returning = max(self.returning, 1.0) * (usual / middle) ** failures
        self.returning *= ((1 - usual) / (1 - middle)) ** passed
        if self.returning < _RETURNED:
            return
        self.known, self.failed, self.repeated = self.former_known, self.former_failed, self.former_repeated
        self.former_usual = self.accepted = 0.0
        self.parts = [0.0] * 8
        # Counts only for a unit that had not learnt enough before the rise.
        self.learning_since = at
        # The bound is computed at once.
        self.fresh = REFRESH + int(self.known)

    def _update_repeats(self) -> None:
        excess = (self.repeated - self.failed * self.baseline_ratio) / (self.failed + _REPEAT_STRENGTH)
        self.repeats = min(max(round(excess * _REPEAT_GRID), 0), _REPEAT_GRID * 9 // 10) / _REPEAT_GRID

    def _compute_bound(self, ratio: float, others: float) -> None:
        """Compute the expected ratio and the bound.

        Args:
            ratio: The ratio of failures of the fleet.
            others: Messages that it was learnt from; 0 if it is a guess.
        """
        strength = _WIDE_STRENGTH
        if others:
            apart = self.failed - self.known * ratio
            if apart * apart <= _AGREES**2 * self.known * (1 + self.known / others) * self._chance_variance(ratio):
                strength = _PROVEN_STRENGTH
        failed = max(strength * ratio, _LEAST_PRIOR) + self.failed
        known = strength + self.known
        self.usual = usual = failed / known
        high = max(upper_bound(failed, known - failed), usual * _MARGIN)
        high = usual + sqrt((high - usual) ** 2 + _SPREAD**2 * self._daytime_variance())
        self.bound = min(_GRID ** ceil(log(high) / log(_GRID)), 1.0)

    def _daytime_variance(self) -> float:
        """Return the variance of the ratio between quarters of the day, beyond chance."""
        usual, apart, parts = self.baseline_ratio, 0.0, -1
        for count, failed in zip(self.parts[::2], self.parts[1::2], strict=True):
            if count:
                apart += (failed - count * usual) ** 2 / count
                parts += 1
        if parts < 1:
            return 0.0
        return max(apart - (parts + sqrt(2 * parts)) * self._chance_variance(usual), 0.0) / self.known

    def _chance_variance(self, ratio: float) -> float:
        """Return the variance of failures per message by chance, including their runs."""
        return ratio * (1 - ratio) * (1 + self.repeats) / (1 - self.repeats)


def to_odds(ratio: float) -> float:
    """Return the odds of a ratio below 1."""
    return ratio / (1 - ratio)


def upper_bound(failed: float, passed: float, z: float = _Z) -> float:
    """Return approximately the 95 % quantile of a Beta distribution, or that of another standard score.

    Source: Abramowitz and Stegun 26.5.22, for both parameters above 1/2.
    """
    a, b = max(2 * failed - 1, 1e-3), max(2 * passed - 1, 1e-3)
    curve = (z * z - 3) / 6
    mean = 2 / (1 / a + 1 / b)
    width = z * sqrt(mean + curve) / mean + (1 / b - 1 / a) * (curve + 5 / 6 - 2 / (3 * mean))
    return failed / (failed + passed * exp(-2 * width))
