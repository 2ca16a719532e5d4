"""Confidence intervals of ratios. `warehouse/sql/macros.sql` has the same ones in SQL."""

from math import sqrt
from typing import Final

# Standard errors on each side of a 95 % interval: the 97.5 % quantile of the normal distribution.
_Z_95: Final = 1.959963984540054


def wilson_interval(count: int, part: int, z: float = _Z_95) -> tuple[float, float]:
    """Return the Wilson interval of a ratio, 95 % by default; 0 to 1 without observations.

    Args:
        count: Observations.
        part: Those of them that the ratio counts.
        z: Half the width of the interval, in standard errors.
    """
    if not count:
        return 0.0, 1.0
    ratio, z2 = part / count, z * z
    middle = ratio + z2 / (2 * count)
    reach = z * sqrt(ratio * (1 - ratio) / count + z2 / (4 * count * count))
    return max((middle - reach) / (1 + z2 / count), 0.0), min((middle + reach) / (1 + z2 / count), 1.0)
