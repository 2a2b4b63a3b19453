"""Means and shares of a few measurements, and how far they may be off by chance."""

import math
from collections.abc import Sequence

from scipy.special import stdtrit


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, by Student's t; nan for a single value."""
    mean, error = standard_error(values)
    return mean, error * float(stdtrit(len(values) - 1, 0.975)) if len(values) > 1 else math.nan


def standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error; nan for a single value."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share that was measured on ``count`` things.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    z_squared = 1.959964**2
    middle = (share * count + z_squared / 2) / (count + z_squared)
    half = math.sqrt(z_squared * (count * share * (1 - share) + z_squared / 4))
    half /= count + z_squared
    return max(0.0, middle - half), min(1.0, middle + half)
