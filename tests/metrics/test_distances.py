"""Distances, neighbours and balls against scikit-learn and scipy, and the door."""

import numpy as np
import pytest
import torch
from clouds import sets

from dreamda_aug.metrics.distances import (
    density_coverage,
    nearest,
    nearest_other,
    precision_recall,
    replica_diversity,
)
from dreamda_aug.metrics.distributions import frechet_distance, mean_discrepancy


def test_nearest_matches_scikit_learn(tile):
    sklearn_neighbors = pytest.importorskip("sklearn.neighbors")
    real, synthetic = sets()
    search = sklearn_neighbors.NearestNeighbors(n_neighbors=1).fit(real)
    expected_distance, expected_index = search.kneighbors(synthetic)
    distance, index = nearest(synthetic, real)
    np.testing.assert_allclose(distance, expected_distance[:, 0], rtol=1e-9)
    np.testing.assert_array_equal(index, expected_index[:, 0])


def test_nearest_other_matches_scipy_with_the_seed_left_out(tile):
    distance = pytest.importorskip("scipy.spatial.distance")
    training, synthetic = sets()
    full = distance.cdist(synthetic, training)
    seed_index = torch.arange(90) % 7
    seed_index[::2] = torch.from_numpy(full.argmin(1)[::2])  # the nearest of all does not count
    own = full[np.arange(90), seed_index].copy()
    full[np.arange(90), seed_index] = np.inf
    result = nearest_other(synthetic, training, seed_index)
    np.testing.assert_array_equal(result.row, full.argmin(1))
    np.testing.assert_allclose(result.distance, full.min(1), rtol=1e-9)
    np.testing.assert_allclose(result.seed_distance, own, rtol=1e-9)


def test_a_copy_of_another_image_lies_nearer_to_it_than_to_its_seed():
    training = torch.rand(20, 48, generator=torch.Generator().manual_seed(0))
    synthetic = torch.stack([training[3], training[5] + 0.01, training[7]])
    result = nearest_other(synthetic, training, torch.tensor([9, 5, 7]))
    assert (result.distance < result.seed_distance).tolist() == [True, False, False]
    assert result.row[0] == 3
    assert result.distance[0] == 0  # exactly: no rounding left of a matrix product


def test_bad_seed_indices_and_groups_are_refused():
    training, synthetic = sets(n=8, m=5)
    with pytest.raises(ValueError, match=r"seed_index must lie in \[0, 7\], got 0 to 8"):
        nearest_other(synthetic, training, torch.tensor([0, 1, 2, 3, 8]))
    with pytest.raises(ValueError, match=r"training must hold at least 2 images .* got 1"):
        nearest_other(synthetic, training[:1], torch.zeros(5, dtype=torch.long))
    with pytest.raises(ValueError, match=r"groups must name at least one seed image twice, got 3"):
        replica_diversity(torch.rand(3, 2), torch.arange(3))


def test_replica_diversity_matches_scipys_pairwise_distances(tile):
    distance = pytest.importorskip("scipy.spatial.distance")
    features, _ = sets(n=41)
    groups = torch.tensor([4, 9, 2, 9] * 10 + [77])  # unsorted ids, unequal sizes, one loner
    expected = [distance.pdist(features[groups == g]).mean() for g in (2, 4, 9)]
    assert replica_diversity(features, groups) == pytest.approx(np.mean(expected), rel=1e-6)
    assert replica_diversity(torch.full((3, 5), 0.3), torch.zeros(3, dtype=torch.long)) == 0


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
    result = density_coverage(real, synthetic, k=k)
    assert result.density == pytest.approx(inside.sum() / (k * 90), rel=1e-12)
    assert result.coverage == inside.any(1).mean() < 1


def test_copies_on_the_sphere_count_as_inside_whatever_the_rounding():
    real = sets(n=300)[0] * 1e3 + 1e5
    # Of a copied set each ball holds its centre and exactly k others, one of them on its sphere.
    assert density_coverage(real, real, k=5).density == pytest.approx(6 / 5, rel=1e-12)


def test_k_beyond_the_samples_is_refused():
    real, synthetic = sets(n=6, m=4)
    with pytest.raises(ValueError, match=r"k must lie in \[1, 3\].* in synthetic, got 4; pass a s"):
        precision_recall(real, synthetic, k=4)
    with pytest.raises(ValueError, match=r"k must lie in \[1, 5\].* in real, got 0"):
        density_coverage(real, synthetic, k=0)


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
