"""The training step of AMST: which images go through which view, and the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamda_aug.amst.losses import (
    AMSTLosses,
    PseudoLabels,
    auxiliary_loss,
    consistency_terms,
    join_targets,
)

if TYPE_CHECKING:
    from dreamda_aug.amst.wrapper import AMSTWrapper


def training_losses(
    wrapper: AMSTWrapper,
    real: Tensor,
    targets: Tensor,
    synthetic: Tensor,
    pseudo_labels: PseudoLabels | None,
) -> AMSTLosses:
    """``AMSTWrapper.losses`` once the batch is checked and labelled.

    Args:
        wrapper: the classifier, its heads and views, and the weights of the terms.
        real: labelled images, (N, C, H, W).
        targets: class indices, (N,) integers, or soft labels, (N, classes).
        synthetic: images without trusted labels, (M, C, H, W), M ≥ 0.
        pseudo_labels: their labels, M of them; None where M = 0.
    """
    if pseudo_labels is None:
        accepted, labels = real.new_zeros(0, dtype=torch.bool), targets[:0]
    else:
        accepted, labels = pseudo_labels.mask, pseudo_labels.labels[pseudo_labels.mask]
    # P_L of the paper comes first, then what stays unlabelled.
    images = torch.cat([real, synthetic[accepted], synthetic[~accepted]])
    labelled = len(real) + int(accepted.sum())
    compared = 0  # so many images, the last ones, enter the consistency term
    if wrapper.consistency_weight:
        compared = len(synthetic) if wrapper.consistency_on == "all" else len(images) - labelled
    learns = wrapper.auxiliary_weight > 0
    learned = (wrapper.labelled_view, *(wrapper.head_views if learns else ()))
    rows = dict.fromkeys(learned, slice(len(images) if compared else labelled))
    for name in ("weak", "strong") if compared else ():
        rows.setdefault(name, slice(-compared, None))
    features, logits = wrapper.read_views(images, rows)

    of_real, of_accepted = logits[wrapper.labelled_view][:labelled].tensor_split([len(real)])
    supervised = F.cross_entropy(of_real, targets)
    pseudo = F.cross_entropy(of_accepted, labels, reduction="sum") / max(1, len(synthetic))
    consistency = auxiliary = supervised.new_zeros(())
    if compared:
        pair = [logits[name][-compared:] for name in ("weak", "strong")]
        terms = consistency_terms(*pair, wrapper.consistency_threshold)
        consistency = terms.sum() / len(synthetic)
    orthogonality = wrapper.orthogonality()
    if learns:
        features = {name: each[:labelled].detach() for name, each in features.items()}
        answers = join_targets(targets, labels, wrapper.num_classes)
        auxiliary = auxiliary_loss(wrapper.auxiliary_heads, wrapper.head_views, features, answers)
    else:
        orthogonality = orthogonality.detach()
    total = (
        supervised
        + wrapper.pseudo_weight * pseudo
        + wrapper.consistency_weight * consistency
        + wrapper.auxiliary_weight * auxiliary
        + (wrapper.orthogonality_weight * orthogonality if learns else 0.0)
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
