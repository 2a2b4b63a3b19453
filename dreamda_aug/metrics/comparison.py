"""Two folders of images compared by every measure."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamda_aug.arguments import checked
from dreamda_aug.files import open_file, parse_json, read_lines
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.metrics.distances import (
    density_coverage,
    kernel_distance,
    mean_discrepancy,
    nearest,
    paired_distance,
    precision_recall,
    replica_diversity,
    small_sample_note,
    squared_frechet,
)
from dreamda_aug.metrics.features import (
    FeatureFunction,
    as_colour,
    extract_features,
    pixel_features,
)


@dataclass(frozen=True)
class MetricsReport:
    """What :func:`compare_folders` found.

    Attributes:
        real_count, synthetic_count: images in each folder.
        features: the feature function's repr.
        feature_count: D.
        fid: Fréchet distance; called FID by convention only with Inception features.
        kid: mean kernel distance.
        kid_std: its standard deviation over subsets.
        mmd: squared MMD of all samples, RBF kernel with the median bandwidth.
        precision, recall: Kynkäänniemi's, k = 3.
        density, coverage: Naeem's, k = 5.
        nearest_real: median distance of a synthetic image to the nearest real one.
        real_spacing: median distance of a real image to the nearest other real one.
        exact_copies: synthetic images whose features equal a real image's.
        diversity: mean distance between two replicas of one seed image; this and the next three
            are None unless `expand` made the synthetic folder from images of the real one.
        seed_distance: median distance of a synthetic image to its own seed image.
        nearest_other: median distance of a synthetic image to the nearest real image that is not
            its seed image.
        closer_to_other: share of synthetic images that are nearer to that one than to their seed
            image: memorised, or the seed image has a twin.
        label_agreement: share of synthetic images that a nearest-class-mean classifier, fitted on
            the real folder, assigns to their class folder; None without shared class folders.
        real_label_agreement: the same of the real images it was fitted on, which is optimistic.
        notes: limits of the figures, as sentences.
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
    diversity: float | None = None
    seed_distance: float | None = None
    nearest_other: float | None = None
    closer_to_other: float | None = None
    label_agreement: float | None = None
    real_label_agreement: float | None = None
    notes: tuple[str, ...] = ()


@checked
def compare_folders(
    real_dir: str | os.PathLike[str], synthetic_dir: str | os.PathLike[str], *,
    features: FeatureFunction | None = None, batch_size: int = 64,
    device: str | torch.device = "cpu", rng_seed: int = 0,
) -> MetricsReport:
    """Compare two folders of images, each one flat or with one sub-folder per class.

    Images are read as RGB, one batch at a time; only their features stay in memory.

    Args:
        real_dir: the real images, at least 6.
        synthetic_dir: the synthetic images, at least 4.
        features: images (B, 3, H, W) in [0, 1] -> (B, D), or None for ``pixel_features(size=32)``,
            which needs no weights but sees colours and layout rather than content.
        batch_size: images per call of ``features``.
        device: where the images are put before that call.
        rng_seed: of KID's subsets.
    """
    folders = open_seed_images(real_dir), open_seed_images(synthetic_dir)
    # k = 5 of density, k = 3 of recall: each needs k others.
    for name, folder, least in zip(("real_dir", "synthetic_dir"), folders, (6, 4), strict=True):
        if len(folder) < least:
            raise ValueError(
                f"{name} must hold at least {least} images, got {len(folder)} in {folder.root}.")
    notes = []
    if features is None:
        features = pixel_features(size=32)
        notes.append("Pixel features see colours and layout, not content: compare runs only.")
    real, synthetic = (
        extract_features(
            (as_colour(folder.read(row).values) for row in range(len(folder))), features,
            batch_size=batch_size, device=device).double()
        for folder in folders)
    notes += filter(None, [small_sample_note(real, synthetic)])
    kid = kernel_distance(real, synthetic, rng_seed=rng_seed)
    density, coverage = density_coverage(real, synthetic)
    to_real = nearest(synthetic, real)[0]
    spacing = nearest(real, real, exclude=torch.arange(len(real)))[0]
    figures: dict[str, Any] = {}
    seeds, labels = _seed_rows(*folders), _shared_labels(*folders)
    if isinstance(seeds, str):
        notes.append(seeds)
    else:
        own = paired_distance(synthetic, real, seeds)
        other = nearest(synthetic, real, exclude=seeds)[0]
        figures |= {"diversity": replica_diversity(synthetic, seeds),
                    "seed_distance": own.median().item(), "nearest_other": other.median().item(),
                    "closer_to_other": (other < own).double().mean().item()}
    if isinstance(labels, str):
        notes.append(labels)
    else:
        present = labels[0].unique()
        means = torch.stack([real[labels[0] == label].mean(0) for label in present])
        for name, rows, given in (("real_label_agreement", real, labels[0]),
                                  ("label_agreement", synthetic, labels[1])):
            same = present[nearest(rows, means)[1]] == given
            figures[name] = same.double().mean().item()
    return MetricsReport(
        real_count=len(real), synthetic_count=len(synthetic),
        features=repr(features), feature_count=real.shape[1],
        fid=squared_frechet(real, synthetic), kid=kid.mean, kid_std=kid.std,
        mmd=mean_discrepancy(real, synthetic),
        **precision_recall(real, synthetic)._asdict(),
        density=density, coverage=coverage,
        nearest_real=to_real.median().item(), real_spacing=spacing.median().item(),
        exact_copies=int((to_real == 0).sum()), notes=tuple(notes), **figures)


def _shared_labels(real: SeedImages, synthetic: SeedImages) -> tuple[Tensor, Tensor] | str:
    """Labels of both folders in the real one's numbering, or the reason why there are none."""
    if not real.labels or not synthetic.labels:
        return "No label agreement: it needs class sub-folders on both sides."
    unknown = sorted(set(synthetic.classes) - set(real.classes))
    if unknown:
        return f"No label agreement: the real folder lacks the class {unknown[0]!r}."
    number = torch.tensor([real.classes.index(name) for name in synthetic.classes])
    return torch.tensor(real.labels), number[torch.tensor(synthetic.labels)]


def _seed_rows(real: SeedImages, synthetic: SeedImages) -> Tensor | str:
    """Each synthetic image's seed image as a row of the real folder, or why that is not known."""
    manifest = Path(synthetic.root or "") / "manifest.jsonl"
    if not manifest.is_file():
        return "No distances to seed images: they need the manifest.jsonl that expand writes."
    rows = {path: row for row, path in enumerate(real.paths)}
    with open_file(manifest) as file:
        lines = [parse_json(line, where) for where, line in read_lines(file, str(manifest))]
    seed_of = {line["file"]: rows.get(line["seed_path"]) for line in lines}
    found = [seed_of.get(path) for path in synthetic.paths]
    if None in found:
        missing = Path(synthetic.paths[found.index(None)]).name
        return f"No distances to seed images: that of {missing} is not in the real folder."
    return torch.tensor(found)
