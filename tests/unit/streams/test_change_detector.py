"""The detector of rising failure ratios. How fast and how calm it is, `bench/alerts.py` measures."""

# ruff: noqa: S311 - traffic, not secrets

import math
import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.change_detector import ChangeDetector
from streams.failure_baseline import DetectorPolicy, upper_bound

MINUTE = 60_000
DAY = 86_400_000
POLICY = DetectorPolicy(budget_days=30)
ENDS = st.lists(st.tuples(st.booleans(), st.integers(-5 * MINUTE, 60 * MINUTE)), max_size=150)


def fleet_of(ratio: float, messages: int = 100_000) -> ChangeDetector:
    """The detector of a fleet that is known well."""
    return ChangeDetector(known=float(messages), failed=messages * ratio)


def fed(
    ends: list[tuple[bool, int]], detector: ChangeDetector | None = None, fleet: ChangeDetector | None = None
) -> ChangeDetector:
    """Feed whether each failed, and milliseconds after the one before."""
    detector = detector or ChangeDetector()
    at = detector.last_at or 10**12
    for failed, pause in ends:
        at += pause
        detector.observe_outcome(failed, at, POLICY, fleet)
    return detector


def learnt(messages: int, ratio: float, seed: int = 1) -> ChangeDetector:
    chance = random.Random(seed)
    return fed([(chance.random() < ratio, MINUTE) for _ in range(messages)], fleet=fleet_of(ratio))


def till_firing(detector: ChangeDetector, outcomes: list[bool]) -> int | None:
    for number, failed in enumerate(outcomes, 1):
        if detector.observe_outcome(failed, detector.last_at + MINUTE, POLICY) == "firing":
            return number
    return None


@given(ENDS, st.integers(0, 150))
def test_a_state_that_was_written_and_read_goes_on_as_if_it_had_not(ends: list[tuple[bool, int]], cut: int) -> None:
    stored = msgspec.json.encode(fed(ends[:cut]))
    resumed = fed(ends[cut:], msgspec.json.decode(stored, type=ChangeDetector))
    resumed_at_once = fed(ends[cut:], fed(ends[:cut]))
    assert msgspec.json.encode(resumed) == msgspec.json.encode(resumed_at_once)


# It fires, with the evidence of the second rise alone.
@example([(False, 0), (True, 200_000), (True, 1), (True, 0), *[(False, 0)] * 6, *[(True, 0)] * 4])
@given(ENDS)
def test_numbers_stay_numbers(ends: list[tuple[bool, int]]) -> None:
    seen = fed(ends)
    assert all(math.isfinite(each) and each >= 0 for each in (*seen.evidence, seen.cusum, seen.recovery, seen.known))
    assert 0 <= seen.bound < 1
    assert seen.failed <= seen.known + 1e-9
    assert seen.repetitions <= seen.failures <= seen.count


@given(st.lists(st.booleans(), max_size=60), st.integers(0, 59))
def test_a_failure_in_place_of_a_success_is_never_less_evidence(outcomes: list[bool], place: int) -> None:
    """Of the message itself; what follows is judged by what went before."""
    usual, worse = learnt(500, 0.03), learnt(500, 0.03)
    place = min(place, len(outcomes))
    fed([(failed, MINUTE) for failed in outcomes[:place]], usual)
    fed([(failed, MINUTE) for failed in outcomes[:place]], worse)
    if usual.phase == "firing":
        return
    usual.observe_outcome(False, usual.last_at, POLICY)
    worse.observe_outcome(True, worse.last_at, POLICY)
    assert worse.phase == "firing" or sum(worse.evidence) >= sum(usual.evidence)


def test_a_device_that_stops_delivering_fires_within_six_messages() -> None:
    assert (till_firing(learnt(2_000, 0.03), [True] * 20) or 99) <= 6


def test_a_device_without_a_change_does_not_fire() -> None:
    detector, chance = learnt(2_000, 0.03), random.Random(2)
    assert till_firing(detector, [chance.random() < 0.03 for _ in range(20_000)]) is None


