"""Neighbours, balls and distributions against scikit-learn and scipy, and the door."""

import warnings

import numpy as np
import pytest
import torch
from clouds import quiet_frechet, sets

from dreamda_aug.metrics import distances
from dreamda_aug.metrics.distances import (
    SmallSampleWarning,
    density_coverage,
    frechet_distance,
    kernel_distance,
    mean_discrepancy,
    nearest,
    paired_distance,
    precision_recall,
    replica_diversity,
)


def test_nearest_matches_scipy_with_and_without_what_does_not_count(tile):
    distance = pytest.importorskip("scipy.spatial.distance")
    real, synthetic = sets()
    full = distance.cdist(synthetic, real)
    found, index = nearest(synthetic, real)
    np.testing.assert_array_equal(index, full.argmin(1))
    np.testing.assert_allclose(found, full.min(1), rtol=1e-9)
    exclude = torch.arange(90) % 7
    exclude[::2] = index[::2]  # the nearest of all does not count
    np.testing.assert_allclose(
        paired_distance(synthetic, real, exclude), full[np.arange(90), exclude], rtol=1e-9)
    full[np.arange(90), exclude] = np.inf
    found, index = nearest(synthetic, real, exclude=exclude)
    np.testing.assert_array_equal(index, full.argmin(1))
    np.testing.assert_allclose(found, full.min(1), rtol=1e-9)


def test_replica_diversity_matches_scipys_pairwise_distances():
    distance = pytest.importorskip("scipy.spatial.distance")
    features, _ = sets(n=41)
    groups = torch.tensor([4, 9, 2, 9] * 10 + [77])  # unsorted ids, unequal sizes, one loner
    expected = [distance.pdist(features[groups == g]).mean() for g in (2, 4, 9)]
    assert replica_diversity(features, groups) == pytest.approx(np.mean(expected), rel=1e-6)
    assert replica_diversity(features[:3], torch.arange(3)) is None


def balls(real, synthetic, k):
    """Which synthetic samples lie in which real balls, by scikit-learn and scipy: (N, M) bool."""
    sklearn_neighbors = pytest.importorskip("sklearn.neighbors")
    distance = pytest.importorskip("scipy.spatial.distance")
    search = sklearn_neighbors.NearestNeighbors(n_neighbors=k).fit(real)
    radius = search.kneighbors()[0][:, -1]  # without an argument it leaves each row itself out
    return distance.cdist(real, synthetic) <= radius[:, None]


@pytest.mark.parametrize("k", [1, 3])
def test_overlaps_of_balls_match_scikit_learns_neighbours(k, tile):
    real, synthetic = sets(shift=2.0)
    result = precision_recall(real, synthetic, k=k)
    assert result.precision == balls(real, synthetic, k).any(0).mean()
    assert result.recall == balls(synthetic, real, k).any(0).mean()
    assert 0 < result.recall != result.precision < 1  # the case can tell the two apart
    inside = balls(real, synthetic, k)
    density, coverage = density_coverage(real, synthetic, k=k)
    assert density == pytest.approx(inside.sum() / (k * 90), rel=1e-12)
    assert coverage == inside.any(1).mean() < 1


def test_copies_on_the_sphere_count_as_inside_whatever_the_rounding():
    real = sets(n=300)[0] * 1e3 + 1e5
    # Of a copied set each ball holds its centre and exactly k others, one of them on its sphere.
    assert density_coverage(real, real, k=5)[0] == pytest.approx(6 / 5, rel=1e-12)


def test_k_beyond_the_samples_is_refused():
    real, synthetic = sets(n=6, m=4)
    with pytest.raises(ValueError, match=r"k must lie in \[1, 3\].* in synthetic, got 4; pass a s"):
        precision_recall(real, synthetic, k=4)
    with pytest.raises(ValueError, match=r"k must lie in \[1, 5\].* in real, got 0"):
        density_coverage(real, synthetic, k=0)


# --- Fréchet distance


def scipy_frechet(real, synthetic):
    linalg = pytest.importorskip("scipy.linalg")
    cov_1, cov_2 = np.cov(real.numpy().T), np.cov(synthetic.numpy().T)
    shift = real.numpy().mean(0) - synthetic.numpy().mean(0)
    return shift @ shift + np.trace(cov_1 + cov_2 - 2 * linalg.sqrtm(cov_1 @ cov_2).real)


def test_frechet_distance_matches_scipys_matrix_root():
    real, synthetic = sets()
    assert quiet_frechet(real, synthetic) == pytest.approx(scipy_frechet(real, synthetic), rel=1e-9)
    assert quiet_frechet(real, real + 2) == pytest.approx(7 * 4, rel=1e-9)
    # fewer samples than dimensions: a singular root costs scipy digits, not ours
    real, synthetic = sets(n=9, m=6, d=20)
    assert quiet_frechet(real, synthetic) == pytest.approx(scipy_frechet(real, synthetic), rel=1e-5)


