"""What a probe says about synthetic images without having learned from their seed images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamda_aug.arguments import whole
from dreamda_aug.generation.probe import logistic_regression
from dreamda_aug.metrics.distances import check_integers
from dreamda_aug.metrics.features import FeatureFunction, extract_features


def predict_out_of_fold(
    features: FeatureFunction,
    images: Tensor,
    targets: Tensor,
    synthetic: Tensor,
    seed_index: Tensor,
    *,
    num_classes: int,
    folds: int = 3,
    inverse_penalty: float = 30.0,
) -> tuple[Tensor, Tensor]:
    """Classes of synthetic images, each by a probe that has not seen the image it was made from.

    With the second answer, what `LabelPrior.estimate` needs to learn how often the class asked for
    is the class that came out.

    Args:
        features: images (B, C, H, W) in [0, 1] to (B, D), such as `backbone_features`.
        images: labelled images, (N, C, H, W) in [0, 1].
        targets: their class indices, (N,).
        synthetic: (M, C, H, W) in [0, 1].
        seed_index: the labelled image that each was made from, (M,) integers.
        num_classes: C.
        folds: at least 2; each class is dealt out to them in turn.
        inverse_penalty: as in `LinearProbe`.

    Returns:
        Predicted classes (M,) int64, and P(predicted | true) on labelled images out of fold,
        (true, predicted), smoothed by one count per row.

    Raises:
        ValueError: labels or indices out of range, or a class with fewer than two images.

    Source: ours (cross-fitting).
    """
    folds = whole("folds", folds, 2)
    targets = check_integers("targets", targets, len(images)).cpu()
    seed_index = check_integers("seed_index", seed_index, len(synthetic)).cpu()
    if len(synthetic) and not 0 <= int(seed_index.min()) <= int(seed_index.max()) < len(images):
        raise ValueError(f"seed_index must lie in [0, {len(images) - 1}].")
    if int(targets.bincount(minlength=num_classes).min()) < 2:
        raise ValueError(
            "every class needs two labelled images or more: one to learn from while the other is "
            "held out."
        )
    real, made = (extract_features(part, features).double() for part in (images, synthetic))
    mean, deviation = real.mean(0), real.std(0).clamp(min=1e-6)
    real, made = (F.normalize((part - mean) / deviation, dim=1) for part in (real, made))
    fold = torch.zeros_like(targets)
    for label in range(num_classes):
        rows = (targets == label).nonzero().flatten()
        fold[rows] = torch.arange(len(rows)) % folds
    predicted = torch.zeros(len(synthetic), dtype=torch.int64)
    seen = torch.zeros_like(targets)
    for number in fold.unique():
        held_out, of_held_out = fold == number, fold[seed_index] == number
        weight, bias = logistic_regression(
            real[~held_out], targets[~held_out], num_classes, inverse_penalty)
        seen[held_out] = (real[held_out] @ weight.T + bias).argmax(1)
        predicted[of_held_out] = (made[of_held_out] @ weight.T + bias).argmax(1)
    cells = torch.bincount(targets * num_classes + seen, minlength=num_classes**2)
    confusion = cells.view(num_classes, num_classes).double()
    # with few images, errors are spread evenly rather than trusted cell by cell
    right = confusion.diagonal().sum() / confusion.sum()
    typical = torch.full_like(confusion, float(1 - right) / max(1, num_classes - 1))
    typical.fill_diagonal_(float(right))
    confusion = confusion + typical
    return predicted, (confusion / confusion.sum(1, keepdim=True)).float()
