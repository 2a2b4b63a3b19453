"""What a probe says about synthetic images without having learned from their seed images."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamda_aug.arguments import whole
from dreamda_aug.calibration.judge import FoldJudge
from dreamda_aug.inputs.labels import check_integers
from dreamda_aug.metrics.features import FeatureFunction


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
        features: images (B, C, H, W) in [0, 1] to (B, D), such as `model_features`.
        images: labeled images, (N, C, H, W) in [0, 1].
        targets: their class indices, (N,).
        synthetic: (M, C, H, W) in [0, 1].
        seed_index: the labeled image that each was made from, (M,) integers.
        num_classes: C.
        folds: at least 2; each class is dealt out to them in turn.
        inverse_penalty: as in `LinearProbe`.

    Returns:
        Predicted classes (M,) int64, and how often each class is seen in labeled images of each
        class out of fold, (true, predicted) int64.

    Raises:
        ValueError: labels or indices out of range, or a class with fewer than two images.

    Source: ours (cross-fitting).
    """
    folds = whole("folds", folds, 2)
    targets = check_integers("targets", targets, len(images)).cpu()
    seed_index = check_integers("seed_index", seed_index, len(synthetic), 0, len(images) - 1).cpu()
    if int(targets.bincount(minlength=num_classes).min()) < 2:
        raise ValueError(
            "every class needs two labeled images or more: one to learn from while the other is "
            "held out."
        )
    judge = FoldJudge(features, images, targets, "a linear probe, out of fold", folds,
                      inverse_penalty)
    predicted, seen = judge.classify(synthetic, seed_index), judge.held_out
    cells = torch.bincount(targets * num_classes + seen, minlength=num_classes**2)
    return predicted, cells.view(num_classes, num_classes)
