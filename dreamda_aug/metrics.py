"""How close synthetic images are to real ones: distances between distributions, label agreement.

Pure functions on features (N, D), float64 inside. What rests on distances between single samples
is in :mod:`dreamda_aug.neighbours`, how images become features in :mod:`dreamda_aug.features`;
the names a user needs are all importable from here.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from dreamda_aug import neighbours
from dreamda_aug.features import (
    FeatureFunction,
    FolderImages,
    classifier_features,
    extract_features,
    inception_features,
    pixel_features,
)
from dreamda_aug.neighbours import (
    DensityCoverage,
    NearestClassMean,
    NearestOther,
    PrecisionRecall,
    ReplicaDiversity,
    check_integers,
    check_pair,
    density_coverage,
    distance_to_seed,
    nearest,
    nearest_other,
    precision_recall,
    replica_diversity,
)

__all__ = [
    "DensityCoverage",
    "FeatureFunction",
    "FolderImages",
    "KernelDistance",
    "LabelAgreement",
    "MetricsReport",
    "NearestClassMean",
    "NearestOther",
    "PrecisionRecall",
    "ReplicaDiversity",
    "SmallSampleWarning",
    "classifier_features",
    "compare_folders",
    "density_coverage",
    "distance_to_seed",
    "extract_features",
    "frechet_distance",
    "inception_features",
    "kernel_distance",
    "label_agreement",
    "mean_discrepancy",
    "nearest",
    "nearest_other",
    "pixel_features",
    "precision_recall",
    "replica_diversity",
]

# Below this many samples the published FID numbers are not reproduced even with N > D
# (the FID authors' own code recommends at least 2,048 for Inception's 2,048 dimensions).
FRECHET_MIN_SAMPLES = 2048


class SmallSampleWarning(UserWarning):
    """A figure is biased because it rests on few samples."""


@dataclass(frozen=True)
class KernelDistance:
    """Kernel inception distance over random subsets; smaller is closer, 0 in expectation if equal.

    Attributes:
        mean: mean over subsets of the unbiased squared MMD; may fall slightly below 0.
        std: population standard deviation over subsets.
        subsets: how many were drawn.
        subset_size: samples of each set in one subset.
    """

    mean: float
    std: float
    subsets: int
    subset_size: int


@dataclass(frozen=True)
class LabelAgreement:
    """Share of samples whose predicted label equals the given one.

    Attributes:
        overall: over all samples, in [0, 1].
        per_class: given label -> share within it, in [0, 1].
        counts: given label -> number of samples.
    """

    overall: float
    per_class: dict[int, float]
    counts: dict[int, int]


@dataclass(frozen=True)
class MetricsReport:
    """What :func:`compare_folders` found.

    Attributes:
        real_count: images in the real folder.
        synthetic_count: images in the synthetic folder.
        features: the feature function's repr.
        feature_count: D.
        fid: Fréchet distance; called FID by convention only with Inception features.
        kid: mean kernel distance.
        kid_std: its standard deviation over subsets.
        mmd: squared MMD of all samples, RBF kernel with the median bandwidth.
        precision: Kynkäänniemi's, k = 3.
        recall: Kynkäänniemi's, k = 3.
        density: Naeem's, k = 5.
        coverage: Naeem's, k = 5.
        nearest_real: median distance of a synthetic image to the nearest real one.
        real_spacing: median distance of a real image to the nearest other real one.
        exact_copies: synthetic images whose features equal a real image's.
        label_agreement: share of synthetic images that a nearest-class-mean classifier fitted on
            the real folder puts into the class of their folder; None without shared class folders.
        real_label_agreement: the same of the real images it was fitted on, an optimistic yardstick.
        notes: what a reader of the figures should know.
    """

    real_count: int
    synthetic_count: int
    features: str
    feature_count: int
    fid: float
    kid: float
    kid_std: float
    mmd: float
    precision: float
    recall: float
    density: float
    coverage: float
    nearest_real: float
    real_spacing: float
    exact_copies: int
    label_agreement: float | None
    real_label_agreement: float | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, object]:
        """Plain numbers, strings and lists, ready for JSON."""
        return asdict(self) | {"notes": list(self.notes)}


def frechet_distance(real: Tensor, synthetic: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians fitted to the features; FID with Inception's.

    Args:
        real: features (N, D), N >= 2.
        synthetic: features (M, D), M >= 2.

    Returns:
        ``|mu_1 - mu_2|^2 + Tr(S_1 + S_2 - 2 (S_1 S_2)^(1/2))``, at least 0.

    Warns:
        SmallSampleWarning: below 2,048 samples, or fewer samples than dimensions.

    Source: Heusel et al. 2017, arXiv:1706.08500, eq. 6.
    """
    real, synthetic = check_pair(real, synthetic)
    _check_two("real", real)
    _check_two("synthetic", synthetic)
    note = _small_sample_note(real, synthetic)
    if note:
        warnings.warn(note, SmallSampleWarning, stacklevel=2)
    return _frechet(real, synthetic)


