"""Detector of rising failure ratios: a mixture Shiryaev-Roberts e-detector against a learnt baseline.

It observes the ends of the messages of one unit in their order; a unit is a channel, a device or a source. It is pure:
all its state is in its fields, and the same ends in the same order give the same fields, bit by bit.

Method
    Shin, Ramdas and Rinaldo, "E-detectors" (2022). There are a few alternatives: ratios to which failures could have
    risen. The evidence for each grows with each message by the likelihood ratio of the alternative to the highest ratio
    that the baseline allows. The mean over the alternatives is compared with a threshold. Evidence restarts
    continuously, weighted by the elapsed time. So its expectation is at most the elapsed time, whatever the traffic:
    a threshold of thirty days means at most one false alarm in thirty days on average, at any number of messages.
Baseline
    See `streams.failure_baseline`. A message is added to the baseline once a CUSUM next to the evidence shows that no
    rise has begun. Messages of a possible rise stay apart. They are discarded if it was a rise, and date its beginning.
Learning
    A new unit learns from its first messages, and only ratios far above one half are evidence. Then it is compared once
    with the other units of its fleet: a unit that was bad from its start fires.
Lasting rises
    An alert that has fired for long enough, in messages and in days, ends as the new normal: the messages since its
    beginning become the baseline. The earlier baseline is kept, and is restored when the failures are back at it.
Clusters
    Failures come in runs also in normal operation. The probability of a repeated outcome is learnt too, and a failure
    that follows a failure is less evidence accordingly.
"""

from functools import lru_cache
from math import sqrt
from typing import Any, Final, Literal

from core.alerts import Resolution
from streams.failure_baseline import HIGHEST, REFRESH, RISES, DetectorPolicy, FailureBaseline, to_odds, upper_bound

DetectorPhase = Literal["learning", "quiet", "pending", "firing"]
Evidence = tuple[float, float, float, float, float, float]
"""A number for each alternative."""
_NO_EVIDENCE: Final[Evidence] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)

_DAY_MS: Final = 86_400_000
# Only ratios far above one half are evidence: about 17 failures in a row.
_LEARNING_BOUND: Final = 0.5
# Multiple of the messages of learning. Later, a unit is not compared with its fleet any more.
_YOUNG: Final = 5
# The baseline fades after at least so many messages, and at least an hour.
_BLOCK: Final = 250
_BLOCK_MS: Final = 3_600_000
# A quarter of the day.
_PART_MS: Final = 6 * 3_600_000
# The bound is computed again after this part of the baseline, too.
_REFRESH_SHARE: Final = 0.02
# Of the bound. Where nearly all messages fail, no rise is left to be found.
_NO_RISE_ABOVE: Final = 0.9
# Weights of the alternatives in the mean. Their sum is 1, as the bound on false alarms requires.
_WEIGHTS: Final = (0.3, 0.35, 0.15, 0.08, 0.08, 0.04)
# Indexes of the alternatives whose CUSUMs date a rise. The gentle one keeps messages of a small rise out of the
# baseline. The steep one excludes chance failures before a failure of nearly all messages.
_GENTLE: Final = 1
_STEEP: Final = 4
# The share of the provable threshold that keeps the false alarms in simulations; see bench/alerts.py.
_CALIBRATION: Final = 0.55
# Shares of the threshold.
_PENDING: Final = 0.1
_SUBSIDED: Final = 0.02
# Likelihood ratio of the baseline to a ratio half-way up to that of the alert. It grows with each message of the
# alert, because a long alert has many chances to end by accident.
_RECOVERED: Final = 100.0
_RECOVERED_A_MESSAGE: Final = 0.05
# Standard score of the lower bound of a rise, 99 %.
_RISEN_Z: Final = 2.33
# Share of the budget. A longer pause adds no evidence, so two failures after a silence are no alert.
_LONGEST_PAUSE: Final = 1 / 200


