"""Means, shares and their uncertainty, against scipy."""

import numpy as np
import pytest
from scipy import stats

from dreamda_aug.statistics import interval, wilson_interval


@pytest.mark.parametrize(
    "values", [[0.61, 0.64, 0.58, 0.66], [0.1, 0.3], [0.2, 0.5, 0.4, 0.1, 0.9]])
def test_the_interval_matches_scipys(values):
    mean, half = interval(values)
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert (mean - half, mean + half) == pytest.approx((low, high))
    assert np.isnan(interval([0.5])[1])


@pytest.mark.parametrize("kept, count", [(0, 5), (22, 24), (24, 24), (90, 100)])
def test_the_interval_of_a_share_matches_scipys(kept, count):
    expected = stats.binomtest(kept, count).proportion_ci(method="wilson")
    assert wilson_interval(kept / count, count) == pytest.approx(tuple(expected), abs=1e-6)
