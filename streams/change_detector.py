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

from functools import lru_cache
from math import ceil, exp, log, sqrt
from typing import Any, Final, Literal

import msgspec

Phase = Literal["learning", "quiet", "pending", "firing"]
Resolution = Literal["", "recovered", "new_normal"]

DEFAULT_RATIO: Final = 0.03
"""The ratio of failures of a fleet of which nothing is known."""

_DAY_MS: Final = 86_400_000
# A proven fleet's ratio counts for as many messages where a unit agrees with it. A ratio that is a guess, or that the
# unit's own messages contradict, counts for few: with 100, a guess of 3 % hides a true 20 % for thousands of messages.
_PROVEN_STRENGTH: Final = 100.0
_WIDE_STRENGTH: Final = 20.0
_LEAST_PRIOR: Final = 1.0  # failures and other messages; `upper_bound` is near for that many
_AGREES: Final = 2.0  # standard deviations between a unit's failures and what its fleet's ratio has
_LEARNING_BOUND: Final = 0.5  # only ratios far above one half are evidence: some 17 failures in a row
_BAD_FROM_START_Z: Final = 3.09  # one in a thousand: each unit is compared once with its fleet
_YOUNG: Final = 5  # times the messages of learning; later a unit is not compared with its fleet any more
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
_NO_RISE_ABOVE: Final = 0.9  # of the bound; where nearly all fail, no rise is left to be found
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
_RECOVERED_A_MESSAGE: Final = 0.05  # and more by this for each message of the alert: long alerts have many chances
_RISEN_Z: Final = 2.33  # of the ratio that the rise has at least, 99 %
_RETURNED: Final = 1e5  # likelihood ratio of the baseline before an accepted rise to a ratio half-way up to the rise
_LONGEST_PAUSE: Final = 1 / 200  # of the budget; more says nothing, and two failures after a silence are no alert

_Evidence = tuple[float, float, float, float, float, float]
_NONE: Final[_Evidence] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class DetectorPolicy(msgspec.Struct, frozen=True, gc=False):
    """Settings of all detectors of a stream.

    Attributes:
        budget_days: Days of one false alarm of each unit, on average.
        learn_messages: Messages that a new unit learns from before its ratio of failures is judged.
        relearn_messages: Messages after which a rise that stays is the new normal; None: never.
        relearn_ms: Milliseconds for which the alert must have fired, too.
    """

    budget_days: float = 30.0
    learn_messages: int = 200
    relearn_messages: int | None = 500
    relearn_ms: int = 7 * _DAY_MS


DEFAULT_POLICY: Final = DetectorPolicy()


