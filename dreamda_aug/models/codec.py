"""Between images and the latents of a VAE."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImageCodec:
    """A VAE with the range, the frame axis and the patches that its denoiser expects.

    Args:
        vae: a diffusers VAE: ``AutoencoderKL``, ``VQModel``, ``AutoencoderDC``,
            ``AutoencoderKLQwenImage`` (one frame of a video) or ``AutoencoderKLFlux2`` (latents in
            2×2 patches, normalised by running statistics).
        decode_batch: images that are decoded at once; a VAE needs far more memory per image than a
            denoiser.
        low_memory: decode one image at a time, in slices and, beyond the VAE's own size, in tiles
            (which overlap and are blended); keep the VAE on the CPU between calls.

    Attributes:
        vae: the VAE, or a copy where it had to be changed.
        factor: how many pixels of a side become one latent (one patch, where they come in patches).
        patch: how many latents of a side are one patch.
        latent_channels: channels of the latents.
        channels: channels of the images.
    """

    def __init__(self, vae: Any, decode_batch: int = 8, low_memory: bool = False):
        config = vae.config
        overflows = config.get("force_upcast") and vae.dtype == torch.float16  # it says so
        # a copy: changed, it would be of no use to whoever handed the pipeline over
        self.vae = (copy.deepcopy(vae) if low_memory or overflows else vae).eval()
        self.decode_batch, self.low_memory = decode_batch, low_memory
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
            self.decode_batch = 1
            for switch in ("slicing", "tiling"):
                if hasattr(self.vae, f"use_{switch}"):  # a VQModel has neither, and would raise
                    getattr(self.vae, f"enable_{switch}")()
            self.vae.to("cpu")

    def in_tiles(self, image_size: tuple[int, int]) -> bool:
        """Whether images of this size are encoded in tiles, which gives other latents."""
        tile = getattr(self.vae, "tile_sample_min_size", None)
        tile = tile or getattr(self.vae, "tile_sample_min_height", None)
        if tile is None or not getattr(self.vae, "use_tiling", False):
            return False
        return max(image_size) > int(tile)

    @contextmanager
    def _at_hand(self, device: torch.device) -> Iterator[None]:
        """Within it, the VAE lies where the denoiser does."""
        if self.low_memory:
            self.vae.to(device)
        try:
            yield
        finally:
            if self.low_memory:
                self.vae.to("cpu")

    @torch.no_grad()
    def encode(self, images: Tensor, device: torch.device) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to clean latents (B, c, h, w), float32, on a device."""
        pixels = images.to(device, self.vae.dtype) * 2 - 1
        with self._at_hand(device):
            encoded = self.vae.encode(pixels[:, :, None] if self._has_frames else pixels)
        if hasattr(encoded, "latent_dist"):
            # the mode, not a draw: the same image must give the same latents
            latents = encoded.latent_dist.mode()
        else:
            latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent
        latents = (latents[:, :, 0] if self._has_frames else latents).float()
        latents = F.pixel_unshuffle(latents, self.patch)
        shift, scale = latent_range(self.vae)
        return ((latents - shift.to(latents)) * scale.to(latents)).contiguous()

    @torch.no_grad()
    def decode(self, latents: Tensor, device: torch.device) -> Tensor:
        """Latents (B, c, h, w) on a device to images (B, C, H, W), float32 in [0, 1]."""
        latents = latents.float()
        shift, scale = latent_range(self.vae)
        latents = latents / scale.to(latents) + shift.to(latents)
        latents = F.pixel_shuffle(latents, self.patch).to(self.vae.dtype)
        if self._has_frames:
            latents = latents[:, :, None]
        with self._at_hand(device):
            pixels = [self.vae.decode(part).sample.float()
                      for part in latents.split(self.decode_batch)]
        images = torch.cat([part[:, :, 0] for part in pixels] if self._has_frames else pixels)
        return (images / 2 + 0.5).clamp(0, 1)


def latent_range(vae: Any) -> tuple[Tensor, Tensor]:
    """Shift and scale with which a VAE's latents become the denoiser's: (z - shift) · scale.

    Args:
        vae: with ``scaling_factor``, and perhaps ``shift_factor`` or a ``latents_mean`` and
            ``latents_std`` for each channel, in its configuration; or with the running statistics
            ``bn`` of FLUX.2's.

    Returns:
        Two tensors that broadcast with (B, C, H, W).
    """
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