def test_a_higher_baseline_needs_more_failures() -> None:
    failing = [True] * 50
    needed = [till_firing(learnt(2_000, ratio), failing) or 99 for ratio in (0.01, 0.05, 0.2, 0.5)]
    assert all(less <= more for less, more in pairwise(needed))
    assert needed[0] < needed[-1]


def test_a_longer_budget_needs_no_less() -> None:
    def needed(budget: float) -> int:
        detector = learnt(2_000, 0.03)
        for number in range(1, 100):
            if detector.observe_outcome(number % 4 == 0, detector.last_at + MINUTE, DetectorPolicy(budget)) == "firing":
                return number
        raise AssertionError

    assert needed(1) < needed(30) < needed(3_000)


def test_it_says_since_when() -> None:
    detector = learnt(5_000, 0.03)
    began = detector.last_at + MINUTE
    till_firing(detector, [True] * 20)
    assert began - 60 * MINUTE <= detector.since <= began
    assert detector.failures >= 4


def test_a_silence_and_two_failures_are_no_alert() -> None:
    detector = learnt(2_000, 0.03)
    detector.observe_outcome(True, detector.last_at + 20 * 86_400_000, POLICY)
    detector.observe_outcome(True, detector.last_at, POLICY)
    assert detector.phase != "firing"


def test_an_alert_ends_when_the_device_is_well_again_and_not_before() -> None:
    detector = learnt(2_000, 0.03)
    assert till_firing(detector, [True] * 20)
    baseline = detector.known, detector.failed
    chance = random.Random(3)
    for _ in range(200):  # half of it fixed is not fixed
        detector.observe_outcome(chance.random() < 0.5, detector.last_at + MINUTE, POLICY)
    assert detector.phase == "firing"
    assert (detector.known, detector.failed) == baseline  # what happens in an alert is no baseline
    needed = next(
        number
        for number in range(1, 200)
        if detector.observe_outcome(False, detector.last_at + MINUTE, POLICY) == "quiet"
    )
    assert 10 < needed < 100
    assert not any(detector.evidence)


def test_a_rise_is_no_part_of_the_baseline() -> None:
    detector = learnt(2_000, 0.03)
    before = detector.baseline_ratio
    till_firing(detector, [number % 5 == 0 for number in range(500)])
    assert detector.phase == "firing"
    assert detector.baseline_ratio == pytest.approx(before, rel=0.1)


def test_runs_of_failures_that_are_usual_are_learnt() -> None:
    chance, detector, failed = random.Random(4), ChangeDetector(), False
    for _ in range(20_000):
        failed = failed if chance.random() < 0.3 else chance.random() < 0.05
        detector.observe_outcome(failed, detector.last_at + MINUTE, POLICY)
    assert 0.2 <= detector.repeats <= 0.4
    assert learnt(20_000, 0.05).repeats <= 0.04


def test_a_fleet_that_fails_more_is_no_news_of_a_new_device() -> None:
    def needed(fleet: float) -> int:
        detector = ChangeDetector()
        for number in range(1, 500):
            if (
                detector.observe_outcome(
                    number % 3 == 0, number * MINUTE, DetectorPolicy(learn_messages=0), fleet_of(fleet)
                )
                == "firing"
            ):
                return number
        return 500

    assert needed(0.03) < needed(0.1) < needed(0.3)


@given(st.floats(2, 5_000), st.floats(2, 50_000))
def test_the_bound_is_near_the_exact_quantile(failed: float, passed: float) -> None:
    total, bound, steps = failed + passed, upper_bound(failed, passed), 500
    beta = math.lgamma(failed) + math.lgamma(passed) - math.lgamma(total)
    width = min(1 - bound, 12 * math.sqrt(failed * passed / total**3)) / steps
    middles = (bound + (number + 0.5) * width for number in range(steps))
    above = sum(math.exp((failed - 1) * math.log(x) + (passed - 1) * math.log1p(-x) - beta) for x in middles) * width
    assert 0.02 <= above <= 0.07  # of few failures, rather too high a bound


