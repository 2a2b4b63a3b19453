"""The rules and loss terms of asymmetric multi-head self-training, each a pure function."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamda_aug.amst.checks import check_labels
from dreamda_aug.amst.old_keywords import filled, sort_old_keywords
from dreamda_aug.amst.rules import ViewName, VotingRule

_OLD_KEYWORDS = {
    name: ("rule", VotingRule, name)
    for name in ("agreement", "confidence", "confidence_threshold")
}


@dataclass(frozen=True)
class PseudoLabels:
    """Labels for N images, and which of them are accepted.

    Attributes:
        labels: class indices, (N,) int64; or class probabilities, (N, C) float, where a soft
            labeler made them. Rejected images keep the label that got most votes.
        confidence: probability of that label, (N,) float in [0, 1].
        agreement: share of the votes that the label got, (N,) float in [0, 1].
        mask: True where the label is accepted, (N,) bool.
        weight: how much an accepted label counts in the loss, (N,) float in [0, 1]; None: 1 each.
    """

    labels: Tensor
    confidence: Tensor
    agreement: Tensor
    mask: Tensor
    weight: Tensor | None = None

    def __post_init__(self) -> None:
        if self.weight is None:
            ones = torch.ones_like(self.confidence, dtype=torch.float32)
            object.__setattr__(self, "weight", ones)

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, index: slice | Tensor) -> PseudoLabels:
        """The rows that ``index`` (slice, indices or mask) picks."""
        return PseudoLabels(*(getattr(self, field.name)[index] for field in fields(self)))

    def replaced(self, rows: Tensor, by: PseudoLabels) -> PseudoLabels:
        """The same with others in the rows that a mask (N,) picks, in order."""
        return PseudoLabels(*(
            getattr(self, field.name).masked_scatter(rows, getattr(by, field.name))
            for field in fields(self)))

    def to(self, device: torch.device | str) -> PseudoLabels:
        """The same on another device."""
        return PseudoLabels(*(getattr(self, field.name).to(device) for field in fields(self)))

    @staticmethod
    def concatenate(parts: Sequence[PseudoLabels]) -> PseudoLabels:
        """Several batches, one after the other."""
        return PseudoLabels(
            *(
                torch.cat([getattr(part, field.name) for part in parts])
                for field in fields(PseudoLabels)
            )
        )

    @property
    def hard_labels(self) -> Tensor:
        """Class indices, (N,) int64, also where ``labels`` are soft."""
        return self.labels.argmax(1) if self.labels.ndim == 2 else self.labels


@dataclass(frozen=True)
class AMSTLosses:
    """The terms of one training step; scalars that carry gradients unless stated otherwise.

    ``total`` is ``supervised`` plus each further term times its factor in ``LossWeights``. Where
    ``LossWeights.auxiliary`` is 0 the auxiliary heads are frozen, and the orthogonality of their
    weights does not enter the total.

    Attributes:
        total: what to call ``backward()`` on.
        supervised: mean cross-entropy of the main head on the real images.
        pseudo: cross-entropy of the main head on the accepted synthetic images, summed and
            divided by the number of *all* synthetic images; 0 where none is accepted.
        consistency: FixMatch term on the synthetic images (see ``ConsistencyRule``), summed and
            divided by the number of all synthetic images; 0 where its weight is 0.
        auxiliary: mean cross-entropy of the auxiliary heads on the real and accepted images.
        orthogonality: mean ``|W_i·W_jᵀ|`` over pairs of auxiliary heads that see the same view.
        accepted_share: share of the synthetic images that are accepted; no gradient; nan if
            there are no synthetic images.
        pseudo_labels: the labels used for the synthetic images; None if there are none.
    """

    total: Tensor
    supervised: Tensor
    pseudo: Tensor
    consistency: Tensor
    auxiliary: Tensor
    orthogonality: Tensor
    accepted_share: Tensor
    pseudo_labels: PseudoLabels | None

    def as_dict(self) -> dict[str, float]:
        """The scalars as Python floats, for logging."""
        return {
            field.name: getattr(self, field.name).item()
            for field in fields(self)
            if field.name != "pseudo_labels"
        }


def agree_and_confident(
    probabilities: Tensor,
    rule: VotingRule | None = None,
    *,
    seed_labels: Tensor | None = None,
    **old_keywords: Any,
) -> PseudoLabels:
    """Labels that the heads agree on and are sure of.

    Every head votes for its most probable class, and the class with most votes wins. Of classes
    with equally many votes the one with the higher mean probability wins. An image is accepted
    when the votes agree and the winner's probability reaches the threshold.

    Args:
        probabilities: class probabilities of each head, (heads, N, C).
        rule: when votes agree, and how sure they must be; None: ``VotingRule()``.
        seed_labels: a further vote per image, (N,) int64; −1 where unknown, which is no vote.
            It does not enter the confidence.
        old_keywords: fields of ``rule`` by themselves, as in version 0.1.

    Returns:
        ``PseudoLabels`` with hard labels.

    Raises:
        ValueError: wrong shape, a value that is nan, or seed labels out of range.

    Source: DreamDA, arXiv:2403.12803, method figure, "consistent and confident"; the rules and
    the extra vote are ours.
    """
    changes = sort_old_keywords("agree_and_confident", old_keywords, _OLD_KEYWORDS)
    rule = filled("rule", rule, VotingRule, changes["rule"])
    if probabilities.ndim != 3:
        raise ValueError(
            f"probabilities must be (heads, N, C), got shape {tuple(probabilities.shape)}."
        )
    if not probabilities.isfinite().all():
        raise ValueError("probabilities must be finite, got nan or infinity.")
    heads, images, classes = probabilities.shape
    votes = F.one_hot(probabilities.argmax(2), classes).sum(0)
    voters = torch.full((images,), heads, device=votes.device)
    if seed_labels is not None:
        check_labels("seed_labels", seed_labels, images, classes, lowest=-1)
        known = seed_labels >= 0
        votes = votes + F.one_hot(seed_labels.clamp(min=0), classes) * known[:, None]
        voters = voters + known

    mean = probabilities.mean(0)
    # Votes are whole numbers and mean/2 is at most one half: it can break a tie, nothing more.
    winner = (votes + mean / 2).argmax(1)
    share = votes.gather(1, winner[:, None]).squeeze(1) / voters
    of_winner = probabilities.gather(2, winner.expand(heads, images)[..., None]).squeeze(2)
    sure = {"mean": of_winner.mean(0), "min": of_winner.amin(0), "max": of_winner.amax(0)}
    confidence = sure[rule.confidence]
    if rule.threshold == "soft":
        weight = soft_weights(confidence)
        return PseudoLabels(winner, confidence, share, torch.ones_like(weight) > 0, weight)
    threshold: Tensor | float = rule.confidence_threshold
    if rule.threshold == "adaptive":
        threshold = adaptive_thresholds(mean)[winner]
    agreed = share == 1 if rule.agreement == "all" else share > 0.5
    return PseudoLabels(winner, confidence, share, agreed & (confidence >= threshold))


def adaptive_thresholds(probabilities: Tensor) -> Tensor:
    """A threshold for each class, (C,), that follows how sure the model is by now.

    The mean confidence over the images, lowered for classes that the model gives less
    probability to than to its favourite.

    Args:
        probabilities: (N, C), each row summing to 1.

    Source: Wang et al. 2023 (FreeMatch), arXiv:2205.07246, eqs. 5 to 8, over the images that are
    labeled together in place of a running average (ours).
    """
    if len(probabilities) == 0:
        return probabilities.new_zeros(probabilities.shape[1])
    average = probabilities.mean(0)
    return probabilities.amax(1).mean() * average / average.max()


def soft_weights(confidence: Tensor, width: float = 2.0) -> Tensor:
    """How much each label counts, (N,): 1 from the mean confidence on, less below it.

    exp(-(μ - c)² / (2σ²/width²)) for c < μ, with the mean μ and the deviation σ of the confidences.

    Args:
        confidence: (N,) in [0, 1].
        width: the Gaussian's deviation is σ / width.

    Source: Chen et al. 2023 (SoftMatch), arXiv:2301.10921, eq. 5, over the images that are
    labeled together in place of a running average (ours).
    """
    if len(confidence) == 0:
        return confidence.float()
    below = (confidence.mean() - confidence).clamp(min=0)
    variance = confidence.var(correction=0).clamp(min=1e-8)
    return (-(below**2) * width**2 / (2 * variance)).exp().float()


def consistency_terms(
    weak_logits: Tensor, strong_logits: Tensor, confidence_threshold: float
) -> Tensor:
    """FixMatch's loss of each image: 1[max p_weak ≥ τ]·CE(strong, argmax p_weak), (N,).

    Args:
        weak_logits: logits of the weak view, (N, C); they get no gradient.
        strong_logits: logits of the strong view, (N, C).
        confidence_threshold: τ in [0, 1].

    Source: Sohn et al. 2020, arXiv:2001.07685, eq. 4; its use as L_c is ours.
    """
    confidence, labels = weak_logits.detach().float().softmax(1).max(1)
    terms = F.cross_entropy(strong_logits.float(), labels, reduction="none")
    return terms * (confidence >= confidence_threshold)


def auxiliary_loss(
    heads: Sequence[nn.Module],
    views: Sequence[ViewName],
    features: Mapping[ViewName, Tensor],
    targets: Tensor,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of the auxiliary heads, each on the features of its own view.

    Args:
        heads: layers (N, D) -> (N, C).
        views: the view that each head learns from, in the same order.
        features: the features of each view, (N, D).
        targets: class indices, (N,), or soft labels, (N, C).
        weight: how much each image counts, (N,), or for each head, (heads, N); None: 1 each.
    """
    terms = torch.stack([
        F.cross_entropy(head(features[view]).float(), targets, reduction="none")
        for head, view in zip(heads, views, strict=True)
    ])
    return (terms if weight is None else terms * weight).mean()


