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
Learning
    A new unit learns from its first messages, and only ratios far above one half are evidence. Then it is compared once
    with the other units of its fleet: one that was bad from its start fires.
Lasting rises
    An alert that has fired for long enough, in messages and in days, ends as the new normal: what was seen since is the
    baseline. The earlier baseline is kept, and comes back when the failures are back at it.
Clusters
    Failures come in runs also when all is well. How likely an outcome repeats is learnt too, and a failure that follows
    one is less evidence by that much.
"""

from math import sqrt
from typing import Final, Literal

from core.alerts import Resolution
from streams.detector_policy import DEFAULT_POLICY, DetectorPolicy
from streams.failure_baseline import REFRESH, FailureBaseline, shrink_fleet_ratio
from streams.failure_statistics import HIGHEST, NO_EVIDENCE, RISES, Evidence, likelihood_ratios, to_odds, upper_bound

DetectorPhase = Literal["learning", "quiet", "pending", "firing"]

_DAY_MS: Final = 86_400_000
_LEARNING_BOUND: Final = 0.5  # only ratios far above one half are evidence: some 17 failures in a row
_BAD_FROM_START_Z: Final = 3.09  # one in a thousand: each unit is compared once with its fleet
_YOUNG: Final = 5  # times the messages of learning; later a unit is not compared with its fleet any more
_BLOCK: Final = 250  # messages, at least
_BLOCK_MS: Final = 3_600_000  # and at least an hour
_PART_MS: Final = 6 * 3_600_000
_REFRESH_SHARE: Final = 0.02  # and this part of the baseline
_WEIGHTS: Final = (0.3, 0.35, 0.15, 0.08, 0.08, 0.04)
# The alternatives whose CUSUMs say since when: what could be a small rise stays out of the baseline, and a failure of
# nearly all is not said to have begun with the chance failures before it.
_GENTLE: Final = 1
_STEEP: Final = 4
_CALIBRATION: Final = 0.55  # of the threshold that is provable, the share that simulation allows: bench/alerts.py
_PENDING: Final = 0.1  # of the threshold
_SUBSIDED: Final = 0.02  # of the threshold
_RECOVERED: Final = 100.0  # likelihood ratio of the baseline to a ratio half-way up to the alert's
_RECOVERED_A_MESSAGE: Final = 0.05  # and more by this for each message of the alert: long alerts have many chances
_RISEN_Z: Final = 2.33  # of the ratio that the rise has at least, 99 %
_LONGEST_PAUSE: Final = 1 / 200  # of the budget; more says nothing, and two failures after a silence are no alert


class ChangeDetector(FailureBaseline, gc=False):
    """One unit's evidence of a rise, next to its baseline.

    Attributes:
        evidence: Days, for each alternative.
        cusum: Likelihood ratio of a small rise since `since`.
        since: When the present rise began, in milliseconds, if there is one.
        count, failures, repetitions: Messages, failures, and failures that followed one, since then.
        steep: Likelihood ratio of a large rise since `steep_since`, with `steep_count` and `steep_failures`.
        last_failed: Whether the last message failed.
        last_at: When the last message ended, in milliseconds; 0 before the first.
        phase: `learning` until the baseline has enough messages; then what is told about it.
        level: The ratio that has to be left behind for an alert to end.
        recovery: Likelihood ratio of that.
        is_to_be_compared: Whether it has learnt and is still to be compared with its fleet.
        fired_at: When its alert fired, in milliseconds; 0 if none is on.
        risen, risen_failed, risen_repeated: Messages while the alert is on, failures among them, and failures that
            followed one. They are halved once they are many, so the latest count most.
        resolution: Why the last alert ended.
    """

    evidence: Evidence = NO_EVIDENCE
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
        self, failed: bool, at: int, policy: DetectorPolicy = DEFAULT_POLICY, fleet: "ChangeDetector | None" = None
    ) -> DetectorPhase:
        """Take the end of a message; return the phase after it.

        Args:
            failed: Whether it failed.
            at: When it ended, in milliseconds. The order of calls counts; a time before the last one adds no time.
            policy: Settings.
            fleet: The detector of the fleet that the unit belongs to, with the unit's own messages; None if it is one.
        """
        if not self.bound:
            self._begin_learning(at, policy, fleet)
        last_failed = self.last_failed
        ratios = likelihood_ratios(self.bound, self.repeats)[2 * last_failed + failed]
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
            self._update_steep_cusum(failed, at, ratios[_STEEP])
        if share >= 1:
            self._fire_alert()
        elif cusum <= 1 or self._has_learnt_enough(policy):
            is_bad_from_start = self._update_baseline(policy, fleet)
            if share < _SUBSIDED and not is_bad_from_start:
                self.phase = "quiet" if self.known >= policy.learn_messages else "learning"
        elif share >= _PENDING:
            self.phase = "pending"
        return self.phase

    def end_alert(self, resolution: Resolution = "recovered") -> None:
        """End an alert, or what could become one: the evidence goes, the baseline stays."""
        self.phase, self.resolution = "quiet", resolution
        self.evidence = NO_EVIDENCE
        self.cusum = self.steep = self.recovery = 1.0
        self.count = self.failures = self.repetitions = self.steep_count = self.steep_failures = 0
        self.fired_at = 0
        self.risen = self.risen_failed = self.risen_repeated = 0.0

    def accept_rise(self, policy: DetectorPolicy, fleet: "ChangeDetector | None") -> None:
        """End the alert that fires: what was seen since it began becomes the baseline."""
        self.former_known, self.former_failed, self.former_repeated = self.known, self.failed, self.repeated
        self.former_usual, self.accepted = self.usual or self.baseline_ratio, self.risen_failed / self.risen
        self.returning = 1.0
        self.is_to_be_compared = False
        self.known, self.failed, self.repeated = self.risen, self.risen_failed, self.risen_repeated
        self.parts = [0.0] * 8
        self.end_alert("new_normal")
        self._update_bound(policy, fleet)

    def include_unit(self, ratio: float, share: float, policy: DetectorPolicy) -> None:
        """Change the baseline of a fleet to what it is with a unit that it was watched without.

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
            self.repetitions = 0  # nothing is learnt from what fired
        self.risen, self.risen_failed, self.risen_repeated = self.count, self.failures, self.repetitions
        self.level = self._end_level()
        self.recovery = 1.0

    def _end_level(self) -> float:
        """Return the ratio that has to be left behind for the alert to end.

        It is half-way between the bound and what the rise is at least, and no less than the smallest rise that is
        looked for. The ratio that made it fire would be too much: it fires where chance adds to a rise.
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
                self.bound = 0.0  # it begins to learn with the next message
        elif (
            policy.relearn_messages is not None
            and self.count >= policy.relearn_messages
            and self.last_at - self.fired_at >= policy.relearn_ms
        ):
            self.accept_rise(policy, fleet)

    def _has_learnt_enough(self, policy: DetectorPolicy) -> bool:
        """Whether a unit that learns is through with it, with what the CUSUM keeps apart."""
        learn = policy.learn_messages
        return self.known < learn <= self.known + self.count

    def _update_baseline(self, policy: DetectorPolicy, fleet: "ChangeDetector | None") -> bool:
        """Take what was apart into the baseline; return whether the alert of a unit that was bad from its start fires.

        That can be one message behind the end of learning, or later, when enough is known of its fleet.
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
            # What was evidence against one half says nothing about the unit's own ratio.
            self.end_alert(self.resolution)
            self.is_to_be_compared = True
            self.block, self.block_at = 0, self.last_at  # or it would fade at once, and learn again
            return self._update_bound(policy, fleet)
        if self.fresh >= REFRESH and self.fresh >= self.known * _REFRESH_SHARE:
            return self._update_bound(policy, fleet)
        return False

    def _update_bound(self, policy: DetectorPolicy, fleet: "ChangeDetector | None") -> bool:
        """Compute the bound, and compare the unit with its fleet if that is due; return whether it fires by that."""
        self.fresh = 0
        self._update_repeats()
        others, others_failed = _fleet_without_unit(self, fleet)
        is_proven = others > 0 and others >= policy.learn_messages
        ratio = shrink_fleet_ratio(others, others_failed)
        if self.known < policy.learn_messages:
            self.usual, self.bound = ratio if is_proven else 0.0, _LEARNING_BOUND
            return False
        is_bad_from_start = False
        if is_proven and self.is_to_be_compared:
            self.is_to_be_compared = False
            # Where there was nobody to compare it with for long, it is what is usual.
            is_young = self.known <= _YOUNG * policy.learn_messages
            is_bad_from_start = is_young and self._is_bad_from_start(others, others_failed)
            if is_bad_from_start:
                self._fire_from_start()
        self._compute_bound(ratio, others if is_proven else 0.0)
        if is_bad_from_start:
            self.level = self._end_level()
        return is_bad_from_start

    def _is_bad_from_start(self, others: float, others_failed: float) -> bool:
        """Whether the unit fails far more than the rest of its fleet, by a rise that would be an alert."""
        passed = max(self.known - self.failed, 0.0)
        low = 1 - upper_bound(passed + 1, self.failed + 1, _BAD_FROM_START_Z)
        high = RISES[0] * to_odds(min(upper_bound(others_failed + 1, others - others_failed + 1), HIGHEST))
        return to_odds(low) > high

    def _fire_from_start(self) -> None:
        self.phase, self.fired_at, self.recovery = "firing", self.last_at, 1.0
        self.since, self.count, self.failures = self.learning_since, round(self.known), round(self.failed)
        self.risen, self.risen_failed, self.risen_repeated = self.known, self.failed, self.repeated
        self.known = self.failed = self.repeated = 0.0
        self.parts = [0.0] * 8


def _fleet_without_unit(unit: ChangeDetector, fleet: ChangeDetector | None) -> tuple[float, float]:
    """Return the messages and the failures that a fleet has learnt from without a unit's own."""
    if fleet is None:
        return 0.0, 0.0
    known = max(fleet.known - unit.known, 0.0)
    return known, min(max(fleet.failed - unit.failed, 0.0), known)
