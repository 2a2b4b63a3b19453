"""Means of a few measurements, and how far they may be off by chance."""

import math
from collections.abc import Sequence

# Halvings of the interval that a quantile is searched in: to the last bit of a float.
_HALVINGS = 100


def student_quantile(share: float, degrees: int) -> float:
    """The quantile of Student's t: what it stays below with this probability.

    Args:
        share: the probability, in (0.5, 1).
        degrees: of freedom, at least 1.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4, whose sums end for whole degrees.
    """
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t / sqrt(degrees)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if (1 + _within(middle, degrees)) / 2 < share:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(degrees)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, by Student's t; nan for a single value."""
    mean, error = standard_error(values)
    return mean, error * student_quantile(0.975, len(values) - 1) if len(values) > 1 else math.nan


def standard_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error; nan for a single value."""
    count = len(values)
    mean = sum(values) / count
    if count < 2:
        return mean, math.nan
    return mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)


def _within(angle: float, degrees: int) -> float:
    """Probability that |t| stays below sqrt(degrees) · tan(angle)."""
    cosine, first = math.cos(angle), degrees % 2
    # terms cos, cos³·2/3, ... for odd degrees, and 1, cos²·1/2, ... for even ones
    term, total = cosine if first else 1.0, 0.0
    for power in range(first, degrees - 1, 2):
        total += term
        term *= cosine**2 * (power + 1) / (power + 2)
    if first:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
