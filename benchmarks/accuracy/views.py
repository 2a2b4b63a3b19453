"""Augmentations that go on top of the weak view, from batches of images to batches of images."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from dreamda_aug.amst import PerImage


def random_affine(images: Tensor) -> Tensor:
    """Rotated, sheared, scaled and shifted, each image by itself; what is usual for digits.

    Args:
        images: (N, C, H, W) in [0, 1]; the border is repeated, so that white grounds stay white.
    """
    count = len(images)
    angle, shear_x, shear_y, log_scale, right, down = (
        largest * (2 * torch.rand(count) - 1)
        for largest in (math.radians(15), 0.2, 0.2, math.log(1.2), 0.2, 0.2))
    cos, sin, scale = angle.cos(), angle.sin(), log_scale.exp()
    turn = torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)
    one = torch.ones(count)
    shear = torch.stack([one, shear_x, shear_y, one], 1).view(-1, 2, 2)
    matrix = torch.cat([scale[:, None, None] * (turn @ shear),
                        torch.stack([right, down], 1)[:, :, None]], 2)
    grid = F.affine_grid(matrix.to(images), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False).clamp(0, 1)


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "affine": random_affine,
    **{name: PerImage(getattr(v2, name)())
       for name in ("RandAugment", "TrivialAugmentWide", "AugMix")},
}