class ChangeDetector(FailureBaseline, gc=False):
    """One unit's evidence of a rise, next to its baseline.

    Attributes:
        evidence: Days, for each alternative.
        cusum: Likelihood ratio of a small rise since `since`.
        since: When the present rise began, in milliseconds, if there is one.
        count, failures, repetitions: Messages, failures, and failures that followed a failure, since then.
        steep: Likelihood ratio of a large rise since `steep_since`, with `steep_count` and `steep_failures`.
        last_failed: Whether the last message failed.
        last_at: Time of the last end, in milliseconds; 0 before the first.
        phase: `learning` until the baseline has enough messages; then the phase of the alert.
        level: The alert ends when the ratio is below this level.
        recovery: Likelihood ratio of that.
        is_to_be_compared: Whether it has learnt and was not compared with its fleet yet.
        fired_at: Time when its alert fired, in milliseconds; 0 if it does not fire.
        risen, risen_failed, risen_repeated: Messages while the alert fires, failures among them, and failures that
            followed a failure. They are halved at a limit, so the latest count most.
        resolution: Reason of the end of the last alert.
    """

    evidence: Evidence = _NO_EVIDENCE
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
    phase: DetectorPhase = "quiet"
    level: float = 0.0
    recovery: float = 1.0
    is_to_be_compared: bool = False
    fired_at: int = 0
    risen: float = 0.0
    risen_failed: float = 0.0
    risen_repeated: float = 0.0
    resolution: Resolution = ""

    def observe_outcome(
        self, failed: bool, at: int, policy: DetectorPolicy, fleet: "ChangeDetector | None" = None
    ) -> DetectorPhase:
        """Add the end of a message; return the phase after it.

        Args:
            failed: Whether the message failed.
            at: Time of the end, in milliseconds. The order of calls counts. A time before the last one adds no time.
            policy: Settings.
            fleet: The detector of the unit's fleet, which has the unit's messages too; None if the unit is a fleet.
        """
        if not self.bound:
            self._begin_learning(at, policy, fleet)
        last_failed = self.last_failed
        ratios = _likelihood_ratios(self.bound, self.repeats)[2 * last_failed + failed]
        if not self.count:
            self.since = at
        self.count += 1
        if failed:
            self.failures += 1
            self.repetitions += last_failed
        self.last_failed = failed
        days, budget_days = 0.0, policy.budget_days
        if at > self.last_at:
            if self.last_at:
                days = min((at - self.last_at) / _DAY_MS, budget_days * _LONGEST_PAUSE)
            self.last_at = at
        if self.phase == "firing":
            self._observe_while_firing(failed, failed and last_failed, policy, fleet)
            return self.phase
        # Written out, because most of the time is spent here.
        a, b, c, d, e, f = self.evidence
        r, s, t, u, v, w = ratios
        self.evidence = a, b, c, d, e, f = (
            *((a + days) * r, (b + days) * s, (c + days) * t),
            *((d + days) * u, (e + days) * v, (f + days) * w),
        )
        g, h, i, j, k, m = _WEIGHTS
        share = (a * g + b * h + c * i + d * j + e * k + f * m) / (_CALIBRATION * budget_days)
        self.cusum = cusum = self.cusum * ratios[_GENTLE]
        if failed or self.steep_count:
            self._update_steep_cusum(failed, at, ratios[_STEEP])
        if share >= 1:
            self._fire_alert()
        elif cusum <= 1 or self.known < policy.learn_messages <= self.known + self.count:
            # No rise has begun, or a unit that learns has enough messages with those that the CUSUM keeps apart.
            is_bad_from_start = self._update_baseline(policy, fleet)
            if share < _SUBSIDED and not is_bad_from_start:
                self.phase = "quiet" if self.known >= policy.learn_messages else "learning"
        elif share >= _PENDING:
            self.phase = "pending"
        return self.phase

    def end_alert(self, resolution: Resolution = "recovered") -> None:
        """End an alert or a possible one: drop the evidence and keep the baseline."""
        self.phase, self.resolution = "quiet", resolution
        self.evidence = _NO_EVIDENCE
        self.cusum = self.steep = self.recovery = 1.0
        self.count = self.failures = self.repetitions = self.steep_count = self.steep_failures = 0
        self.fired_at = 0
        self.risen = self.risen_failed = self.risen_repeated = 0.0

    def accept_rise(self, policy: DetectorPolicy, fleet: "ChangeDetector | None") -> None:
        """End the alert that fires: the messages since its beginning become the baseline."""
        self.former_known, self.former_failed, self.former_repeated = self.known, self.failed, self.repeated
        self.former_usual, self.accepted = self.usual or self.baseline_ratio, self.risen_failed / self.risen
        self.returning = 1.0
        self.is_to_be_compared = False
        self.known, self.failed, self.repeated = self.risen, self.risen_failed, self.risen_repeated
        self.parts = [0.0] * 8
        self.end_alert("new_normal")
        self._update_bound(policy, fleet)

    def include_unit(self, ratio: float, share: float, policy: DetectorPolicy) -> None:
        """Add a unit to the baseline of a fleet that did not observe its messages.

        Args:
            ratio: The unit's ratio of failures.
            share: The unit's part of the fleet's messages, 0 to 1.
            policy: Settings.
        """
        before = self.baseline_ratio
        if not before or self.phase == "firing":
            return
        change = (share * ratio + (1 - share) * before) / before
        self.failed *= change
        self.repeated *= change
        self.parts = [each * change if place % 2 else each for place, each in enumerate(self.parts)]
        self._update_bound(policy, None)

    def _begin_learning(self, at: int, policy: DetectorPolicy, fleet: "ChangeDetector | None") -> None:
        self._update_bound(policy, fleet)
        if self.known < policy.learn_messages:
            self.phase, self.learning_since = "learning", at

    def _fire_alert(self) -> None:
        self.phase, self.fired_at = "firing", self.last_at
        if self.steep > self.cusum:
            self.since, self.count, self.failures = self.steep_since, self.steep_count, self.steep_failures
            # The steep CUSUM does not count them, and nothing is learnt from a rise that fired.
            self.repetitions = 0
        self.risen, self.risen_failed, self.risen_repeated = self.count, self.failures, self.repetitions
        self.level = self._end_level()
        self.recovery = 1.0

    def _end_level(self) -> float:
        """Return the ratio below which the alert ends.

        It is half-way between the bound and the lower bound of the rise, and no less than the smallest alternative. The
        ratio at the time of firing would be too high: an alert fires where chance adds to a rise.
        """
        risen = 1 - upper_bound(self.count - self.failures + 1, self.failures + 1, _RISEN_Z)
        least = RISES[0] * to_odds(min(self.bound, HIGHEST))
        return max(sqrt(self.bound * min(risen, HIGHEST)), least / (1 + least))

    def _update_steep_cusum(self, failed: bool, at: int, ratio: float) -> None:
        self.steep *= ratio
        if self.steep <= 1:
            self.steep, self.steep_count, self.steep_failures = 1.0, 0, 0
            return
        if not self.steep_count:
            self.steep_since = at
        self.steep_count += 1
        self.steep_failures += failed

    def _observe_while_firing(
        self, failed: bool, repeated: bool, policy: DetectorPolicy, fleet: "ChangeDetector | None"
    ) -> None:
        self.risen += 1
        self.risen_failed += failed
        self.risen_repeated += repeated
        if self.risen >= 2 * (policy.relearn_messages or _BLOCK):
            self.risen /= 2
            self.risen_failed /= 2
            self.risen_repeated /= 2
        if failed:
            self.level = max(self.level, self._end_level())
        usual = self.bound / 1.1
        step = usual / self.level if failed else (1 - usual) / (1 - self.level)
        self.recovery = max(self.recovery, 1.0) * step
        if self.recovery >= _RECOVERED + _RECOVERED_A_MESSAGE * self.count:
            self.end_alert()
            if self.known < policy.learn_messages:
                # It begins to learn with the next message.
                self.bound = 0.0
        elif (
            policy.relearn_messages is not None
            and self.count >= policy.relearn_messages
            and self.last_at - self.fired_at >= policy.relearn_ms
        ):
            self.accept_rise(policy, fleet)

    def _update_baseline(self, policy: DetectorPolicy, fleet: "ChangeDetector | None") -> bool:
        """Add the messages that were kept apart to the baseline; return whether the unit fires as bad from its start.

        That can happen at the end of learning, or later, when its fleet has enough messages.
        """
        was_learning = self.known < policy.learn_messages
        self.known += self.count
        self.failed += self.failures
        self.repeated += self.repetitions
        self.fresh += self.count
        part = self.last_at // _PART_MS % 4 * 2
        self.parts[part] += self.count
        self.parts[part + 1] += self.failures
        self.block += self.count
        if self.block >= _BLOCK and self.last_at - self.block_at >= _BLOCK_MS and not was_learning:
            self._fade_baseline(self.last_at)
        if self.former_usual:
            self._restore_former_baseline(self.count, self.failures, self.last_at)
        self.cusum = 1.0
        self.count = self.failures = self.repetitions = 0
        if was_learning and self.known >= policy.learn_messages:
            # Evidence against one half is no evidence against the unit's own ratio.
            self.end_alert(self.resolution)
            self.is_to_be_compared = True
            # Otherwise the baseline would fade at once, and the unit would learn again.
            self.block, self.block_at = 0, self.last_at
            return self._update_bound(policy, fleet)
        if self.fresh >= REFRESH and self.fresh >= self.known * _REFRESH_SHARE:
            return self._update_bound(policy, fleet)
        return False

    def _update_bound(self, policy: DetectorPolicy, fleet: "ChangeDetector | None") -> bool:
        """Compute the bound, and compare the unit with its fleet if that is due; return whether it fires by that."""
        self.fresh = 0
        self._update_repeats()
        others, others_failed, ratio = self._rest_of(fleet)
        is_proven = others > 0 and others >= policy.learn_messages
        if self.known < policy.learn_messages:
            self.usual, self.bound = ratio if is_proven else 0.0, _LEARNING_BOUND
            return False
        is_bad_from_start = False
        if is_proven and self.is_to_be_compared:
            self.is_to_be_compared = False
            # A unit that had no fleet for long counts as normal.
            is_young = self.known <= _YOUNG * policy.learn_messages
            is_bad_from_start = is_young and self._is_bad_from_start(others, others_failed)
            if is_bad_from_start:
                self._fire_from_start()
        self._compute_bound(ratio, others if is_proven else 0.0)
        if is_bad_from_start:
            self.level = self._end_level()
        return is_bad_from_start

    def _fire_from_start(self) -> None:
        self.phase, self.fired_at, self.recovery = "firing", self.last_at, 1.0
        self.since, self.count, self.failures = self.learning_since, round(self.known), round(self.failed)
        self.risen, self.risen_failed, self.risen_repeated = self.known, self.failed, self.repeated
        self.known = self.failed = self.repeated = 0.0
        self.parts = [0.0] * 8


@lru_cache(maxsize=4096)
def _likelihood_ratios(bound: float, repeats: float) -> tuple[Evidence, ...]:
    """Return the likelihood ratios of the alternatives. The index is twice the failure before, plus this failure."""
    if bound > _NO_RISE_ABOVE:
        return (_NO_EVIDENCE, _NO_EVIDENCE, _NO_EVIDENCE, _NO_EVIDENCE)
    odds = to_odds(bound)
    alternatives = [rise * odds / (1 + rise * odds) for rise in RISES] + [max(HIGHEST, (1 + bound) / 2)]
    found: list[Any] = []
    for last in (0, 1):
        usual = repeats * last + (1 - repeats) * bound
        risen = [repeats * last + (1 - repeats) * each for each in alternatives]
        found += [tuple((1 - each) / (1 - usual) for each in risen), tuple(each / usual for each in risen)]
    return tuple(found)
