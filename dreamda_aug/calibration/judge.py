"""Which replicas keep their seed image's class: said by judges that have not seen the seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamda_aug.calibration.probe import (
    deal_out,
    deviations,
    features_for_labels,
    logistic_regression,
)
from dreamda_aug.metrics.features import FeatureFunction, extract_features
from dreamda_aug.models import DiffusionModel

FOLDS = 4
# C of the logistic regression, as in `LinearProbe`.
_INVERSE_PENALTY = 30.0


class Judge(Protocol):
    """Says which class an image shows.

    Attributes:
        name: what it is, in words.
    """

    @property
    def name(self) -> str: ...

    def classify(self, images: Tensor, rows: Tensor) -> Tensor:
        """Classes of images.

        Args:
            images: (B, C, H, W) in [0, 1], of the model's size.
            rows: which seed image each one comes from, or is, (B,) int64.

        Returns:
            Class indices, (B,) int64 on the CPU.
        """
        ...


@dataclass(frozen=True)
class GivenJudge:
    """A classifier that somebody trained: images to logits (B, K) or to classes (B,)."""

    classifier: Callable[[Tensor], Tensor]
    name: str = "the given classifier"

    @torch.no_grad()
    def classify(self, images: Tensor, rows: Tensor) -> Tensor:
        output = self.classifier(images)
        return (output.argmax(1) if output.ndim == 2 else output).cpu()


class FoldJudge:
    """Logistic regressions on features, each fitted without a part of the labeled images.

    What was made from an image is judged by the regression that has not seen that image: one that
    has would know its near-copies by heart. And images of another look (a model's strokes are
    thinner than yours, say) are compared in what differs among them: their features are shifted
    and scaled, all classes alike, to the mean and deviation of the seed images that they come from.

    Args:
        features: images (B, C, H, W) in [0, 1] to (B, D).
        images: labeled images, (N, C, H, W) in [0, 1]; seed images first.
        labels: their classes, (N,) int64, of at least two classes.
        name: what the features are, in words.
        folds: how many parts there are, at most.
        inverse_penalty: as in `LinearProbe`.

    Attributes:
        fold: which part each labeled image belongs to, (N,).
        held_out: the class that each labeled image is seen as, (N,) int64.

    Source: ours; the regression is that of `LinearProbe`, the match of moments that of Li et al.
    2016 (AdaBN, arXiv:1603.04779).
    """

    def __init__(
        self, features: FeatureFunction, images: Tensor, labels: Tensor, name: str,
        folds: int = FOLDS, inverse_penalty: float = _INVERSE_PENALTY,
    ):
        self.name = name
        self._features = features
        found = extract_features(images, features).double()
        self._mean, self._deviation = found.mean(0), deviations(found)
        self._standardised = (found - self._mean) / self._deviation
        self._labels = labels.cpu()
        scaled = F.normalize(self._standardised, dim=1)
        self.fold = deal_out(labels, folds)
        classes = int(labels.max()) + 1
        self._fitted = [
            logistic_regression(scaled[self.fold != number], labels[self.fold != number], classes,
                                inverse_penalty)
            for number in range(int(self.fold.max()) + 1)
        ]
        self.held_out = self._classes(scaled, self.fold)

    def classify(self, images: Tensor, rows: Tensor) -> Tensor:
        """Classes of images; all that were made by the same settings in one call."""
        found = extract_features(images, self._features).double()
        standardised = (found - self._mean) / self._deviation
        matched = self._matched(standardised, rows)
        return self._classes(F.normalize(matched, dim=1), self.fold[rows])

    def _matched(self, made: Tensor, rows: Tensor) -> Tensor:
        """Features shifted and scaled to the moments of their seed images.

        Each class counts the same: a shift of one class that most images belong to would else be
        taken for the look of all, and undone. For the same reason one class alone is left as it is.
        """
        labels, seeds = self._labels[rows], self._standardised[rows]
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


def fold_judge(model: DiffusionModel, images: Tensor, labels: Tensor) -> FoldJudge | None:
    """A judge from a diffusion model's own features, or from pixels where it gives none.

    None where all images are of one class.

    Args:
        model: the diffusion model that makes the images.
        images: labeled images, (N, C, H, W) in [0, 1], of its size; seed images first.
        labels: their classes, (N,) int64.
    """
    if len(labels.unique()) < 2:
        return None
    features, name = features_for_labels(model)
    return FoldJudge(features, images, labels, f"a linear probe on {name}, out of fold")
