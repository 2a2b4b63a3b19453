"""Which images keep their seed image's class, judged by probes that have not seen the seed."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamda_aug.arguments import whole
from dreamda_aug.calibration.probe import (
    INVERSE_PENALTY,
    deal_out,
    deviations,
    features_for_labels,
    logistic_regression,
)
from dreamda_aug.final_layer import main_logits
from dreamda_aug.inputs.samples import check_integers
from dreamda_aug.metrics.features import FeatureFunction, extract_features
from dreamda_aug.models import DiffusionModel

# Parts that labeled images are dealt out to: to judge replicas, and to label a pool.
_FOLDS, _FOLDS_OF_A_POOL = 4, 3


@dataclass(frozen=True)
class Judge:
    """Tells which images show the class of their seed image.

    Attributes:
        name: what it is, as text.
        keeps: from images, (B, C, H, W) in [0, 1], of the model's size, and the number of the
            seed image that each one is or comes from, (B,) int64, to (B,) bool on the CPU.
    """

    name: str
    keeps: Callable[[Tensor, Tensor], Tensor]


def given_judge(classifier: Callable[[Tensor], Tensor], labels: Tensor) -> Judge:
    """The judge that a classifier is: images to logits (B, K) or to classes (B,)."""
    @torch.no_grad()
    def keeps(images: Tensor, rows: Tensor) -> Tensor:
        output = classifier(images)
        if not isinstance(output, Tensor) or output.ndim != 1:
            output = main_logits(output).argmax(1)
        return output.cpu() == labels[rows]

    return Judge("the given classifier", keeps)


def fold_judge(model: DiffusionModel, images: Tensor, labels: Tensor) -> Judge | None:
    """A judge from a diffusion model's own features, or from pixels where it gives none.

    Replicas are judged by a regression that was not fitted to their seed image, or near-copies
    would always be right. The style of the model (such as thinner strokes) does not count:
    features of replicas are shifted and scaled, all classes alike, to the mean and deviation of
    their seed images.

    Args:
        model: the diffusion model that makes the images.
        images: labeled images, (N, C, H, W) in [0, 1], of its size; seed images first.
        labels: their classes, (N,) int64.

    Returns:
        The judge, or None where all images are of one class.

    Source: ours; the regression is that of `LinearProbe`, the match of moments that of Li et al.
    2016 (AdaBN, arXiv:1603.04779).
    """
    if len(labels.unique()) < 2:
        return None
    features, name = features_for_labels(model)
    probes = _FoldProbes(features, images, labels, _FOLDS)
    return Judge(f"a linear probe on {name}, out of fold",
                 lambda made, rows: probes.classify(made, rows) == labels[rows])


class _FoldProbes:
    """Logistic regressions on features, each fitted without a part of the labeled images."""

    def __init__(
        self, features: FeatureFunction, images: Tensor, labels: Tensor, folds: int
    ) -> None:
        found = extract_features(images, features).double()
        self._features, self._labels = features, labels.cpu()
        self._mean, self._deviation = found.mean(0), deviations(found)
        self._seeds = (found - self._mean) / self._deviation
        scaled = F.normalize(self._seeds, dim=1)
        self._fold = deal_out(labels, folds)
        self._fitted = [
            logistic_regression(scaled[self._fold != number], labels[self._fold != number],
                                int(labels.max()) + 1, INVERSE_PENALTY)
            for number in range(int(self._fold.max()) + 1)]
        self.held_out = self._classes(scaled, self._fold)

    def classify(self, images: Tensor, rows: Tensor) -> Tensor:
        """Classes of images, (B,) int64, all made by the same settings; see `Judge.keeps`."""
        found = extract_features(images, self._features).double()
        matched = self._matched((found - self._mean) / self._deviation, rows)
        return self._classes(F.normalize(matched, dim=1), self._fold[rows])

    def _matched(self, made: Tensor, rows: Tensor) -> Tensor:
        """Features shifted and scaled to the moments of their seed images."""
        labels, seeds = self._labels[rows], self._seeds[rows]
        # each class counts the same: a shift of one class that most images belong to would else be
        # taken for the look of all, and undone; for the same reason one class alone stays
        counts = labels.bincount()
        if (counts > 0).sum() < 2:
            return made
        weight = (1 / counts[labels].double())[:, None]
        weight = weight / weight.sum()
        from_mean, to_mean = (weight * made).sum(0), (weight * seeds).sum(0)
        scale = deviations(seeds, weight, least=0.0) / deviations(made, weight)
        return (made - from_mean) * scale + to_mean

    def _classes(self, scaled: Tensor, folds: Tensor) -> Tensor:
        classes = torch.zeros(len(scaled), dtype=torch.int64)
        for number, (weight, bias) in enumerate(self._fitted):
            mine = folds == number
            classes[mine] = (scaled[mine] @ weight.T + bias).argmax(1)
        return classes


def predict_out_of_fold(
    features: FeatureFunction, images: Tensor, targets: Tensor, synthetic: Tensor,
    seed_index: Tensor, *, num_classes: int,
) -> tuple[Tensor, Tensor]:
    """Classes of synthetic images, each predicted by a probe that was not fitted to its seed image.

    `LabelPrior.estimate` takes both results, and estimates how often images keep the requested
    class.

    Args:
        features: images (B, C, H, W) in [0, 1] to (B, D), such as `model_features`.
        images: labeled images, (N, C, H, W) in [0, 1].
        targets: their class indices, (N,).
        synthetic: (M, C, H, W) in [0, 1].
        seed_index: row of each one's seed image in ``images``, (M,) integers.
        num_classes: number of classes.

    Returns:
        Predicted classes, (M,) int64, and the confusion matrix of the labeled images out of fold,
        (true, predicted) counts, int64.

    Raises:
        ValueError: labels or indices out of range, or a class with fewer than two images.

    Source: ours (cross-fitting).
    """
    num_classes = whole("num_classes", num_classes, 1)
    targets = check_integers("targets", targets, len(images)).cpu()
    seed_index = check_integers("seed_index", seed_index, len(synthetic), 0, len(images) - 1).cpu()
    if int(targets.bincount(minlength=num_classes).min()) < 2:
        raise ValueError("every class needs two labeled images or more: one to learn from while "
                         "the other is held out.")
    probes = _FoldProbes(features, images, targets, _FOLDS_OF_A_POOL)
    cells = torch.bincount(targets * num_classes + probes.held_out, minlength=num_classes**2)
    return probes.classify(synthetic, seed_index), cells.view(num_classes, num_classes)
