"""Statistics of failure ratios: credible bounds, and likelihood ratios of the rises that a detector looks for."""

from functools import lru_cache
from math import exp, sqrt
from typing import Any, Final

# Standard score of the credible bound, 95 %.
_Z: Final = 1.645
# Of the bound. Where nearly all messages fail, no rise is left to be found.
_NO_RISE_ABOVE: Final = 0.9
RISES: Final = (2.4, 3.4, 7.0, 15.0, 42.0)
"""Alternatives, as multiples of the bound's odds."""
HIGHEST: Final = 0.98
"""The last alternative, and the largest ratio that has finite odds here."""

Evidence = tuple[float, float, float, float, float, float]
"""A number for each alternative."""
NO_EVIDENCE: Final[Evidence] = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def to_odds(ratio: float) -> float:
    """Return the odds of a ratio below 1."""
    return ratio / (1 - ratio)


@lru_cache(maxsize=4096)
def likelihood_ratios(bound: float, repeats: float) -> tuple[Evidence, ...]:
    """Return the likelihood ratios of the alternatives. The index is twice the failure before, plus this failure."""
    if bound > _NO_RISE_ABOVE:
        return (NO_EVIDENCE, NO_EVIDENCE, NO_EVIDENCE, NO_EVIDENCE)
    odds = to_odds(bound)
    alternatives = [rise * odds / (1 + rise * odds) for rise in RISES] + [max(HIGHEST, (1 + bound) / 2)]
    found: list[Any] = []
    for last in (0, 1):
        usual = repeats * last + (1 - repeats) * bound
        risen = [repeats * last + (1 - repeats) * each for each in alternatives]
        found += [tuple((1 - each) / (1 - usual) for each in risen), tuple(each / usual for each in risen)]
    return tuple(found)


def upper_bound(failed: float, passed: float, z: float = _Z) -> float:
    """Return approximately the 95 % quantile of a Beta distribution, or that of another standard score.

    Source: Abramowitz and Stegun 26.5.22, for both parameters above 1/2.
    """
    a, b = max(2 * failed - 1, 1e-3), max(2 * passed - 1, 1e-3)
    curve = (z * z - 3) / 6
    mean = 2 / (1 / a + 1 / b)
    width = z * sqrt(mean + curve) / mean + (1 / b - 1 / a) * (curve + 5 / 6 - 2 / (3 * mean))
    return failed / (failed + passed * exp(-2 * width))
