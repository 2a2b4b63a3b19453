"""Clouds of features for the tests of the measures."""

import warnings

import numpy as np
import torch

from dreamda_aug.metrics.distances import SmallSampleWarning, frechet_distance


def sets(n=120, m=90, d=7, shift=0.7):
    """Two overlapping clouds of unequal size, with correlated dimensions and unequal spread."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(d, d))
    real = rng.normal(size=(n, d)) @ mix + 5
    synthetic = 0.8 * rng.normal(size=(m, d)) @ mix + 5 + shift
    return torch.from_numpy(real), torch.from_numpy(synthetic)


def quiet_frechet(real, synthetic):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSampleWarning)
        return frechet_distance(real, synthetic)
