"""Replicas, seed images and other images against scipy."""

import numpy as np
import pytest
import torch
from clouds import sets

from dreamda_aug.metrics.neighbours import nearest_other, replica_diversity


def test_nearest_other_matches_scipy_with_the_seed_left_out(tile):
    distance = pytest.importorskip("scipy.spatial.distance")
    training, synthetic = sets()
    full = distance.cdist(synthetic, training)
    seed_index = torch.arange(90) % 7
    seed_index[::2] = torch.from_numpy(full.argmin(1)[::2])  # the nearest of all does not count
    own = full[np.arange(90), seed_index].copy()
    full[np.arange(90), seed_index] = np.inf
    result = nearest_other(synthetic, training, seed_index)
    np.testing.assert_array_equal(result.index, full.argmin(1))
    np.testing.assert_allclose(result.distance, full.min(1), rtol=1e-9)
    np.testing.assert_allclose(result.seed_distance, own, rtol=1e-9)


def test_a_copy_of_another_image_lies_nearer_to_it_than_to_its_seed():
    training = torch.rand(20, 48, generator=torch.Generator().manual_seed(0))
    synthetic = torch.stack([training[3], training[5] + 0.01, training[7]])
    result = nearest_other(synthetic, training, torch.tensor([9, 5, 7]))
    assert (result.distance < result.seed_distance).tolist() == [True, False, False]
    assert result.index[0] == 3
    assert result.distance[0] == 0  # exactly: no rounding left of a matrix product


def test_bad_seed_indices_are_refused():
    training, synthetic = sets(n=8, m=5)
    with pytest.raises(ValueError, match=r"seed_index must lie in \[0, 7\].*from 0 to 8"):
        nearest_other(synthetic, training, torch.tensor([0, 1, 2, 3, 8]))
    with pytest.raises(ValueError, match=r"seed_index must lie in \[0, 7\].*from -1 to 3"):
        nearest_other(synthetic, training, torch.tensor([0, 1, 2, 3, -1]))
    with pytest.raises(ValueError, match=r"seed_index must have shape \(5,\), got \(4,\)"):
        nearest_other(synthetic, training, torch.arange(4))
    with pytest.raises(ValueError, match=r"training must hold at least 2 images .* got 1"):
        nearest_other(synthetic, training[:1], torch.zeros(5, dtype=torch.long))


def test_replica_diversity_matches_scipys_pairwise_distances(tile):
    distance = pytest.importorskip("scipy.spatial.distance")
    features, _ = sets(n=41)
    groups = torch.tensor([4, 9, 2, 9] * 10 + [77])  # unsorted ids, unequal sizes, one loner
    expected = [distance.pdist(features[groups == g]).mean() for g in (2, 4, 9)]
    assert replica_diversity(features, groups) == pytest.approx(np.mean(expected), rel=1e-6)
    assert replica_diversity(torch.full((3, 5), 0.3), torch.zeros(3, dtype=torch.long)) == 0


def test_replica_diversity_without_two_replicas_is_refused():
    with pytest.raises(ValueError, match=r"groups must name at least one seed image twice, got 3"):
        replica_diversity(torch.rand(3, 2), torch.arange(3))