def orthogonality_loss(weights: Sequence[Tensor], views: Sequence[ViewName]) -> Tensor:
    """Mean ``|W_i·W_jᵀ|`` over all pairs of heads that see the same view; 0 if there is no pair.

    Args:
        weights: one (C, D) matrix per head.
        views: the view that each head learns from, in the same order.

    Source: Saito et al. 2017 (asymmetric tri-training), arXiv:1702.08400, eq. 1, whose sum is
    replaced by a mean so that the weight does not depend on the number of classes (ours).
    """
    pairs = [
        (weights[i] @ weights[j].T).abs().mean()
        for i, j in itertools.combinations(range(len(weights)), 2)
        if views[i] == views[j]
    ]
    return torch.stack(pairs).mean() if pairs else weights[0].new_zeros(())


def align_distribution(probabilities: Tensor, average: Tensor, target: Tensor) -> Tensor:
    """Distribution alignment: normalise(p · target / average).

    Args:
        probabilities: (…, C), each row summing to 1.
        average: mean of the model's probabilities over the unlabeled images, (C,).
        target: share of each class that is expected among these images, (C,).

    Source: Berthelot et al. 2020 (ReMixMatch), arXiv:1911.09785, section 3.1.
    """
    # clamp: a class that is never predicted has average 0, and 0/0 is nan.
    aligned = probabilities * (target / average.clamp(min=1e-6))
    return aligned / aligned.sum(-1, keepdim=True).clamp(min=1e-12)


def join_targets(first: Tensor, second: Tensor, classes: int) -> Tensor:
    """Two sets of targets in one tensor; soft labels, (N, C), if either is soft."""
    if first.ndim == second.ndim:
        return torch.cat([first, second])
    soft = [t if t.ndim == 2 else F.one_hot(t, classes) for t in (first, second)]
    return torch.cat([t.float() for t in soft])
