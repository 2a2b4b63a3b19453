"""What the requested class of a synthetic image tells about the class that it shows."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamda_aug.inputs.samples import check_integers

# Rounds of the correction; it changes by less than a thousandth after a few dozen.
_ROUNDS = 100
# Share of images of the requested class that is assumed before anything is measured.
_USUALLY_KEPT = 0.75
# Number of labeled images of a class that count as much as all classes together.
_SMOOTHING = 50.0
# What heads may be softened by: from not at all to nearly uniform.
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 20.0, 40.0)


@dataclass(frozen=True, eq=False)
class LabelPrior:
    """P(true class | requested class): a vote that counts as much as it is right.

    Attributes:
        probabilities: (requested, true), float; each row sums to 1.

    Raises:
        ValueError: not a square matrix of probabilities.

    Source: ours; Bayes' rule over what the heads see and what was requested.
    """

    probabilities: Tensor

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.probabilities, dtype=torch.float32)
        square = table.ndim == 2 and table.shape[0] == table.shape[1]
        if not square or (table < 0).any() or not ((table.sum(1) - 1).abs() < 1e-3).all():
            raise ValueError(
                "LabelPrior.probabilities must be a square matrix (requested, true) with rows >= 0 "
                f"that sum to 1, got shape {tuple(table.shape)}; LabelPrior.estimate makes one.")
        object.__setattr__(self, "probabilities", table)

    @classmethod
    def estimate(
        cls, requested: Tensor, predicted: Tensor, num_classes: int, *,
        confusion: Tensor | None = None,
    ) -> LabelPrior:
        """Estimate it from predictions on synthetic images.

        One share of kept labels is estimated over all classes. Each class then moves towards what
        its own images show, further with more labeled images to judge the classifier by: three
        images cannot tell whether a class is always kept or never.

        Args:
            requested: classes that the images were made for, (N,) integers; images with −1 are
                left out.
            predicted: classes that a classifier sees in the images, (N,) integers. It must not
                have learned from the seed images of what it judges: take a diffusion classifier,
                or predictions out of fold.
            num_classes: C.
            confusion: how often that classifier sees each class in labeled images of each class,
                out of fold, (true, predicted) counts, or None for a classifier that is always
                right.

        Raises:
            ValueError: labels out of range, or ``confusion`` of another shape or with negative
                counts.

        Source: ours; the correction of each class is expectation maximisation for a known
        confusion matrix (Saerens et al. 2002).
        """
        check_integers("requested", requested, len(predicted), -1, num_classes - 1)
        check_integers("predicted", predicted, len(requested), 0, num_classes - 1)
        cells = (requested * num_classes + predicted)[requested >= 0]
        seen = torch.bincount(cells.cpu(), minlength=num_classes**2).double()
        seen = seen.view(num_classes, num_classes)
        # without a confusion: as many images, all of them seen right
        judged = seen.sum(1).diag() if confusion is None else \
            torch.as_tensor(confusion).cpu().double()
        if judged.shape != seen.shape or (judged < 0).any():
            raise ValueError(
                f"confusion must be counts >= 0 of shape {tuple(seen.shape)}, (true, predicted), "
                f"got shape {tuple(judged.shape)}; predict_out_of_fold gives them.")
        right = float(judged.trace() / judged.sum()) if judged.sum() else 1.0
        pooled = _even(_share_kept(seen, right, judged.sum().item()), num_classes)
        channel = judged + _even(right, num_classes)
        channel = channel / channel.sum(1, keepdim=True)
        table = pooled
        for _ in range(_ROUNDS):
            expected = (table @ channel).clamp(min=1e-12)
            table = table * ((seen / expected) @ channel.T) + pooled
            table = table / table.sum(1, keepdim=True)
        own = judged.sum(1, keepdim=True)
        return cls(((own * table + _SMOOTHING * pooled) / (own + _SMOOTHING)).float())

    def update(self, probabilities: Tensor, requested: Tensor, shares: Tensor) -> Tensor:
        """The heads' probabilities, given the requested classes.

        Args:
            probabilities: (heads, N, C), each row summing to 1.
            requested: (N,) integers; −1 where unknown, which adds nothing.
            shares: share of each class among all images, (C,).

        Returns:
            (heads, N, C): p^(1/T) · P(class | requested) / P(class), normalised, with the
            temperature T of `temperature_of`.
        """
        temperature = self.temperature_of(probabilities, requested, shares)
        updated = _tempered(probabilities, temperature) * self._odds(requested, shares)
        return updated / updated.sum(-1, keepdim=True).clamp(min=1e-12)

    def temperature_of(self, probabilities: Tensor, requested: Tensor, shares: Tensor) -> float:
        """The temperature under which the heads explain the requested classes best.

        Heads that learned a few images are sure of too much, and would overrule the prior where
        they are wrong. The requested classes are labels that are known for every image, so the
        temperature needs no labeled image.

        Args:
            probabilities, requested, shares: as in `update`.

        Returns:
            The geometric mean over ten temperatures from 1 to 40, weighted by the likelihood of
            ``requested`` and a prior T⁻². So it is near 1 for few images, and follows the
            likelihood for many.

        Source: ours; temperature scaling is Guo et al. 2017, arXiv:1706.04599.
        """
        known = requested >= 0
        seen, odds = probabilities[:, known], self._odds(requested[known], shares)
        likelihood = torch.tensor([
            (_tempered(seen, each) * odds).sum(-1).clamp(min=1e-12).log().mean(0).sum().item()
            for each in _TEMPERATURES], dtype=torch.float64)
        logarithms = torch.tensor(_TEMPERATURES, dtype=torch.float64).log()
        weights = (likelihood - 2 * logarithms).softmax(0)
        return float((weights * logarithms).sum().exp())

    def _odds(self, requested: Tensor, shares: Tensor) -> Tensor:
        """P(class | requested) / P(class), (N, C); 1 where no class was requested."""
        table = self.probabilities.to(requested.device)
        odds = table[requested.clamp(min=0)] / shares.to(requested.device).clamp(min=1e-6)
        return torch.where((requested >= 0)[:, None], odds, torch.ones_like(odds))


def _tempered(probabilities: Tensor, temperature: float) -> Tensor:
    powers = probabilities.clamp(min=1e-12) ** (1 / temperature)
    return powers / powers.sum(-1, keepdim=True)


def _share_kept(seen: Tensor, right: float, labeled: float) -> float:
    """Share of images of the requested class, over all classes.

    A judge that is right on a share of the labeled images, and else sees any other class, agrees
    with a share of the requested classes that is linear in what was kept. A judge hardly better
    than chance, or few images, tell little: then ridge regression, with the variance of both
    shares, draws the answer to 3 of 4.
    """
    classes, total = len(seen), seen.sum().item()
    if not total:
        return _USUALLY_KEPT
    wrong = (1 - right) / max(1, classes - 1)
    signal, agreed = right - wrong, seen.trace().item() / total - wrong
    doubt = right * (1 - right) / max(labeled, 1.0) + 0.25 / total
    kept = (signal * agreed + doubt * _USUALLY_KEPT) / (signal**2 + doubt)
    return min(max(kept, 1 / classes), 1 - 1 / (total + 2))


def _even(right: float, classes: int) -> Tensor:
    """A table with this diagonal, and the rest spread evenly; (classes, classes), float64."""
    rest = (1 - right) / max(1, classes - 1)
    return torch.full((classes, classes), rest, dtype=torch.float64).fill_diagonal_(right)