def random_ends(messages: int, ratio: float, seed: int = 1) -> list[tuple[bool, int]]:
    chance = random.Random(seed)
    return [(chance.random() < ratio, MINUTE) for _ in range(messages)]


@pytest.mark.parametrize("ratio", [0.005, 0.05, 0.15, 0.2, 0.3, 0.4])
def test_new_units_of_any_usual_ratio_learn_it_and_fire_no_more_often_than_the_budget_allows(ratio: float) -> None:
    fired = 0
    for seed in range(20):  # 28 days in all, of a budget of 30
        detector = ChangeDetector()
        for failed, pause in random_ends(2_000, ratio, seed):
            before = detector.phase
            fired += (
                detector.observe_outcome(failed, (detector.last_at or 10**12) + pause, POLICY) == "firing" != before
            )
        assert detector.phase != "firing"
        assert detector.baseline_ratio == pytest.approx(ratio, abs=5 * math.sqrt(ratio / 2_000))
    assert fired <= 1


def test_a_unit_learns_for_a_settable_number_of_messages() -> None:
    for learn in (50, 200, 1_000):
        detector, policy = ChangeDetector(), DetectorPolicy(learn_messages=learn)
        phases = [
            detector.observe_outcome(number % 10 == 5, 10**12 + number * MINUTE, policy) for number in range(1_200)
        ]
        assert phases[0] == "learning"
        assert phases.count("learning") == learn - 1
        assert set(phases[learn - 1 :]) == {"quiet"}


def test_while_a_unit_learns_only_near_total_failure_fires() -> None:
    for ratio in (0.3, 0.5):
        for seed in range(5):
            assert fed(random_ends(199, ratio, seed)).phase == "learning"
    needed = till_firing(ChangeDetector(last_at=10**12), [True] * 100)
    assert needed is not None
    assert 10 <= needed <= 25


def test_a_new_unit_with_a_rise_while_it_learns_goes_on_learning_and_says_so() -> None:
    assert fed([*random_ends(100, 0.03), *random_ends(50, 0.5, 2)]).phase == "learning"


def test_an_unproven_fleet_says_less_about_a_unit_than_a_proven_one() -> None:
    def bound(fleet: ChangeDetector | None) -> float:
        return fed(random_ends(250, 0.02, 3), fleet=fleet).bound

    assert bound(fleet_of(0.03)) < bound(None)
    assert bound(fleet_of(0.03)) < bound(fleet_of(0.03, messages=300))


def test_a_unit_that_contradicts_its_fleet_is_judged_by_its_own_past() -> None:
    unit = fed(random_ends(250, 0.15, 4), fleet=fleet_of(0.08))
    assert unit.phase != "firing"
    assert 0.15 < unit.bound < 0.22


def test_a_unit_that_was_bad_from_its_start_fires_when_it_has_learnt() -> None:
    detector = ChangeDetector(last_at=10**12)
    needed = next(
        number
        for number, (failed, pause) in enumerate(random_ends(500, 0.5), 1)
        if detector.observe_outcome(failed, detector.last_at + pause, POLICY, fleet_of(0.12)) == "firing"
    )
    assert needed == POLICY.learn_messages
    assert detector.since == 10**12 + MINUTE
    assert detector.count == needed
    assert 0.4 < detector.failures / detector.count < 0.6
    assert detector.usual == pytest.approx(0.12, abs=0.01)


def test_a_unit_somewhat_worse_than_its_fleet_does_not_fire_nor_one_whose_fleet_is_unknown() -> None:
    assert fed(random_ends(300, 0.2), fleet=fleet_of(0.12)).phase != "firing"
    assert fed(random_ends(300, 0.5), fleet=fleet_of(0.12, messages=150)).phase != "firing"
    # Its own messages are in its fleet too: alone, it is compared with nobody.
    alone = ChangeDetector()
    for failed, pause in random_ends(300, 0.5):
        assert alone.observe_outcome(failed, (alone.last_at or 10**12) + pause, POLICY, alone) != "firing"


