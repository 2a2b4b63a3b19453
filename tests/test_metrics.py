"""Metrics against torchmetrics, scipy and scikit-learn on the same arrays."""

import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from dreamda_aug import metrics, neighbours
from dreamda_aug.metrics import (
    NearestClassMean,
    SmallSampleWarning,
    compare_folders,
    density_coverage,
    distance_to_seed,
    frechet_distance,
    kernel_distance,
    label_agreement,
    mean_discrepancy,
    nearest,
    nearest_other,
    precision_recall,
    replica_diversity,
)


def sets(n=120, m=90, d=7, shift=0.7):
    """Two overlapping clouds of unequal size, with correlated dimensions and unequal spread."""
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(d, d))
    real = rng.normal(size=(n, d)) @ mix + 5
    synthetic = 0.8 * rng.normal(size=(m, d)) @ mix + 5 + shift
    return torch.from_numpy(real), torch.from_numpy(synthetic)


@pytest.fixture(params=[1_000_000, 500], ids=["one tile", "many tiles"])
def tile(request, monkeypatch):
    """500 entries split the arrays of ``sets`` into bands of unequal length."""
    monkeypatch.setattr(neighbours, "TILE_ENTRIES", request.param)


def quiet_frechet(real, synthetic):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SmallSampleWarning)
        return frechet_distance(real, synthetic)


# --- Fréchet distance


def scipy_frechet(real, synthetic):
    linalg = pytest.importorskip("scipy.linalg")
    cov_1, cov_2 = np.cov(real.numpy().T), np.cov(synthetic.numpy().T)
    shift = real.numpy().mean(0) - synthetic.numpy().mean(0)
    return shift @ shift + np.trace(cov_1 + cov_2 - 2 * linalg.sqrtm(cov_1 @ cov_2).real)


def test_frechet_distance_matches_scipys_matrix_root():
    real, synthetic = sets()
    assert quiet_frechet(real, synthetic) == pytest.approx(scipy_frechet(real, synthetic), rel=1e-9)


def test_frechet_distance_matches_torchmetrics():
    fid = pytest.importorskip("torchmetrics.image.fid")
    real, synthetic = sets()
    expected = fid._compute_fid(real.mean(0), real.T.cov(), synthetic.mean(0), synthetic.T.cov())
    assert quiet_frechet(real, synthetic) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_of_fewer_samples_than_dimensions_matches_scipy():
    real, synthetic = sets(n=9, m=6, d=20)
    # A singular root costs scipy digits, not ours: hence the loose tolerance.
    assert quiet_frechet(real, synthetic) == pytest.approx(scipy_frechet(real, synthetic), rel=1e-5)


def test_frechet_distance_of_shifted_copies_is_the_squared_shift():
    real, _ = sets()
    assert quiet_frechet(real, real + 2) == pytest.approx(7 * 4, rel=1e-9)


def test_frechet_distance_of_copies_is_zero_and_never_below():
    rng = np.random.default_rng(0)
    for n in range(5, 35):  # rounding alone falls on both sides of 0
        real = torch.from_numpy(rng.normal(size=(n, 10)))
        assert 0 <= quiet_frechet(real, real) < 1e-9


def test_frechet_distance_warns_of_few_samples_and_names_the_alternative():
    with pytest.warns(SmallSampleWarning, match=r"120 and 90 samples in 7 .* kernel_distance"):
        frechet_distance(*sets())


def test_frechet_distance_warns_of_fewer_samples_than_dimensions(monkeypatch):
    monkeypatch.setattr(metrics, "FRECHET_MIN_SAMPLES", 10)
    with pytest.warns(SmallSampleWarning, match=r"in 30 dimensions .* wants 30 of each"):
        frechet_distance(*sets(n=29, m=31, d=30))


def test_frechet_distance_of_enough_samples_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet_distance(*sets(n=2048, m=2048))


def test_frechet_distance_of_one_sample_is_refused():
    real, synthetic = sets()
    with pytest.raises(ValueError, match=r"real must hold at least 2 samples, got 1"):
        frechet_distance(real[:1], synthetic)
    with pytest.raises(ValueError, match=r"synthetic must hold at least 2 samples, got 1"):
        frechet_distance(real, synthetic[:1])


