"""What the class that was asked of the generator says about the class that came out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dreamda_aug.amst.checks import check_labels

# Rounds of the correction; it changes by less than a thousandth after a few dozen.
_ROUNDS = 100


@dataclass(frozen=True, eq=False)
class LabelPrior:
    """P(true class | class asked for): a vote that counts as much as it is right.

    Attributes:
        probabilities: (asked, true), float; each row sums to 1.

    Raises:
        ValueError: not a square matrix of probabilities.

    Source: ours; Bayes' rule over what the heads see and what was asked.
    """

    probabilities: Tensor

    def __post_init__(self) -> None:
        table = torch.as_tensor(self.probabilities, dtype=torch.float32)
        square = table.ndim == 2 and table.shape[0] == table.shape[1]
        if not square or not bool((table >= 0).all()) or not bool(
            ((table.sum(1) - 1).abs() < 1e-3).all()
        ):
            raise ValueError(
                "LabelPrior.probabilities must be a square matrix (asked, true) with rows >= 0 "
                f"that sum to 1, got shape {tuple(table.shape)}; LabelPrior.estimate makes one."
            )
        object.__setattr__(self, "probabilities", table)

    @classmethod
    def estimate(
        cls, asked: Tensor, predicted: Tensor, num_classes: int, *,
        confusion: Tensor | None = None, smoothing: float = 1.0,
    ) -> LabelPrior:
        """Estimate it from predictions on synthetic images.

        Args:
            asked: classes asked for, (N,) integers; images with −1 are left out.
            predicted: classes that a classifier sees in the images, (N,) integers. It must not
                have learned from the seed images of what it judges: take a diffusion classifier,
                or predictions out of fold.
            num_classes: C.
            confusion: P(predicted | true) of that classifier on labelled images out of fold,
                (true, predicted); None: its errors are taken for the generator's.
            smoothing: pseudo-counts per row, > 0: three quarters on the asked class, the rest
                spread evenly, so that no class becomes impossible.

        Raises:
            ValueError: labels out of range, or ``smoothing`` not above 0.

        Source: ours; the correction is expectation maximisation for a known confusion matrix
        (Saerens et al. 2002).
        """
        if not smoothing > 0:
            raise ValueError(f"smoothing must be > 0, got {smoothing}.")
        check_labels("asked", asked, len(predicted), num_classes, lowest=-1)
        check_labels("predicted", predicted, len(asked), num_classes)
        known = asked >= 0
        cells = asked[known] * num_classes + predicted[known]
        counts = torch.bincount(cells, minlength=num_classes**2).double()
        counts = counts.view(num_classes, num_classes)
        eye = torch.eye(num_classes, dtype=torch.float64)
        extra = smoothing * (0.75 * eye + 0.25 / num_classes)
        channel = eye if confusion is None else confusion.double()
        table = (extra / extra.sum(1, keepdim=True)).clone()
        for _ in range(_ROUNDS):
            expected = (table @ channel).clamp(min=1e-12)
            table = table * ((counts / expected) @ channel.T) + extra
            table = table / table.sum(1, keepdim=True)
        return cls(table.float())

    def update(self, probabilities: Tensor, asked: Tensor, shares: Tensor) -> Tensor:
        """The heads' probabilities once it is known what was asked for.

        Args:
            probabilities: (heads, N, C), each row summing to 1.
            asked: (N,) integers; −1 where unknown, which changes nothing.
            shares: share of each class among all images, (C,).

        Returns:
            (heads, N, C): p · P(class | asked) / P(class), normalised.
        """
        table = self.probabilities.to(probabilities.device)
        odds = table[asked.clamp(min=0)] / shares.to(probabilities.device).clamp(min=1e-6)
        odds = torch.where((asked >= 0)[:, None], odds, torch.ones_like(odds))
        updated = probabilities * odds
        return updated / updated.sum(-1, keepdim=True).clamp(min=1e-12)
