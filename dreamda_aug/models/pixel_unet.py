"""New pixel U-Nets: small class-conditional models that a user trains from scratch."""

import math
from typing import Any, Literal

Width = Literal["small", "medium", "large"]

# Channels at each resolution, from the image down to the bottleneck; the last one is repeated
# until the bottleneck is small enough for attention.
WIDTHS: dict[Width, tuple[int, ...]] = {
    "small": (16, 32, 96), "medium": (32, 64, 128), "large": (64, 128, 256)}
_LARGEST_BOTTLENECK = 12
_DROPOUT = 0.1


def check_image_size(image_size: int, width: Width) -> None:
    """Refuse a size that cannot be halved at each level but the last.

    Raises:
        ValueError: it is none; the message names the next smaller and larger one.
    """
    multiple = 2 ** (_levels(image_size, width) - 1)
    below = image_size // multiple * multiple
    if below != image_size:
        raise ValueError(f"image_size must be a multiple of {multiple} for {width} models, got "
                         f"{image_size}; use {below} or {below + multiple}.")


def new_pixel_pipeline(image_size: int, channels: int, classes: int, width: Width) -> Any:
    """A diffusers pipeline with an untrained U-Net that predicts v.

    Args:
        image_size: height and width in pixels, which `check_image_size` allows.
        channels: 1 or 3.
        classes: how many it is conditioned on, beside a null class; 0: it is unconditional.
        width: see `WIDTHS`.

    Source: v-prediction: Salimans & Ho 2022, arXiv:2202.00512; the cosine schedule: Nichol &
        Dhariwal 2021, arXiv:2102.09672.
    """
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    levels = _levels(image_size, width)
    widths = (WIDTHS[width] + WIDTHS[width][-1:] * levels)[:levels]
    unet = UNet2DModel(
        sample_size=image_size, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=widths, dropout=_DROPOUT,
        down_block_types=("DownBlock2D",) * (levels - 1) + ("AttnDownBlock2D",),
        up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (levels - 1),
        attention_head_dim=min(32, widths[-1]), norm_num_groups=8,
        # the last class is the null class
        num_class_embeds=classes + 1 if classes else None,
    )
    scheduler = DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False)
    return DDPMPipeline(unet, scheduler)


def _levels(image_size: int, width: Width) -> int:
    deeper = math.ceil(math.log2(max(1.0, image_size / _LARGEST_BOTTLENECK)))
    return max(len(WIDTHS[width]), 1 + deeper)