# --- kernel distances


def test_mean_discrepancy_matches_torchmetrics_polynomial_mmd(tile):
    kid = pytest.importorskip("torchmetrics.image.kid")
    real, synthetic = sets(n=90, m=90)  # theirs wants equal sizes
    expected = kid.poly_mmd(real, synthetic).item()
    assert mean_discrepancy(real, synthetic) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
def test_mean_discrepancy_matches_scikit_learns_kernels(kernel, tile):
    pairwise = pytest.importorskip("sklearn.metrics.pairwise")
    real, synthetic = (part.numpy() for part in sets())
    if kernel == "rbf":
        function, options = pairwise.rbf_kernel, {"gamma": 0.03}
    else:
        function, options = pairwise.polynomial_kernel, {"gamma": 0.03, "degree": 2, "coef0": 1}
    within = []
    for rows in (real, synthetic):
        matrix = function(rows, rows, **options)
        within.append(matrix[~np.eye(len(rows), dtype=bool)].mean())
    expected = sum(within) - 2 * function(real, synthetic, **options).mean()
    options.pop("coef0", None)
    assert mean_discrepancy(
        torch.from_numpy(real), torch.from_numpy(synthetic), kernel=kernel, **options
    ) == pytest.approx(expected, rel=1e-9)


def test_default_rbf_bandwidth_is_the_median_distance():
    distance = pytest.importorskip("scipy.spatial.distance")
    real, synthetic = sets(n=31, m=31)  # an odd number of pairs: the median is unambiguous
    median = np.median(distance.pdist(torch.cat([real, synthetic]).numpy()))
    assert mean_discrepancy(real, synthetic, kernel="rbf") == pytest.approx(
        mean_discrepancy(real, synthetic, kernel="rbf", gamma=1 / (2 * median**2)), rel=1e-9
    )


def test_kernel_distance_is_unbiased_while_frechet_distance_is_not():
    rng = np.random.default_rng(0)
    few = [torch.from_numpy(rng.normal(size=(2, 30, 16))) for _ in range(60)]
    unbiased = np.array([mean_discrepancy(a, b) for a, b in few])
    assert abs(unbiased.mean()) < 3 * unbiased.std() / 60**0.5
    assert min(quiet_frechet(a, b) for a, b in few) > 1


def test_kernel_distance_over_subsets_agrees_with_torchmetrics():
    kid = pytest.importorskip("torchmetrics.image.kid")
    real, synthetic = sets(n=400, m=300)
    ours = kernel_distance(real, synthetic, subsets=200, subset_size=50, rng_seed=1)
    drawn = torch.Generator().manual_seed(5)
    theirs = torch.stack(
        [
            kid.poly_mmd(
                real[torch.randperm(400, generator=drawn)[:50]],
                synthetic[torch.randperm(300, generator=drawn)[:50]],
            )
            for _ in range(200)
        ]
    )
    assert abs(ours.mean - theirs.mean().item()) < 4 * theirs.std().item() / 100**0.5
    assert ours.std == pytest.approx(theirs.std().item(), rel=0.25)
    assert (ours.subsets, ours.subset_size) == (200, 50)


def test_kernel_distance_of_all_samples_is_the_mean_discrepancy():
    real, synthetic = sets(n=90, m=90)
    result = kernel_distance(real, synthetic, subsets=2, subset_size=90)
    assert result.mean == pytest.approx(mean_discrepancy(real, synthetic), rel=1e-9)
    assert result.std < 1e-9


def test_default_subsets_hold_half_of_a_small_set_so_that_their_spread_says_something():
    real, synthetic = sets()
    result = kernel_distance(real, synthetic)
    assert (result.subsets, result.subset_size) == (100, 45)
    assert result.std > 0.1 * result.mean
    assert kernel_distance(real, synthetic, subsets=1).std == 0
    assert kernel_distance(real[:3], synthetic[:2]).subset_size == 2
    many = torch.rand(2, 2500, 2)
    assert kernel_distance(*many, subsets=1).subset_size == 1000


