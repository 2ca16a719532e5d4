"""The detector of rising failure ratios. How fast and how calm it is, `bench/alerts.py` measures."""

# ruff: noqa: S311 - traffic, not secrets

import math
import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streams.detector import Detector, upper_bound

MINUTE = 60_000
BUDGET = 30.0
ENDS = st.lists(st.tuples(st.booleans(), st.integers(-5 * MINUTE, 60 * MINUTE)), max_size=150)


def fed(ends: list[tuple[bool, int]], detector: Detector | None = None, fleet: float = 0.03) -> Detector:
    """Feed whether each failed, and milliseconds after the one before."""
    detector = detector or Detector()
    at = detector.last_at or 10**12
    for failed, pause in ends:
        at += pause
        detector.take(failed, at, BUDGET, fleet)
    return detector


def learnt(messages: int, ratio: float, seed: int = 1) -> Detector:
    chance = random.Random(seed)
    return fed([(chance.random() < ratio, MINUTE) for _ in range(messages)], fleet=ratio)


def till_firing(detector: Detector, outcomes: list[bool]) -> int | None:
    for number, failed in enumerate(outcomes, 1):
        if detector.take(failed, detector.last_at + MINUTE, BUDGET) == "firing":
            return number
    return None


@settings(deadline=None)
@given(ENDS, st.integers(0, 150))
def test_a_state_that_was_written_and_read_goes_on_as_if_it_had_not(ends: list[tuple[bool, int]], cut: int) -> None:
    stored = msgspec.json.encode(fed(ends[:cut]))
    resumed = fed(ends[cut:], msgspec.json.decode(stored, type=Detector))
    resumed_at_once = fed(ends[cut:], fed(ends[:cut]))
    assert msgspec.json.encode(resumed) == msgspec.json.encode(resumed_at_once)


# It fires, and says of the second rise alone.
@example([(False, 0), (True, 200_000), (True, 1), (True, 0), *[(False, 0)] * 6, *[(True, 0)] * 4])
@settings(deadline=None)
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
    usual.take(False, usual.last_at, BUDGET)
    worse.take(True, worse.last_at, BUDGET)
    assert worse.phase == "firing" or sum(worse.evidence) >= sum(usual.evidence)


def test_a_device_that_delivers_nothing_any_more_is_told_within_six_messages() -> None:
    assert (till_firing(learnt(2_000, 0.03), [True] * 20) or 99) <= 6


def test_a_device_that_goes_on_as_it_was_is_not_told() -> None:
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
            if detector.take(number % 4 == 0, detector.last_at + MINUTE, budget) == "firing":
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
    detector.take(True, detector.last_at + 20 * 86_400_000, BUDGET)
    detector.take(True, detector.last_at, BUDGET)
    assert detector.phase != "firing"


def test_an_alert_ends_when_the_device_is_well_again_and_not_before() -> None:
    detector = learnt(2_000, 0.03)
    assert till_firing(detector, [True] * 20)
    baseline = detector.known, detector.failed
    chance = random.Random(3)
    for _ in range(200):  # half of it mended is not mended
        detector.take(chance.random() < 0.5, detector.last_at + MINUTE, BUDGET)
    assert detector.phase == "firing"
    assert (detector.known, detector.failed) == baseline  # what happens in an alert is no baseline
    needed = next(
        number for number in range(1, 200) if detector.take(False, detector.last_at + MINUTE, BUDGET) == "quiet"
    )
    assert 10 < needed < 100
    assert not any(detector.evidence)


def test_a_rise_is_no_part_of_the_baseline() -> None:
    detector = learnt(2_000, 0.03)
    before = detector.baseline
    till_firing(detector, [number % 5 == 0 for number in range(500)])
    assert detector.phase == "firing"
    assert detector.baseline == pytest.approx(before, rel=0.1)


def test_runs_of_failures_that_are_usual_are_learnt() -> None:
    chance, detector, failed = random.Random(4), Detector(), False
    for _ in range(20_000):
        failed = failed if chance.random() < 0.3 else chance.random() < 0.05
        detector.take(failed, detector.last_at + MINUTE, BUDGET)
    assert 0.2 <= detector.repeats <= 0.4
    assert learnt(20_000, 0.05).repeats <= 0.04


def test_a_fleet_that_fails_more_is_no_news_of_a_new_device() -> None:
    def needed(fleet: float) -> int:
        detector = Detector()
        for number in range(1, 500):
            if detector.take(number % 3 == 0, number * MINUTE, BUDGET, fleet) == "firing":
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