@pytest.mark.parametrize(("usual", "risen"), [(0.03, 0.15), (0.03, 0.9), (0.1, 0.4), (0.03, 1.0)])
def test_a_rise_that_stays_fires_once_and_becomes_the_new_normal(usual: float, risen: float) -> None:
    chance, detector = random.Random(5), learnt(2_000, usual)
    changes = [("quiet", 0)]
    for number in range(15_000):
        phase = detector.observe_outcome(chance.random() < risen, detector.last_at + MINUTE, POLICY)
        if (phase == "firing") != (changes[-1][0] == "firing"):
            changes.append((phase, number))
    assert [phase for phase, _ in changes] == ["quiet", "firing", "quiet"]
    assert (changes[2][1] - changes[1][1]) * MINUTE == pytest.approx(POLICY.relearn_ms, abs=2 * MINUTE)
    assert detector.resolution == "new_normal"
    assert detector.baseline_ratio == pytest.approx(risen, abs=0.03)


def test_both_messages_and_days_have_to_pass_before_a_rise_is_the_new_normal() -> None:
    policy = DetectorPolicy(relearn_messages=300, relearn_ms=2 * DAY)

    def till_it_ends(pause: int, policy: DetectorPolicy) -> tuple[int, int]:
        detector = learnt(2_000, 0.03)
        till_firing(detector, [True] * 20)
        fired_at = detector.fired_at
        for number in range(1, 20_000):
            if detector.observe_outcome(number % 2 == 0, detector.last_at + pause, policy) != "firing":
                return detector.count or number, detector.last_at - fired_at
        return 20_000, 0

    messages, lasted = till_it_ends(DAY // 50, policy)
    assert 290 <= messages <= 300
    assert lasted > 2 * DAY
    messages, lasted = till_it_ends(DAY // 1_000, policy)
    assert messages > 1_900
    assert 2 * DAY <= lasted <= 2 * DAY + DAY // 500
    assert till_it_ends(MINUTE, DetectorPolicy(relearn_messages=None)) == (20_000, 0)


def test_a_unit_that_was_bad_from_its_start_becomes_its_own_normal_too() -> None:
    detector, fired = ChangeDetector(), 0
    for failed, pause in random_ends(20_000, 0.5):
        before = detector.phase
        fired += (
            detector.observe_outcome(failed, (detector.last_at or 10**12) + pause, POLICY, fleet_of(0.1))
            != before
            == "quiet"
        )
    assert detector.phase == "quiet"
    assert detector.resolution == "new_normal"
    assert detector.baseline_ratio == pytest.approx(0.5, abs=0.03)


def test_what_became_normal_is_forgotten_when_the_failures_are_back_at_what_was_usual_before() -> None:
    detector = learnt(5_000, 0.03)
    fed(random_ends(12_000, 0.6), detector)
    assert detector.resolution == "new_normal"
    fed(random_ends(600, 0.03), detector)
    assert detector.baseline_ratio < 0.05
    assert (till_firing(detector, random_outcomes(0.6)) or 99) <= 25


def test_a_rise_above_the_new_normal_fires_again() -> None:
    detector = fed(random_ends(14_000, 0.2), learnt(2_000, 0.03))
    assert detector.resolution == "new_normal"
    assert (till_firing(detector, random_outcomes(0.7)) or 99) <= 40


def random_outcomes(ratio: float, messages: int = 100) -> list[bool]:
    return [failed for failed, _ in random_ends(messages, ratio, 6)]


def test_an_alert_that_fired_by_chance_ends_though_hardly_anything_ever_fails() -> None:
    """One failure in two hundred says little, so what ends the alert are messages that do not fail."""
    detector = learnt(5_000, 0.005)
    assert till_firing(detector, [number % 10 == 0 for number in range(300)])
    lasted = next(
        number
        for number in range(1, 5_000)
        if detector.observe_outcome(number % 200 == 0, detector.last_at + MINUTE, POLICY) == "quiet"
    )
    assert detector.resolution == "recovered"
    assert lasted <= 1_000
