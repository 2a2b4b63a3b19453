"""Which labeled images each auxiliary head learns from."""

from __future__ import annotations

import torch
from torch import Tensor

from dreamda_aug.amst.pool import SizedDataset, split_item


def draw_head_weights(
    labeled: SizedDataset, heads: int, share: float, rng_seed: int
) -> Tensor | None:
    """How much each labeled image counts for each head, (heads, N) float32; None: all count 1.

    Each head draws its own ``share`` of the images of each class, at least one. They count so much
    more that a class counts as before; the others count 0. The set is read once.

    Args:
        labeled: items (image, target); soft labels belong to their most probable class.
        heads: how many.
        share: in (0, 1].
        rng_seed: of the draw.

    Source: Breiman 1996 (bagging), without replacement; within classes is ours.
    """
    if share == 1:
        return None
    generator = torch.Generator().manual_seed(rng_seed)
    targets = torch.stack([target.argmax() if target.ndim else target for target in
                           (split_item(labeled[i])[1] for i in range(len(labeled)))])
    weights = torch.zeros(heads, len(targets))
    for label in targets.unique():
        rows = (targets == label).nonzero().squeeze(1)
        count = max(1, round(share * len(rows)))
        for head in weights:
            chosen = rows[torch.randperm(len(rows), generator=generator)[:count]]
            head[chosen] = len(rows) / count
    return weights