def test_frechet_distance_of_copies_is_zero_and_never_below():
    rng = np.random.default_rng(0)
    for n in range(5, 35):  # rounding alone falls on both sides of 0
        real = torch.from_numpy(rng.normal(size=(n, 10)))
        assert 0 <= quiet_frechet(real, real) < 1e-9


def test_frechet_distance_warns_of_few_samples_and_names_the_alternative(monkeypatch):
    with pytest.warns(SmallSampleWarning, match=r"120 and 90 samples in 7 .* kernel_distance"):
        frechet_distance(*sets())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(*sets(n=2048, m=2048))
    monkeypatch.setattr(distances, "FRECHET_MIN_SAMPLES", 10)
    with pytest.warns(SmallSampleWarning, match=r"in 30 dimensions .* wants 30 of each"):
        frechet_distance(*sets(n=29, m=31, d=30))


# --- kernel distances


def unbiased(function, real, synthetic, **options):
    """The squared MMD with one of scikit-learn's kernels."""
    within = []
    for rows in (real, synthetic):
        matrix = function(rows, rows, **options)
        within.append(matrix[~np.eye(len(rows), dtype=bool)].mean())
    return sum(within) - 2 * function(real, synthetic, **options).mean()


def test_mean_discrepancy_matches_scikit_learns_kernel(tile):
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    real, synthetic = sets()
    expected = unbiased(pairwise.rbf_kernel, real.numpy(), synthetic.numpy(), gamma=0.03)
    assert mean_discrepancy(real, synthetic, gamma=0.03) == pytest.approx(expected, rel=1e-9)


def test_default_bandwidth_is_the_median_distance():
    distance = pytest.importorskip("scipy.spatial.distance")
    real, synthetic = sets(n=31, m=31)  # an odd number of pairs: the median is unambiguous
    median = np.median(distance.pdist(torch.cat([real, synthetic]).numpy()))
    assert mean_discrepancy(real, synthetic) == pytest.approx(
        mean_discrepancy(real, synthetic, gamma=1 / (2 * median**2)), rel=1e-9)


def test_kernel_distance_of_all_samples_matches_scikit_learns_kernel():
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    real, synthetic = sets(n=90, m=90)
    result = kernel_distance(real, synthetic, subsets=2, subset_size=90)
    expected = unbiased(pairwise.polynomial_kernel, real.numpy(), synthetic.numpy(), gamma=1 / 7,
                        degree=3, coef0=1)
    assert result.mean == pytest.approx(expected, rel=1e-9)
    assert result.std < 1e-9


def test_default_subsets_hold_half_of_a_small_set_so_that_their_spread_says_something():
    real, synthetic = sets()
    result = kernel_distance(real, synthetic)
    assert (result.subsets, result.subset_size) == (100, 45)
    assert result.std > 0.1 * result.mean
    assert kernel_distance(real, synthetic, subsets=1).std == 0
    assert kernel_distance(real[:3], synthetic[:2]).subset_size == 2
    assert kernel_distance(*torch.rand(2, 2500, 2), subsets=1).subset_size == 1000


def test_kernel_distance_depends_on_its_own_seed_only():
    real, synthetic = sets()
    options = {"subsets": 3, "subset_size": 20}
    state = torch.get_rng_state()
    first = kernel_distance(real, synthetic, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert kernel_distance(real, synthetic, **options) == first
    assert kernel_distance(real, synthetic, **options, rng_seed=1) != first


def test_bad_kernel_arguments_are_refused():
    real, synthetic = sets()
    with pytest.raises(ValueError, match=r"subset_size must be .* >= 2 and <= 90, got 91"):
        kernel_distance(real, synthetic, subset_size=91)
    with pytest.raises(ValueError, match=r"subsets must be an integer >= 1, got 0"):
        kernel_distance(real, synthetic, subsets=0)
    with pytest.raises(ValueError, match=r"gamma must be above 0, .* copies of each other"):
        mean_discrepancy(torch.ones(5, 2), torch.ones(5, 2))
    with pytest.raises(ValueError, match=r"synthetic must hold at least 2 samples, got 1"):
        kernel_distance(real, synthetic[:1])


# --- arrays at the door


def test_arrays_that_are_no_features_are_refused():
    real, synthetic = sets()
    with pytest.raises(ValueError, match=r"real must be a non-empty array .* got .*extract_"):
        precision_recall(torch.rand(4, 3, 8, 8), synthetic)
    with pytest.raises(ValueError, match=r"synthetic must be a non-empty .* got shape \(0, 7\)"):
        mean_discrepancy(real, synthetic[:0])
    broken = real.clone()
    broken[3, 1], broken[5] = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"real must be finite, got .* in 2 of 120 rows; drop"):
        density_coverage(broken, synthetic)
    with pytest.raises(ValueError, match=r"real and synthetic must have .* got 7 and 6; use one"):
        frechet_distance(real, synthetic[:, :6])
