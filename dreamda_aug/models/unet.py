"""U-Nets of diffusers, on pixels or on the latents of a VAE, and new ones."""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dreamda_aug.errors import ModelError
from dreamda_aug.models.base import DiffusionModel, check_denoiser, pair
from dreamda_aug.models.conditioning import (
    ClassConditioning,
    Conditioning,
    TextConditioning,
    unet_inputs,
)
from dreamda_aug.models.hook import UNetHook
from dreamda_aug.models.schedules import path_kind

Width = Literal["small", "medium", "large"]

# Of new U-Nets: channels at each resolution, from the image down to the bottleneck; the last one is
# repeated until the bottleneck is small enough for attention.
WIDTHS: dict[Width, tuple[int, ...]] = {
    "small": (16, 32, 96), "medium": (32, 64, 128), "large": (64, 128, 256)}
_LARGEST_BOTTLENECK = 12
_DROPOUT = 0.1


class UNetModel(DiffusionModel):
    """A U-Net on pixels, or on the latents of a VAE: Stable Diffusion 1.x, 2.x and XL, LCM, LDM.

    Args:
        pipeline: an object with ``unet`` and ``scheduler``; images are encoded if it has ``vae`` or
            ``vqvae``, prompts are used if it has ``encode_prompt``, class labels if the U-Net has a
            class embedding.
        name: where it came from.
        class_names: names of its classes, in the order of its class embedding, or None.
        null_class: index of the class that stands for "no class", which makes guidance possible, or
            None if the model was trained without one.
        image_size: as in `ModelSpec`, as is ``low_memory``.

    Raises:
        ModelError: the U-Net cannot be perturbed, or its scheduler is not supported.
        ValueError: ``image_size`` is not possible here.
    """

    def __init__(
        self, pipeline: Any, name: str = "U-Net pipeline",
        class_names: Sequence[str] | None = None, null_class: int | None = None,
        image_size: tuple[int, int] | None = None, low_memory: bool = False,
    ):
        unet = pipeline.unet
        _check_unet(unet)
        path_kind(pipeline.scheduler)
        side = pair(unet.config.sample_size)
        vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
        if vae is not None:
            self._take_vae(vae, low_memory)
            self._take_size(image_size or [each * self.factor for each in side], self.factor)
        elif image_size in (None, side):
            self.image_size, self.channels = side, unet.config.in_channels
        else:
            raise ValueError(
                f"image_size is for latent models, and {name} makes images of {side} pixels, got "
                f"{image_size}; leave it out.")
        conditioning = Conditioning()
        if hasattr(pipeline, "encode_prompt"):
            # latent consistency models take the guidance scale as an input
            guidable = unet.config.get("time_cond_proj_dim") is None
            conditioning = TextConditioning(
                pipeline, name, unet, unet_inputs, guidable, self.image_size)
        elif unet.config.get("num_class_embeds"):
            conditioning = ClassConditioning(
                unet, unet.config.num_class_embeds, name, class_names, null_class)
        super().__init__(pipeline, name, unet, UNetHook(unet), conditioning)
        self._memory_format = torch.contiguous_format

    @property
    def unet(self) -> Any:
        return self.denoiser

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.denoise(x_t, t, condition)

    def denoise(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """As `predict`, with gradients, and with a timestep for each row if ``t`` is (R,)."""
        inputs: dict[str, Any] = self._inputs(condition)
        # SDXL's U-Net takes these in a dictionary of their own
        added = {name: inputs.pop(name) for name in ("text_embeds", "time_ids") if name in inputs}
        if added:
            inputs["added_cond_kwargs"] = added
        # one layout, whatever a VAE or a caller gives: other strides run other kernels, and what
        # one kernel recorded another does not replay exactly
        x_t = x_t.to(self.dtype).contiguous(memory_format=self._memory_format)
        call = self.denoiser if self._compiled is None else self._compiled
        return self._finished(call(x_t, t, return_dict=False, **inputs)[0], x_t)

    def channels_last(self) -> None:
        """Lay the U-Net's weights out as convolutions on recent GPUs and CPUs like them."""
        self.unet.to(memory_format=torch.channels_last)
        self._memory_format = torch.channels_last


def _check_unet(unet: Any) -> None:
    """Raise `ModelError` if a denoiser has no bottleneck to perturb, with the reason."""
    kind, config = type(unet).__name__, unet.config
    if not all(hasattr(unet, name) for name in ("down_blocks", "mid_block", "up_blocks")):
        raise ModelError(
            f"{kind} has no U-Net bottleneck (down_blocks, mid_block and up_blocks), where the "
            "perturbation enters. Use a U-Net model such as Stable Diffusion 1.x, 2.x or XL.")
    # those with learned variance give twice the channels
    check_denoiser(unet, min(config.in_channels, config.out_channels))
    size = config.sample_size
    sides = size if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ModelError(f"{kind} must have a number or two as sample_size in its configuration, "
                         f"found {size!r}.")


def check_image_size(image_size: int, width: Width) -> None:
    """Raise `ValueError` for a size that cannot be halved at each level but the last."""
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
