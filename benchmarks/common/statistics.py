"""Means and their uncertainty."""

import math
from collections.abc import Sequence

import torch
from scipy import stats


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval, by Student's t; nan for a single value."""
    values = torch.tensor(values, dtype=torch.float64)
    if len(values) < 2:
        return values.mean().item(), math.nan
    quantile = stats.t.ppf(0.975, len(values) - 1)
    return values.mean().item(), (quantile * values.std() / len(values) ** 0.5).item()
