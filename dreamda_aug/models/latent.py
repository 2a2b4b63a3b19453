"""Adapters of diffusers pipelines whose denoiser works on the latents of a VAE."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dreamda_aug.models.base import DiffusionModel, pair
from dreamda_aug.models.unet import UNetModel, check_unet


class OnLatents(DiffusionModel):
    """The VAE of a model, with the range, frame axis and patches that its denoiser expects.

    Attributes:
        vae: a diffusers VAE, or a copy where it had to be changed: ``AutoencoderKL``, ``VQModel``,
            ``AutoencoderDC``, ``AutoencoderKLQwenImage`` (one frame of a video) or
            ``AutoencoderKLFlux2`` (latents in 2×2 patches, normalised by running statistics).
        factor: how many pixels of a side become one latent (one patch, where they come in patches).
        patch: how many latents of a side are one patch.
        latent_channels: channels of the latents.
        decode_batch: images that are decoded at once; a VAE needs far more memory per image than a
            denoiser.
    """

    def _take_vae(self, vae: Any, low_memory: bool) -> None:
        """Use a VAE; see `ModelSpec` for low memory."""
        config = vae.config
        overflows = config.get("force_upcast") and vae.dtype == torch.float16  # it says so
        # a copy: changed, it would be of no use to whoever handed the pipeline over
        self.vae = (copy.deepcopy(vae) if low_memory or overflows else vae).eval()
        self.low_memory, self.decode_batch = low_memory, 1 if low_memory else 8
        self._has_frames = config.get("z_dim") is not None  # a VAE of videos
        self.patch = 1 if getattr(vae, "bn", None) is None else int(config.patch_size[0])
        widths = config.get("block_out_channels") or config.get("encoder_block_out_channels")
        down = len(config.temperal_downsample) if widths is None else len(widths) - 1
        self.factor = 2**down * self.patch
        self.channels = int(config.get("in_channels") or config.get("input_channels") or 3)
        latents = config.get("latent_channels") or config.get("z_dim") or 0
        self.latent_channels = int(latents) * self.patch**2
        if overflows:
            self.vae.to(torch.float32)
        if low_memory:
            for switch in ("slicing", "tiling"):
                if hasattr(self.vae, f"use_{switch}"):  # a VQModel has neither, and would raise
                    getattr(self.vae, f"enable_{switch}")()
            self.vae.to("cpu")

    def _take_size(self, size: Sequence[int], multiple: int) -> None:
        self.image_size = pair(size)
        if any(side % multiple for side in self.image_size):
            raise ValueError(
                f"image_size must be a multiple of {multiple} for this VAE, got {self.image_size}.")

    @property
    def in_tiles(self) -> bool:
        return bool(getattr(self.vae, "use_tiling", False))

    def _identifying(self) -> tuple[Any, ...]:
        return self.denoiser, self.vae

    @contextmanager
    def _vae_at_hand(self) -> Iterator[None]:
        """Within it, the VAE lies where the denoiser does."""
        if self.low_memory:
            self.vae.to(self.device)
        try:
            yield
        finally:
            if self.low_memory:
                self.vae.to("cpu")

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        pixels = images.to(self.device, self.vae.dtype) * 2 - 1
        with self._vae_at_hand():
            encoded = self.vae.encode(pixels[:, :, None] if self._has_frames else pixels)
        # the mode, not a draw: the same image must give the same latents
        latents = encoded.latent_dist.mode() if "latent_dist" in encoded else encoded[0]
        latents = (latents[:, :, 0] if self._has_frames else latents).float()
        latents = F.pixel_unshuffle(latents, self.patch)
        shift, scale = _range(self.vae)
        return ((latents - shift.to(latents)) * scale.to(latents)).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        latents = latents.float()
        shift, scale = _range(self.vae)
        latents = latents / scale.to(latents) + shift.to(latents)
        latents = F.pixel_shuffle(latents, self.patch).to(self.vae.dtype)
        if self._has_frames:
            latents = latents[:, :, None]
        with self._vae_at_hand():
            pixels = [self.vae.decode(part).sample.float()
                      for part in latents.split(self.decode_batch)]
        images = torch.cat([part[:, :, 0] for part in pixels] if self._has_frames else pixels)
        return (images / 2 + 0.5).clamp(0, 1)


class LatentModel(OnLatents, UNetModel):
    """A U-Net on the latents of a VAE: Stable Diffusion 1.x, 2.x and XL, Turbo, LCM, LDM.

    Args:
        pipeline: as in `UNetModel`, with ``vae`` or ``vqvae``.
        name: as in `UNetModel`, as are ``class_names`` and ``null_class``.
        image_size: as in `ModelSpec`, as is ``low_memory``.
    """

    def __init__(
        self, pipeline: Any, name: str = "latent pipeline",
        image_size: tuple[int, int] | None = None, class_names: Sequence[str] | None = None,
        null_class: int | None = None, low_memory: bool = False,
    ):
        check_unet(pipeline.unet)
        self._take_vae(getattr(pipeline, "vae", None) or pipeline.vqvae, low_memory)
        native = [side * self.factor for side in pair(pipeline.unet.config.sample_size)]
        self._take_size(image_size or native, self.factor)
        super().__init__(pipeline, name, class_names, null_class)


def _range(vae: Any) -> tuple[Tensor, Tensor]:
    """Shift and scale with which a VAE's latents become the denoiser's: (z - shift) · scale; they
    broadcast with (B, C, H, W)."""
    config, statistics = vae.config, getattr(vae, "bn", None)
    if isinstance(statistics, nn.BatchNorm2d):
        mean, variance = statistics.running_mean, statistics.running_var
        assert mean is not None and variance is not None
        deviation = (variance.float() + config.batch_norm_eps).sqrt()
        return mean.float().view(1, -1, 1, 1), 1 / deviation.view(1, -1, 1, 1)
    scale = torch.tensor(float(config.get("scaling_factor") or 1.0))
    shift = torch.tensor(float(config.get("shift_factor") or 0.0))
    means, stds = config.get("latents_mean"), config.get("latents_std")
    if means is not None and stds is not None:
        shift = torch.tensor(means, dtype=torch.float32).view(1, -1, 1, 1)
        scale = scale / torch.tensor(stds, dtype=torch.float32).view(1, -1, 1, 1)
    return shift, scale