def test_kernel_distance_depends_on_its_own_seed_only():
    real, synthetic = sets()
    options = {"subsets": 3, "subset_size": 20}
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = kernel_distance(real, synthetic, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert kernel_distance(real, synthetic, **options) == first
    assert kernel_distance(real, synthetic, **options, rng_seed=1) != first


def test_bad_kernel_arguments_are_refused():
    real, synthetic = sets()
    with pytest.raises(ValueError, match=r"subset_size must lie in \[2, 90\].* got 91; None"):
        kernel_distance(real, synthetic, subset_size=91)
    with pytest.raises(ValueError, match=r"subset_size .* got 1"):
        kernel_distance(real, synthetic, subset_size=1)
    with pytest.raises(ValueError, match=r"subsets must be at least 1, got 0"):
        kernel_distance(real, synthetic, subsets=0)
    with pytest.raises(ValueError, match=r'kernel must be "polynomial" or "rbf", got \'cosine\''):
        mean_discrepancy(real, synthetic, kernel="cosine")
    with pytest.raises(ValueError, match=r"degree must be at least 1, got 0"):
        mean_discrepancy(real, synthetic, degree=0)
    with pytest.raises(ValueError, match=r"gamma must be greater than 0, got -1"):
        mean_discrepancy(real, synthetic, gamma=-1)
    with pytest.raises(ValueError, match=r"gamma must be given: the median distance .* is 0"):
        mean_discrepancy(torch.ones(5, 2), torch.ones(5, 2), kernel="rbf")
    for function in (kernel_distance, mean_discrepancy):
        with pytest.raises(ValueError, match=r"synthetic must hold at least 2 samples, got 1"):
            function(real, synthetic[:1])
        with pytest.raises(ValueError, match=r"real must hold at least 2 samples, got 1"):
            function(real[:1], synthetic)


# --- precision, recall, density, coverage


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


# --- single samples


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


PEAK_MEMORY = """
import resource, torch
from dreamda_aug import metrics
torch.set_num_threads(1)
features = torch.rand(6000, 4, generator=torch.Generator().manual_seed(0))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
metrics.precision_recall(features[:50], features[:50])
before = peak()
metrics.precision_recall(features, features)
metrics.density_coverage(features, features)
metrics.nearest(features, features)
metrics.mean_discrepancy(features, features, kernel="rbf", gamma=1.0)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read in Linux's units")
def test_memory_stays_far_below_that_of_the_distance_matrix():
    done = subprocess.run(
        [sys.executable, "-c", PEAK_MEMORY], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 200  # MB; the matrix has 288


# --- labels


def test_label_agreement_counts_overall_and_per_given_label():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 4, 80) * 3, rng.integers(0, 4, 80) * 3
    result = label_agreement(torch.from_numpy(predictions), torch.from_numpy(labels))
    assert result.overall == sklearn_metrics.accuracy_score(labels, predictions)
    recall = sklearn_metrics.recall_score(labels, predictions, average=None)
    assert list(result.per_class) == [0, 3, 6, 9]
    assert list(result.per_class.values()) == pytest.approx(list(recall))
    assert sum(result.counts.values()) == 80


def test_bad_labels_are_refused():
    with pytest.raises(ValueError, match=r"labels must have shape \(N,\), N >= 1, got \(0,\)"):
        label_agreement(torch.tensor([]), torch.tensor([]))
    with pytest.raises(ValueError, match=r"predictions must have shape \(2,\), got \(2, 5\)"):
        label_agreement(torch.rand(2, 5), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"predictions must be integers, got .*float32.*argmax"):
        label_agreement(torch.rand(2), torch.tensor([0, 1]))


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


# --- folders


def write_images(folder, values, size=8, noise=12):
    rng = np.random.default_rng(len(str(folder)) + sum(values))
    folder.mkdir(parents=True)
    for number, value in enumerate(values):
        pixels = np.clip(value + rng.normal(0, noise, (size, size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.png")


def test_compare_folders_reports_what_the_single_functions_say(tmp_path):
    for name, real_value, synthetic_value in (("dark", 60, 65), ("light", 190, 180)):
        write_images(tmp_path / "real" / name, [real_value] * 12)
        write_images(tmp_path / "synthetic" / name, [synthetic_value] * 8, size=10)
    report = compare_folders(tmp_path / "real", tmp_path / "synthetic", batch_size=5)
    pixels = metrics.pixel_features(size=32)
    real, synthetic = (
        metrics.extract_features(metrics.FolderImages(tmp_path / name), pixels)
        for name in ("real", "synthetic")
    )
    assert (report.real_count, report.synthetic_count, report.feature_count) == (24, 16, 3072)
    assert report.fid == pytest.approx(quiet_frechet(real, synthetic), rel=1e-6)
    assert report.kid == pytest.approx(kernel_distance(real, synthetic).mean, rel=1e-6)
    assert report.mmd == pytest.approx(mean_discrepancy(real, synthetic, kernel="rbf"), rel=1e-6)
    fidelity = precision_recall(real, synthetic), density_coverage(real, synthetic)
    assert (report.precision, report.recall) == (fidelity[0].precision, fidelity[0].recall)
    assert (report.density, report.coverage) == (fidelity[1].density, fidelity[1].coverage)
    assert report.nearest_real == pytest.approx(nearest(synthetic, real)[0].median().item())
    assert report.real_spacing > 0
    assert report.label_agreement == report.real_label_agreement == 1
    assert report.exact_copies == 0
    assert any("kernel_distance" in note for note in report.notes)
    assert any("Pixel features" in note for note in report.notes)
    assert json.loads(json.dumps(report.as_dict())) == report.as_dict()


def test_compare_folders_sees_swapped_labels(tmp_path):
    for name, real_value, synthetic_value in (("dark", 60, 190), ("light", 190, 60)):
        write_images(tmp_path / "real" / name, [real_value] * 6)
        write_images(tmp_path / "synthetic" / name, [synthetic_value] * 6)
    report = compare_folders(tmp_path / "real", tmp_path / "synthetic")
    assert (report.label_agreement, report.real_label_agreement) == (0, 1)


def test_compare_folders_matches_classes_by_name_not_by_number(tmp_path):
    for name, value in (("dark", 30), ("light", 120), ("white", 220)):
        write_images(tmp_path / "real" / name, [value] * 4)
        if name != "dark":
            write_images(tmp_path / "synthetic" / name, [value] * 4)
    assert compare_folders(tmp_path / "real", tmp_path / "synthetic").label_agreement == 1


def test_compare_folders_says_why_there_is_no_label_agreement(tmp_path):
    write_images(tmp_path / "real" / "dark", [50] * 6)
    write_images(tmp_path / "flat", [50] * 6)
    write_images(tmp_path / "other" / "blue", [50] * 6)
    flat = compare_folders(tmp_path / "real", tmp_path / "flat")
    other = compare_folders(tmp_path / "real", tmp_path / "other")
    assert flat.label_agreement is other.label_agreement is None
    assert any("class sub-folders" in note for note in flat.notes)
    assert any("lacks the class 'blue'" in note for note in other.notes)


def test_compare_folders_counts_exact_copies(tmp_path):
    write_images(tmp_path / "real", [80] * 8)
    write_images(tmp_path / "synthetic", [90] * 5)
    for name in ("000.png", "004.png"):
        (tmp_path / "synthetic" / name).write_bytes((tmp_path / "real" / name).read_bytes())
    pixels = np.array(Image.open(tmp_path / "real" / "001.png"))
    pixels[0, 0, 0] += 1  # one grey level in one pixel: near, but no copy
    Image.fromarray(pixels).save(tmp_path / "synthetic" / "001.png")
    report = compare_folders(tmp_path / "real", tmp_path / "synthetic")
    assert report.exact_copies == 2


def test_compare_folders_refuses_folders_with_too_few_images(tmp_path):
    write_images(tmp_path / "six", [80] * 6)
    write_images(tmp_path / "three", [80] * 3)
    with pytest.raises(ValueError, match=r"real_dir must hold at least 6 images, got 3 in .*three"):
        compare_folders(tmp_path / "three", tmp_path / "six")
    with pytest.raises(ValueError, match=r"synthetic_dir must hold at least 4 images, got 3"):
        compare_folders(tmp_path / "six", tmp_path / "three")
