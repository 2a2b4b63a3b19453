"""The two losses of AMST: which images go through which view, and the terms of the loss.

Both take the classifier as a ``MultiHead``, so they know nothing of how it was wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamda_aug.amst.losses import (
    AMSTLosses,
    PseudoLabels,
    auxiliary_loss,
    consistency_terms,
    join_targets,
    orthogonality_loss,
)
from dreamda_aug.amst.rules import ConsistencyRule, HeadViews, LossWeights, ViewName

# Images (N, C, H, W), and which of their rows each view is made of -> features, (rows, D), and
# logits of the main head, (rows, classes), of each view.
ReadViews = Callable[
    [Tensor, Mapping[ViewName, slice]], tuple[dict[ViewName, Tensor], dict[ViewName, Tensor]]
]


@dataclass(frozen=True)
class MultiHead:
    """A classifier with auxiliary heads, as a training step uses it.

    Attributes:
        read_views: one forward pass over views of the images.
        auxiliary_heads: linear layers, (N, D) -> (N, classes).
        views: the view that each head learns from.
        consistency: which images the consistency term compares.
        weights: the factor of each term.
    """

    read_views: ReadViews
    auxiliary_heads: Sequence[nn.Linear]
    views: HeadViews
    consistency: ConsistencyRule
    weights: LossWeights

    def orthogonality(self) -> Tensor:
        """The orthogonality term of the auxiliary heads' weights."""
        weights: list[Tensor] = [head.weight for head in self.auxiliary_heads]
        return orthogonality_loss(weights, self.views.auxiliary)


def pretraining_loss(
    model: MultiHead, images: Tensor, targets: Tensor, head_weights: Tensor | None = None
) -> Tensor:
    """L_pre: each auxiliary head on its view of labeled images, plus orthogonality.

    Args:
        model: the classifier with its heads.
        images: labeled images, (N, C, H, W).
        targets: class indices, (N,) integers, or soft labels, (N, classes).
        head_weights: how much each image counts for each auxiliary head, (heads, N); None: 1.

    Source: DreamDA, arXiv:2403.12803, method figure.
    """
    views = model.views.auxiliary
    features, _ = model.read_views(images, dict.fromkeys(views, slice(None)))
    auxiliary = auxiliary_loss(model.auxiliary_heads, views, features, targets, head_weights)
    return auxiliary + model.weights.orthogonality * model.orthogonality()


def training_losses(
    model: MultiHead,
    real: Tensor,
    targets: Tensor,
    synthetic: Tensor,
    pseudo_labels: PseudoLabels | None,
    head_weights: Tensor | None = None,
) -> AMSTLosses:
    """L_sup on real and accepted images, and L_c on the synthetic ones.

    Args:
        model: the classifier with its heads.
        real: labeled images, (N, C, H, W).
        targets: class indices, (N,) integers, or soft labels, (N, classes).
        synthetic: images without trusted labels, (M, C, H, W), M ≥ 0.
        pseudo_labels: their labels, M of them; None where M = 0.
        head_weights: as in `pretraining_loss`, of the labeled images.

    Source: DreamDA, arXiv:2403.12803, method figure; the form of the terms is ours (see
    ``AMSTLosses``).
    """
    views, weights = model.views, model.weights
    if pseudo_labels is None:
        accepted, labels = real.new_zeros(0, dtype=torch.bool), targets[:0]
        weight = real.new_zeros(0)
    else:
        accepted, labels = pseudo_labels.mask, pseudo_labels.labels[pseudo_labels.mask]
        assert pseudo_labels.weight is not None
        weight = pseudo_labels.weight[accepted]
    # The labeled pool of the paper, P_L, comes first; the images left unlabeled follow.
    images = torch.cat([real, synthetic[accepted], synthetic[~accepted]])
    labeled = len(real) + int(accepted.sum())
    compared = 0  # the consistency term compares this many images, the last ones
    if weights.consistency:
        compared = len(synthetic) if model.consistency.images == "all" else len(images) - labeled
    heads_learn = weights.auxiliary > 0
    features, logits = model.read_views(
        images, _rows_by_view(views, heads_learn, len(images), labeled, compared)
    )

    of_real, of_accepted = logits[views.main][:labeled].tensor_split([len(real)])
    supervised = F.cross_entropy(of_real, targets)
    terms = F.cross_entropy(of_accepted, labels, reduction="none")
    pseudo = (weight * terms).sum() / max(1, len(synthetic))
    consistency = auxiliary = supervised.new_zeros(())
    if compared:
        weak, strong = logits["weak"][-compared:], logits["strong"][-compared:]
        terms = consistency_terms(weak, strong, model.consistency.confidence_threshold)
        consistency = terms.sum() / len(synthetic)
    orthogonality = model.orthogonality()
    if heads_learn:
        fixed = {name: each[:labeled].detach() for name, each in features.items()}
        answers = join_targets(targets, labels, of_real.shape[1])
        if head_weights is None:
            head_weights = weight.new_ones(len(views.auxiliary), len(real))
        every = torch.cat([head_weights, weight.expand(len(head_weights), -1)], dim=1)
        auxiliary = auxiliary_loss(model.auxiliary_heads, views.auxiliary, fixed, answers, every)
    else:
        orthogonality = orthogonality.detach()
    total = (
        supervised
        + weights.pseudo * pseudo
        + weights.consistency * consistency
        + weights.auxiliary * auxiliary
        + (weights.orthogonality * orthogonality if heads_learn else 0.0)
    )
    return AMSTLosses(
        total=total,
        supervised=supervised,
        pseudo=pseudo,
        consistency=consistency,
        auxiliary=auxiliary,
        orthogonality=orthogonality,
        accepted_share=accepted.float().mean(),
        pseudo_labels=pseudo_labels,
    )


def _rows_by_view(
    views: HeadViews, heads_learn: bool, images: int, labeled: int, compared: int
) -> dict[ViewName, slice]:
    """Which rows of the images each view is made of, in the order in which views are drawn.

    Heads learn from the first ``labeled`` rows, the consistency term compares the last
    ``compared`` ones in both views. A view that serves both is made of all rows.
    """
    learned: tuple[ViewName, ...] = (views.main, *(views.auxiliary if heads_learn else ()))
    rows = dict.fromkeys(learned, slice(images if compared else labeled))
    if compared:
        rows.setdefault("weak", slice(-compared, None))
        rows.setdefault("strong", slice(-compared, None))
    return rows
