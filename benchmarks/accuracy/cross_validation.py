"""A linear probe whose penalty and temperature are chosen on the labeled images."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamda_aug.calibration.probe import LinearProbe, deal_out, deviations, logistic_regression
from dreamda_aug.metrics.features import FeatureFunction, extract_features

# Values of C to choose from, and folds where every class has so many images.
CHOICES, FOLDS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), 5


def cross_validated_probe(
    features: FeatureFunction, images: Tensor, targets: Tensor, num_classes: int
) -> LinearProbe:
    """A probe with the C and the temperature under which held-out images are most likely."""
    found = extract_features(images, features).double()
    scaled = F.normalize((found - found.mean(0)) / deviations(found), dim=1)
    penalty, temperature = cross_validate(scaled, targets, num_classes, FOLDS)
    probe = LinearProbe(
        features, images, targets, num_classes=num_classes, inverse_penalty=penalty)
    probe.weight /= temperature
    probe.bias /= temperature
    return probe


def cross_validate(
    features: Tensor, targets: Tensor, num_classes: int, folds: int,
    choices: Sequence[float] = CHOICES,
) -> tuple[float, float]:
    """C and temperature for features (N, D), float64.

    Source: Guo et al. 2017, arXiv:1706.04599, for the temperature.
    """
    smallest = int(targets.bincount(minlength=num_classes)[targets.unique()].min())
    if smallest < 2:
        raise ValueError("a class has one image alone: there is nothing to cross-validate on.")
    fold = deal_out(targets, min(folds, smallest))
    best = (math.inf, 0.0, 1.0)
    for penalty in choices:
        logits = features.new_zeros(len(targets), num_classes)
        for number in range(int(fold.max()) + 1):
            held_out = fold == number
            weight, bias = logistic_regression(
                features[~held_out], targets[~held_out], num_classes, penalty)
            logits[held_out] = features[held_out] @ weight.T + bias
        for temperature in torch.logspace(-1, 1, 21).tolist():
            loss = F.cross_entropy(logits / temperature, targets).item()
            best = min(best, (loss, penalty, temperature))
    return best[1], best[2]