def kernel_distance(
    real: Tensor,
    synthetic: Tensor,
    *,
    subsets: int = 100,
    subset_size: int | None = None,
    degree: int = 3,
    rng_seed: int = 0,
) -> KernelDistance:
    """Kernel (inception) distance, KID: unbiased squared MMD with ``(x.y / D + 1)^degree``.

    Args:
        real: features (N, D).
        synthetic: features (M, D).
        subsets: random subsets to average over; 100 as the paper's code.
        subset_size: samples drawn from each set without replacement, at least 2; None takes 1,000
            as the paper's code, but at most half of the smaller set: subsets that hold everything
            are all alike, and their std of 0 would look like certainty.
        degree: of the polynomial kernel; 3 is the paper's choice.
        rng_seed: of the draws; the global generator is not touched.

    Source: Bińkowski et al. 2018, arXiv:1801.01401, section 4.
    """
    real, synthetic = check_pair(real, synthetic)
    _check_two("real", real)
    _check_two("synthetic", synthetic)
    smaller = min(len(real), len(synthetic))
    if subset_size is None:
        subset_size = min(1000, max(2, smaller // 2))
    if not 2 <= subset_size <= smaller:
        raise ValueError(
            f"subset_size must lie in [2, {smaller}], the size of the smaller set, "
            f"got {subset_size}; None chooses it."
        )
    if subsets < 1:
        raise ValueError(f"subsets must be at least 1, got {subsets}.")
    generator = torch.Generator().manual_seed(rng_seed)
    values = []
    for _ in range(subsets):
        some_real = torch.randperm(len(real), generator=generator)[:subset_size]
        some_synthetic = torch.randperm(len(synthetic), generator=generator)[:subset_size]
        values.append(
            mean_discrepancy(
                real[some_real.to(real.device)],
                synthetic[some_synthetic.to(real.device)],
                degree=degree,
            )
        )
    values = torch.tensor(values, dtype=torch.float64)
    return KernelDistance(
        mean=values.mean().item(),
        std=values.std(correction=0).item(),
        subsets=subsets,
        subset_size=subset_size,
    )


def mean_discrepancy(
    real: Tensor,
    synthetic: Tensor,
    *,
    kernel: str = "polynomial",
    degree: int = 3,
    gamma: float | None = None,
) -> float:
    """Unbiased squared maximum mean discrepancy (MMD) of all samples; may fall slightly below 0.

    Args:
        real: features (N, D), N >= 2.
        synthetic: features (M, D), M >= 2.
        kernel: "polynomial", ``(gamma x.y + 1)^degree``, or "rbf", ``exp(-gamma |x - y|^2)``.
        degree: of the polynomial kernel, at least 1.
        gamma: > 0. None is 1 / D for "polynomial" (as KID) and 1 / (2 m^2) for "rbf", where m is
            the median distance within the pooled samples (at most 1,000 of each set, evenly
            spaced), the median heuristic of Gretton's section 8.

    Source: Gretton et al. 2012, JMLR 13, eq. 3.
    """
    real, synthetic = check_pair(real, synthetic)
    _check_two("real", real)
    _check_two("synthetic", synthetic)
    if kernel not in ("polynomial", "rbf"):
        raise ValueError(f'kernel must be "polynomial" or "rbf", got {kernel!r}.')
    if degree < 1:
        raise ValueError(f"degree must be at least 1, got {degree}.")
    if gamma is not None and not gamma > 0:
        raise ValueError(f"gamma must be greater than 0, got {gamma}; None chooses it.")
    if gamma is None:
        gamma = 1 / real.shape[1] if kernel == "polynomial" else _median_gamma(real, synthetic)

    def total(rows: Tensor, columns: Tensor) -> float:
        """Sum of the kernel matrix, in bands of bounded memory."""
        if kernel == "rbf":
            tiles = neighbours.distance_tiles(rows, columns)
            return sum((-gamma * d.square()).exp().sum().item() for _, d in tiles)
        band = max(1, neighbours.TILE_ENTRIES // len(columns))
        parts = rows.split(band)
        return sum((gamma * part @ columns.T + 1).pow(degree).sum().item() for part in parts)

    def within(rows: Tensor) -> float:
        """Mean over pairs of different samples: what makes the estimate unbiased."""
        n = len(rows)
        if kernel == "rbf":
            own = float(n)
        else:
            own = (gamma * rows.square().sum(1) + 1).pow(degree).sum().item()
        return (total(rows, rows) - own) / (n * (n - 1))

    between = total(real, synthetic) / (len(real) * len(synthetic))
    return within(real) + within(synthetic) - 2 * between


def label_agreement(predictions: Tensor, labels: Tensor) -> LabelAgreement:
    """Share of samples on which a classifier and the given labels agree, overall and per class.

    Args:
        predictions: labels that a classifier gave, (N,) integers.
        labels: labels the samples carry, (N,) integers, N >= 1.
    """
    labels = torch.as_tensor(labels)
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels must have shape (N,), N >= 1, got {tuple(labels.shape)}.")
    labels = check_integers("labels", labels, len(labels)).cpu()
    equal = check_integers("predictions", predictions, len(labels)).cpu() == labels
    of_class = {label: equal[labels == label] for label in labels.unique().tolist()}
    return LabelAgreement(
        overall=equal.double().mean().item(),
        per_class={label: same.double().mean().item() for label, same in of_class.items()},
        counts={label: len(same) for label, same in of_class.items()},
    )


def compare_folders(
    real_dir: str | os.PathLike,
    synthetic_dir: str | os.PathLike,
    *,
    features: FeatureFunction | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    rng_seed: int = 0,
) -> MetricsReport:
    """Compare two folders of images, each one flat or with one sub-folder per class.

    Images are read as RGB, one batch at a time; only their features stay in memory.

    Args:
        real_dir: the real images, at least 6.
        synthetic_dir: the synthetic images, at least 4.
        features: images (B, 3, H, W) in [0, 1] -> (B, D). None is ``pixel_features(size=32)``,
            which needs no weights but sees colours and layout rather than content.
        batch_size: images per call of ``features``.
        device: where the images are put before that call.
        rng_seed: of KID's subsets.
    """
    folders = FolderImages(real_dir), FolderImages(synthetic_dir)
    # k = 5 of density, k = 3 of recall: each needs k others.
    for name, folder, least in zip(("real_dir", "synthetic_dir"), folders, (6, 4), strict=True):
        if len(folder) < least:
            raise ValueError(
                f"{name} must hold at least {least} images, got {len(folder)} in {folder.root}."
            )
    notes = []
    if features is None:
        features = pixel_features(size=32)
        notes.append("Pixel features see colours and layout, not content: compare runs only.")
    real, synthetic = (
        extract_features(folder, features, batch_size=batch_size, device=device).double()
        for folder in folders
    )
    small = _small_sample_note(real, synthetic)
    if small:
        notes.append(small)
    kid = kernel_distance(real, synthetic, rng_seed=rng_seed)
    pr = precision_recall(real, synthetic)
    dc = density_coverage(real, synthetic)
    to_real = nearest(synthetic, real)[0]
    spacing = nearest(real, real, exclude=torch.arange(len(real)))[0]
    agreement = real_agreement = None
    labels = _shared_labels(*folders)
    if isinstance(labels, str):
        notes.append(labels)
    else:
        classifier = NearestClassMean.fit(real, labels[0])
        real_agreement = label_agreement(classifier.predict(real), labels[0]).overall
        agreement = label_agreement(classifier.predict(synthetic), labels[1]).overall
    return MetricsReport(
        real_count=len(real),
        synthetic_count=len(synthetic),
        features=repr(features),
        feature_count=real.shape[1],
        fid=_frechet(real, synthetic),
        kid=kid.mean,
        kid_std=kid.std,
        mmd=mean_discrepancy(real, synthetic, kernel="rbf"),
        precision=pr.precision,
        recall=pr.recall,
        density=dc.density,
        coverage=dc.coverage,
        nearest_real=to_real.median().item(),
        real_spacing=spacing.median().item(),
        exact_copies=int((to_real == 0).sum()),
        label_agreement=agreement,
        real_label_agreement=real_agreement,
        notes=tuple(notes),
    )


def _frechet(real: Tensor, synthetic: Tensor) -> float:
    (mean_1, root_1), (mean_2, root_2) = _gaussian(real), _gaussian(synthetic)
    # With S = A'A, the eigenvalues of S_1 S_2 are the squared singular values of A_1 A_2'. No
    # covariance is squared up or rooted, so singular ones (N < D) lose no digits.
    overlap = torch.linalg.svdvals(root_1 @ root_2.T).sum()
    value = (mean_1 - mean_2).square().sum() + root_1.square().sum() + root_2.square().sum()
    # clamp: equal sets give -1e-13.
    return (value - 2 * overlap).clamp(min=0).item()


def _gaussian(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and a matrix A (min(N, D), D) with A'A the unbiased covariance."""
    mean = features.mean(0)
    root = (features - mean) / (len(features) - 1) ** 0.5
    if root.shape[0] > root.shape[1]:
        root = torch.linalg.qr(root, mode="r").R
    return mean, root


def _median_gamma(real: Tensor, synthetic: Tensor) -> float:
    pooled = torch.cat([rows[:: -(-len(rows) // 1000)] for rows in (real, synthetic)])
    median = torch.pdist(pooled).median().item()
    if median == 0:
        raise ValueError(
            "gamma must be given: the median distance of the pooled samples is 0, most of them "
            "are copies of each other."
        )
    return 1 / (2 * median**2)


def _shared_labels(real: FolderImages, synthetic: FolderImages) -> tuple[Tensor, Tensor] | str:
    """Labels of both folders in the real one's numbering, or the reason why there are none."""
    if real.labels is None or synthetic.labels is None:
        return "No label agreement: it needs class sub-folders on both sides."
    unknown = sorted(set(synthetic.class_names) - set(real.class_names))
    if unknown:
        return f"No label agreement: the real folder lacks the class {unknown[0]!r}."
    number = torch.tensor([real.class_names.index(name) for name in synthetic.class_names])
    return torch.tensor(real.labels), number[torch.tensor(synthetic.labels)]


def _small_sample_note(real: Tensor, synthetic: Tensor) -> str | None:
    smaller, dimensions = min(len(real), len(synthetic)), real.shape[1]
    if smaller >= max(FRECHET_MIN_SAMPLES, dimensions):
        return None
    return (
        f"The Fréchet distance of {len(real)} and {len(synthetic)} samples in {dimensions} "
        f"dimensions is biased upwards (it wants {max(FRECHET_MIN_SAMPLES, dimensions)} of each); "
        "prefer kernel_distance, which is unbiased."
    )


def _check_two(name: str, features: Tensor) -> None:
    if len(features) < 2:
        raise ValueError(f"{name} must hold at least 2 samples, got {len(features)}.")
