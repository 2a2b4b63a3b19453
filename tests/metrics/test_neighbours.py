"""Replicas, seed images, other images and class means against scipy and scikit-learn."""


import numpy as np
import pytest
import torch
from clouds import sets

from dreamda_aug.metrics import (
    NearestClassMean,
    distance_to_seed,
    nearest_other,
    replica_diversity,
)


def test_nearest_other_matches_scipy_with_the_seed_left_out(tile):
    distance = pytest.importorskip("scipy.spatial.distance")
    training, synthetic = sets()
    full = distance.cdist(synthetic, training)
    seed_index = torch.arange(90) % 7
    seed_index[::2] = torch.from_numpy(full.argmin(1)[::2])  # the nearest of all does not count
    own = full[np.arange(90), seed_index].copy()
    full[np.arange(90), seed_index] = np.inf
    result = nearest_other(synthetic, training, seed_index, threshold=4.0)
    np.testing.assert_array_equal(result.index, full.argmin(1))
    np.testing.assert_allclose(result.distance, full.min(1), rtol=1e-9)
    np.testing.assert_allclose(result.seed_distance, own, rtol=1e-9)
    np.testing.assert_array_equal(result.closer_than_seed, full.min(1) < own)
    np.testing.assert_array_equal(result.below_threshold, full.min(1) < 4)
    np.testing.assert_array_equal(result.flagged, (full.min(1) < own) | (full.min(1) < 4))
    assert 0 < result.below_threshold.sum() < 90
    np.testing.assert_allclose(distance_to_seed(synthetic, training, seed_index), own, rtol=1e-9)


def test_nearest_other_flags_a_copy_of_another_image_and_spares_a_replica_of_the_seed():
    training = torch.rand(20, 48, generator=torch.Generator().manual_seed(0))
    synthetic = torch.stack([training[3], training[5] + 0.01, training[7]])
    result = nearest_other(synthetic, training, torch.tensor([9, 5, 7]), threshold=1e-6)
    assert result.flagged.tolist() == [True, False, False]
    assert result.index[0] == 3
    assert result.distance[0] == 0  # exactly: no rounding left of a matrix product
    without = nearest_other(synthetic, training, torch.tensor([9, 5, 7]))
    assert without.below_threshold is None
    assert without.flagged.tolist() == [True, False, False]


def test_a_twin_of_the_seed_in_the_training_set_is_flagged_by_the_threshold_alone():
    training = torch.rand(4, 8, generator=torch.Generator().manual_seed(0))
    training[2] = training[1]
    result = nearest_other(training[1:2] + 0.01, training, torch.tensor([1]), threshold=0.1)
    assert result.closer_than_seed.tolist() == [False]
    assert result.below_threshold.tolist() == [True]


def test_bad_seed_indices_and_thresholds_are_refused():
    training, synthetic = sets(n=8, m=5)
    with pytest.raises(ValueError, match=r"seed_index must lie in \[0, 7\].*from 0 to 8"):
        nearest_other(synthetic, training, torch.tensor([0, 1, 2, 3, 8]))
    with pytest.raises(ValueError, match=r"seed_index must lie in \[0, 7\].*from -1 to 3"):
        distance_to_seed(synthetic, training, torch.tensor([0, 1, 2, 3, -1]))
    with pytest.raises(ValueError, match=r"seed_index must have shape \(5,\), got \(4,\)"):
        nearest_other(synthetic, training, torch.arange(4))
    with pytest.raises(ValueError, match=r"threshold must be at least 0, got -1"):
        nearest_other(synthetic, training, torch.arange(5), threshold=-1)
    with pytest.raises(ValueError, match=r"training must hold at least 2 images .* got 1"):
        nearest_other(synthetic, training[:1], torch.zeros(5, dtype=torch.long))


def test_replica_diversity_matches_scipys_pairwise_distances(tile):
    distance = pytest.importorskip("scipy.spatial.distance")
    features, _ = sets(n=41)
    groups = torch.tensor([4, 9, 2, 9] * 10 + [77])  # unsorted ids, unequal sizes, one loner
    expected = {g: distance.pdist(features[groups == g]).mean() for g in (2, 4, 9)}
    result = replica_diversity(features, groups)
    assert result.per_group == pytest.approx(expected, rel=1e-6)
    assert result.mean == pytest.approx(np.mean(list(expected.values())), rel=1e-6)
    assert result.skipped == 1


def test_replica_diversity_of_copies_is_zero():
    assert replica_diversity(torch.full((3, 5), 0.3), torch.zeros(3, dtype=torch.long)).mean == 0


def test_replica_diversity_without_two_replicas_is_refused():
    with pytest.raises(ValueError, match=r"groups must name at least one seed image twice, got 3"):
        replica_diversity(torch.rand(3, 2), torch.arange(3))



# --- class means


def test_nearest_class_mean_matches_scikit_learn():
    sklearn_neighbors = pytest.importorskip("sklearn.neighbors")
    features, queries = sets(n=200, m=150, shift=0.1)
    labels = torch.arange(200) % 3 * 10 + 1
    features = features + 0.5 * labels[:, None]
    queries = queries + torch.linspace(0, 11, 150)[:, None]
    reference = sklearn_neighbors.NearestCentroid().fit(features, labels)
    classifier = NearestClassMean.fit(features, labels)
    assert classifier.classes.tolist() == [1, 11, 21]
    np.testing.assert_allclose(classifier.means, reference.centroids_, rtol=1e-9)
    predicted = classifier.predict(queries)
    np.testing.assert_array_equal(predicted, reference.predict(queries))
    assert len(predicted.unique()) == 3


def test_nearest_class_mean_takes_images():
    images = torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)])
    classifier = NearestClassMean.fit(images, torch.tensor([5, 2]))
    assert classifier.predict(images * 0.8 + 0.15).tolist() == [5, 2]


def test_nearest_class_mean_refuses_what_it_was_not_fitted_on():
    classifier = NearestClassMean.fit(torch.rand(4, 3), torch.tensor([0, 1, 0, 1]))
    with pytest.raises(ValueError, match=r"features must have the 3 columns .* got 2; pass"):
        classifier.predict(torch.rand(4, 2))
    with pytest.raises(ValueError, match=r"labels must have shape \(4,\), got \(3,\)"):
        NearestClassMean.fit(torch.rand(4, 3), torch.tensor([0, 1, 0]))
