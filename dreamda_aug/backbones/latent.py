"""Adapters of diffusers pipelines whose U-Net works on the latents of a VAE."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dreamda_aug.backbones.base import check_unet
from dreamda_aug.backbones.unet import UNetBackbone, pair


class LatentBackbone(UNetBackbone):
    """A U-Net on the latents of a VAE: Stable Diffusion 1.x, 2.x and XL, Turbo, LCM, LDM.

    Args:
        pipeline: an object with ``unet``, ``vae`` (or ``vqvae``) and ``scheduler``; prompts are
            used if it has ``encode_prompt``, class labels if the U-Net has a class embedding.
        name: where it came from.
        image_size: height and width in pixels; None: what the U-Net was trained for.
        class_names: as in `PixelBackbone`.
        null_class: as in `PixelBackbone`.
        decode_batch: images that the VAE decodes at once; it needs far more memory per image than
            the U-Net.
        low_memory: decode one image at a time, in slices and, beyond the VAE's own size, in tiles
            (which overlap and are blended); keep the VAE on the CPU while the U-Net runs.

    Attributes are those of `Backbone`.
    """

    is_pixel_model = False

    def __init__(
        self,
        pipeline: Any,
        name: str = "latent pipeline",
        image_size: tuple[int, int] | None = None,
        class_names: Sequence[str] | None = None,
        null_class: int | None = None,
        decode_batch: int = 8,
        low_memory: bool = False,
    ):
        check_unet(pipeline.unet)
        vae = getattr(pipeline, "vae", None) or pipeline.vqvae
        overflows = vae.config.get("force_upcast") and vae.dtype == torch.float16  # it says so
        # a copy: changed, it would be of no use to whoever handed the pipeline over
        self.vae = (copy.deepcopy(vae) if low_memory or overflows else vae).eval()
        self.channels = self.vae.config.in_channels
        self.decode_batch, self.low_memory = decode_batch, low_memory
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        native = tuple(side * factor for side in pair(pipeline.unet.config.sample_size))
        self.image_size = tuple(image_size or native)
        if any(side % factor for side in self.image_size):
            raise ValueError(
                f"image_size must be a multiple of {factor} for this VAE, got {self.image_size}."
            )
        if overflows:
            self.vae.to(torch.float32)
        super().__init__(pipeline, name, class_names, null_class)
        self._shift, self._scale = latent_range(self.vae)
        if low_memory:
            self.decode_batch = 1
            for switch in ("slicing", "tiling"):
                if hasattr(self.vae, f"use_{switch}"):  # a VQModel has neither, and would raise
                    getattr(self.vae, f"enable_{switch}")()
            self.vae.to("cpu")

    def _identifying(self) -> tuple[Any, ...]:
        return self.unet, self.vae

    @property
    def in_tiles(self) -> bool:
        """Whether the VAE works in tiles, which see their own borders and give other latents."""
        tile = getattr(self.vae, "tile_sample_min_size", None)
        if tile is None or not getattr(self.vae, "use_tiling", False):
            return False
        return max(self.image_size) > int(tile)

    @contextmanager
    def _vae_at_hand(self) -> Iterator[None]:
        """Within it, the VAE lies where the U-Net does."""
        if self.low_memory:
            self.vae.to(self.device)
        try:
            yield
        finally:
            if self.low_memory:
                self.vae.to("cpu")

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        with self._vae_at_hand():
            encoded = self.vae.encode(images.to(self.device, self.vae.dtype) * 2 - 1)
        # the mode, not a draw: the same image must give the same latents
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        latents = latents.float()
        return ((latents - self._shift.to(latents)) * self._scale.to(latents)).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        latents = latents.float()
        latents = latents / self._scale.to(latents) + self._shift.to(latents)
        latents = latents.to(self.vae.dtype)
        with self._vae_at_hand():
            pixels = [self.vae.decode(part).sample.float()
                      for part in latents.split(self.decode_batch)]
        return (torch.cat(pixels) / 2 + 0.5).clamp(0, 1)


def latent_range(vae: Any) -> tuple[Tensor, Tensor]:
    """Shift and scale with which a VAE's latents become the denoiser's: (z - shift) · scale.

    Args:
        vae: with ``scaling_factor``, and perhaps ``shift_factor`` or a ``latents_mean`` and
            ``latents_std`` for each channel, in its configuration.

    Returns:
        Two tensors that broadcast with (B, C, H, W).
    """
    config = vae.config
    scale = torch.tensor(float(config.get("scaling_factor") or 1.0))
    shift = torch.tensor(float(config.get("shift_factor") or 0.0))
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and std is not None:
        shift = torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1)
        scale = scale / torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1)
    return shift, scale
