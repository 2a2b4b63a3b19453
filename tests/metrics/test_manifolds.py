"""Precision, recall, density and coverage against scikit-learn and scipy."""


import pytest
from clouds import sets

from dreamda_aug.metrics import precision_recall
from dreamda_aug.metrics.manifolds import density_coverage


def balls(real, synthetic, k):
    """Which synthetic samples lie in which real balls, by scikit-learn and scipy: (N, M) bool."""
    sklearn_neighbors = pytest.importorskip("sklearn.neighbors")
    distance = pytest.importorskip("scipy.spatial.distance")
    search = sklearn_neighbors.NearestNeighbors(n_neighbors=k).fit(real)
    radius = search.kneighbors()[0][:, -1]  # without an argument it leaves each row itself out
    return distance.cdist(real, synthetic) <= radius[:, None]


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_and_recall_match_scikit_learns_neighbours(k, tile):
    real, synthetic = sets(shift=2.0)
    result = precision_recall(real, synthetic, k=k)
    assert result.precision == balls(real, synthetic, k).any(0).mean()
    assert result.recall == balls(synthetic, real, k).any(0).mean()
    assert 0 < result.recall != result.precision < 1  # the case can tell the two apart


@pytest.mark.parametrize("k", [1, 5])
def test_density_and_coverage_match_scikit_learns_neighbours(k, tile):
    real, synthetic = sets()
    inside = balls(real, synthetic, k)
    result = density_coverage(real, synthetic, k=k)
    assert result.density == pytest.approx(inside.sum() / (k * 90), rel=1e-12)
    assert result.coverage == inside.any(1).mean()
    assert 0 < result.coverage < 1


def test_distant_sets_score_zero_and_copies_score_one():
    real, _ = sets()
    far = precision_recall(real, real + 1e4), density_coverage(real, real + 1e4)
    assert (far[0].precision, far[0].recall) == (0, 0)
    assert (far[1].density, far[1].coverage) == (0, 0)
    same = precision_recall(real, real), density_coverage(real, real)
    assert (same[0].precision, same[0].recall, same[1].coverage) == (1, 1, 1)


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
