"""What is done about images that came out broken, black or unsafe."""

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from dreamda_aug.models import DiffusionModel

logger = logging.getLogger(__name__)


def guard(
    made: Tensor, seeds: Tensor, model: DiffusionModel, redo: Callable[[list[int]], Tensor]
) -> list[str]:
    """Mend broken and unsafe images in place; say what was done to each.

    Args:
        made: synthetic images, (B, C, H, W).
        seeds: their seed images, (B, C, H, W), on any device.
        model: what made them.
        redo: makes the given rows once more.

    Returns:
        For each image ``""``, ``"retried"`` in float32, ``"replaced"`` by its seed image, or
        ``"unsafe"`` and therefore replaced.
    """
    acts = [""] * len(made)
    rows = _bad_rows(made, seeds)
    if rows and model.dtype != torch.float32:
        logger.warning("%d images came out as NaN or black: once more in float32", len(rows))
        with model.in_float32():
            made[rows] = redo(rows)
        for row in rows:
            acts[row] = "retried"
        rows = _bad_rows(made, seeds)
    unsafe = model.unsafe(made.nan_to_num()).nonzero().flatten().tolist()
    for row in rows:
        acts[row] = "replaced"
    for row in unsafe:
        acts[row] = "unsafe"
    replaced = sorted({*rows, *unsafe})
    if replaced:
        logger.warning("%d synthetic images were replaced by their seed image", len(replaced))
        made[replaced] = seeds[replaced].to(made.device, made.dtype)
    return acts


def broken(images: Tensor) -> Tensor:
    """Which images (B, C, H, W) hold NaN or infinite pixels, (B,) bool."""
    return ~images.isfinite().flatten(1).all(1)


def _bad_rows(made: Tensor, seeds: Tensor) -> list[int]:
    """Which images are broken, or black while their seed image is not."""
    black = (made.flatten(1).amax(1) <= 0) & (seeds.flatten(1).amax(1) > 0).to(made.device)
    return (broken(made) | black).nonzero().flatten().tolist()
