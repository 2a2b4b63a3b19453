"""Means and their uncertainty."""

import numpy as np
import pytest
from scipy import stats

from benchmarks.common.statistics import interval


def test_the_interval_matches_scipys():
    values = [0.61, 0.64, 0.58, 0.66]
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, 3, np.mean(values), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(interval([0.5])[1])
