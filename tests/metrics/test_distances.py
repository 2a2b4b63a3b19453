"""Distances against scikit-learn, their memory, and arrays at the door."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from clouds import sets

from dreamda_aug.metrics import frechet_distance, precision_recall
from dreamda_aug.metrics.distances import nearest
from dreamda_aug.metrics.distributions import mean_discrepancy
from dreamda_aug.metrics.manifolds import density_coverage


def test_nearest_matches_scikit_learn(tile):
    sklearn_neighbors = pytest.importorskip("sklearn.neighbors")
    real, synthetic = sets()
    search = sklearn_neighbors.NearestNeighbors(n_neighbors=1).fit(real)
    expected_distance, expected_index = search.kneighbors(synthetic)
    distance, index = nearest(synthetic, real)
    np.testing.assert_allclose(distance, expected_distance[:, 0], rtol=1e-9)
    np.testing.assert_array_equal(index, expected_index[:, 0])


def test_a_large_common_offset_does_not_change_who_is_nearest():
    real, synthetic = sets()
    expected = nearest(synthetic, real)
    distance, index = nearest(synthetic + 1e8, real + 1e8)
    assert torch.equal(index, expected[1])
    torch.testing.assert_close(distance, expected[0], rtol=1e-6, atol=0)



PEAK_MEMORY = """
import resource, torch
from dreamda_aug.metrics.distances import nearest
from dreamda_aug.metrics.distributions import mean_discrepancy
from dreamda_aug.metrics.manifolds import density_coverage, precision_recall
torch.set_num_threads(1)
features = torch.rand(6000, 4, generator=torch.Generator().manual_seed(0))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
precision_recall(features[:50], features[:50])
before = peak()
precision_recall(features, features)
density_coverage(features, features)
nearest(features, features)
mean_discrepancy(features, features, gamma=1.0)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_memory_stays_far_below_that_of_the_distance_matrix():
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 200  # MB; the matrix has 288


# --- arrays at the door


def test_arrays_that_are_no_features_are_refused():
    real, synthetic = sets()
    with pytest.raises(
        ValueError, match=r"real must be a non-empty array \(N, D\), got .*extract_"
    ):
        precision_recall(torch.rand(4, 3, 8, 8), synthetic)
    with pytest.raises(ValueError, match=r"synthetic must be a non-empty .* got shape \(0, 7\)"):
        mean_discrepancy(real, synthetic[:0])
    broken = real.clone()
    broken[3, 1], broken[5] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"real must be finite, got .* in 2 of 120 rows; drop"):
        density_coverage(broken, synthetic)
    with pytest.raises(ValueError, match=r"real and synthetic must have .* got 7 and 6; use one"):
        frechet_distance(real, synthetic[:, :6])
    with pytest.raises(ValueError, match=r"real must hold real numbers, got torch.complex128"):
        frechet_distance(real + 1j, synthetic)


def test_numpy_arrays_and_single_precision_give_the_same_figures():
    real, synthetic = (part.float() for part in sets())
    expected = precision_recall(real.double(), synthetic.double())
    assert precision_recall(real.numpy(), synthetic.numpy()) == expected
    assert mean_discrepancy(real, synthetic) == mean_discrepancy(real.double(), synthetic.double())