class ChangeDetector(msgspec.Struct, gc=False):
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
        phase: `learning` until the baseline has enough messages; then what is told about it.
        level: The ratio that has to be left behind for an alert to end.
        recovery: Likelihood ratio of that.
        usual: The ratio that failures are expected to have: the baseline's, shrunk towards the fleet. While the unit
            learns, the fleet's, or 0 if that is not known.
        learning_since: When the unit began to learn, in milliseconds.
        is_to_be_compared: Whether it has learnt and is still to be compared with its fleet.
        fired_at: When its alert fired, in milliseconds; 0 if none is on.
        risen, risen_failed, risen_repeated: Messages while the alert is on, failures among them, and failures that
            followed one. They are halved once they are many, so the latest count most.
        former_known, former_failed, former_repeated, former_usual: The baseline before the last rise that became the
            new normal, and the ratio it expects; the latter is 0 if there is none.
        accepted: The ratio that became the new normal then.
        returning: Likelihood ratio of the failures being back at the former baseline.
        resolution: Why the last alert ended.
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
    usual: float = 0.0
    learning_since: int = 0
    is_to_be_compared: bool = False
    fired_at: int = 0
    risen: float = 0.0
    risen_failed: float = 0.0
    risen_repeated: float = 0.0
    former_known: float = 0.0
    former_failed: float = 0.0
    former_repeated: float = 0.0
    former_usual: float = 0.0
    accepted: float = 0.0
    returning: float = 1.0
    resolution: Resolution = ""

    def observe_outcome(
        self, failed: bool, at: int, policy: DetectorPolicy = DEFAULT_POLICY, fleet: "ChangeDetector | None" = None
    ) -> Phase:
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

    @property
    def rise_ratio(self) -> float:
        """The ratio of failures since the present rise began."""
        return self.failures / self.count if self.count else 0.0

    @property
    def baseline_ratio(self) -> float:
        """The ratio of failures that is usual for the unit, of what was learnt alone."""
        return self.failed / self.known if self.known else 0.0

    def end_alert(self, resolution: Resolution = "recovered") -> None:
        """End an alert, or what could become one: the evidence goes, the baseline stays."""
        self.phase, self.resolution = "quiet", resolution
        self.evidence = _NONE
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
        least = _RISES[0] * _to_odds(min(self.bound, _HIGHEST))
        return max(sqrt(self.bound * min(risen, _HIGHEST)), least / (1 + least))

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
            self._fade_baseline()
        if self.former_usual:
            self._restore_former_baseline()
        self.cusum = 1.0
        self.count = self.failures = self.repetitions = 0
        if was_learning and self.known >= policy.learn_messages:
            # What was evidence against one half says nothing about the unit's own ratio.
            self.end_alert(self.resolution)
            self.is_to_be_compared = True
            self.block, self.block_at = 0, self.last_at  # or it would fade at once, and learn again
            return self._update_bound(policy, fleet)
        if self.fresh >= _REFRESH and self.fresh >= self.known * _REFRESH_SHARE:
            return self._update_bound(policy, fleet)
        return False

    def _restore_former_baseline(self) -> None:
        """Bring back the baseline before an accepted rise when the failures are back at it."""
        usual, middle = self.former_usual, sqrt(self.former_usual * min(self.accepted, _HIGHEST))
        if middle <= usual:
            return
        passed = self.count - self.failures
        self.returning = max(self.returning, 1.0) * (usual / middle) ** self.failures
        self.returning *= ((1 - usual) / (1 - middle)) ** passed
        if self.returning < _RETURNED:
            return
        self.known, self.failed, self.repeated = self.former_known, self.former_failed, self.former_repeated
        self.former_usual = self.accepted = 0.0
        self.parts = [0.0] * 8
        self.learning_since = self.last_at  # where the unit had not learnt before the rise
        self.fresh = _REFRESH + int(self.known)  # the bound is computed at once

    def _fade_baseline(self) -> None:
        self.block, self.block_at = 0, self.last_at
        rest = 1 - 1 / _MEMORY
        self.known *= rest
        self.failed *= rest
        self.repeated *= rest
        self.parts = [each * rest for each in self.parts]

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
        """Return the variance of failures a message that chance has, with their runs."""
        return ratio * (1 - ratio) * (1 + self.repeats) / (1 - self.repeats)

    def _update_bound(self, policy: DetectorPolicy, fleet: "ChangeDetector | None") -> bool:
        """Compute the bound, and compare the unit with its fleet if that is due; return whether it fires by that."""
        self.fresh = 0
        excess = (self.repeated - self.failed * self.baseline_ratio) / (self.failed + _REPEAT_STRENGTH)
        self.repeats = min(max(round(excess * _REPEAT_GRID), 0), _REPEAT_GRID * 9 // 10) / _REPEAT_GRID
        others, others_failed = _fleet_without_unit(self, fleet)
        is_proven = others > 0 and others >= policy.learn_messages
        ratio = (_WIDE_STRENGTH * DEFAULT_RATIO + others_failed) / (_WIDE_STRENGTH + others)
        ratio = min(max(ratio, 0.01), 0.5)
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
        strength = _WIDE_STRENGTH
        if is_proven:
            apart = self.failed - self.known * ratio
            if apart * apart <= _AGREES**2 * self.known * (1 + self.known / others) * self._chance_variance(ratio):
                strength = _PROVEN_STRENGTH
        failed = max(strength * ratio, _LEAST_PRIOR) + self.failed
        known = strength + self.known
        self.usual = usual = failed / known
        high = max(upper_bound(failed, known - failed), usual * _MARGIN)
        high = usual + sqrt((high - usual) ** 2 + _SPREAD**2 * self._daytime_variance())
        self.bound = min(_GRID ** ceil(log(high) / log(_GRID)), 1.0)
        if is_bad_from_start:
            self.level = self._end_level()
        return is_bad_from_start

    def _is_bad_from_start(self, others: float, others_failed: float) -> bool:
        """Whether the unit fails far more than the rest of its fleet, by a rise that would be an alert."""
        passed = max(self.known - self.failed, 0.0)
        low = 1 - upper_bound(passed + 1, self.failed + 1, _BAD_FROM_START_Z)
        high = _RISES[0] * _to_odds(min(upper_bound(others_failed + 1, others - others_failed + 1), _HIGHEST))
        return _to_odds(low) > high

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


def _to_odds(ratio: float) -> float:
    return ratio / (1 - ratio)


@lru_cache(maxsize=4096)
def _likelihood_ratios(bound: float, repeats: float) -> tuple[_Evidence, ...]:
    """Return the likelihood ratios of the alternatives, for twice whether the message before failed, plus this one."""
    if bound > _NO_RISE_ABOVE:
        return (_NONE, _NONE, _NONE, _NONE)
    odds = _to_odds(bound)
    alternatives = [rise * odds / (1 + rise * odds) for rise in _RISES] + [max(_HIGHEST, (1 + bound) / 2)]
    found: list[Any] = []
    for last in (0, 1):
        usual = repeats * last + (1 - repeats) * bound
        risen = [repeats * last + (1 - repeats) * each for each in alternatives]
        found += [tuple((1 - each) / (1 - usual) for each in risen), tuple(each / usual for each in risen)]
    return tuple(found)


def upper_bound(failed: float, passed: float, z: float = _Z) -> float:
    """Return about the 95 % quantile of a Beta distribution, or that of another standard score.

    Abramowitz and Stegun 26.5.22, for both parameters over 1/2.
    """
    a, b = max(2 * failed - 1, 1e-3), max(2 * passed - 1, 1e-3)
    curve = (z * z - 3) / 6
    mean = 2 / (1 / a + 1 / b)
    width = z * sqrt(mean + curve) / mean + (1 / b - 1 / a) * (curve + 5 / 6 - 2 / (3 * mean))
    return failed / (failed + passed * exp(-2 * width))
