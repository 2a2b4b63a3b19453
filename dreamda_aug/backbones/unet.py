"""Adapters of diffusers pipelines that have a U-Net: in pixels, or in the latents of a VAE."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn

from dreamda_aug.backbones.base import Condition, build_schedule, check_unet, fingerprint_of
from dreamda_aug.backbones.conditioning import (
    ClassConditioning,
    NoConditioning,
    TextConditioning,
)
from dreamda_aug.perturbation import BottleneckTap
from dreamda_aug.schedule import NoiseSchedule

# Conditions that SDXL's U-Net takes inside ``added_cond_kwargs``.
_ADDED = ("text_embeds", "time_ids")


class _UNetBackbone:
    """What pixel and latent models share."""

    def __init__(self, pipeline, name: str, class_names, null_class: int | None):
        check_unet(pipeline.unet)
        self.pipeline, self.name = pipeline, name
        self.unet = pipeline.unet.eval().requires_grad_(False)
        self.tap = BottleneckTap(self.unet)
        if hasattr(pipeline, "encode_prompt"):
            self.conditioning = TextConditioning(pipeline, name, self.image_size)
        elif self.unet.config.get("num_class_embeds"):
            self.conditioning = ClassConditioning(self.unet, name, class_names, null_class)
        else:
            self.conditioning = NoConditioning()
        self._call = self.unet

    @property
    def condition_kind(self) -> str:
        return self.conditioning.kind

    @property
    def guidable(self) -> bool:
        return self.conditioning.guidable

    @property
    def class_names(self) -> list[str] | None:
        return getattr(self.conditioning, "class_names", None)

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def schedule(self, steps: int, strength: float) -> NoiseSchedule:
        return build_schedule(self.pipeline.scheduler, steps, strength).to(self.device)

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        return self.conditioning.embed(conditions)

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        self.conditioning.embed_only(conditions)

    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        inputs = {name: value.to(self.dtype) if value.is_floating_point() else value
                  for name, value in condition.items()}
        added = {name: inputs.pop(name) for name in _ADDED if name in inputs}
        if added:
            inputs["added_cond_kwargs"] = added
        output = self._call(x_t.to(self.dtype), t, return_dict=False, **inputs)[0].float()
        self.tap.encoder_rows += len(x_t)
        self.tap.decoder_rows += len(output)
        return output

    def compile(self, **options) -> None:
        """Run the U-Net through ``torch.compile``; the tap is in place already and survives.

        Args:
            options: for ``torch.compile``; static shapes unless ``dynamic`` is given.
        """
        self._call = torch.compile(self.unet, **{"dynamic": False, **options})

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Run in float32 for a while; half-precision weights come back unchanged."""
        parts = [self.unet, *([self.vae] if hasattr(self, "vae") else [])]
        dtypes, call = [part.dtype for part in parts], self._call
        self._call = self.unet  # not compiled: this is rare
        # nn.Module's own method: diffusers' one warns at every change of dtype
        for part in parts:
            nn.Module.to(part, torch.float32)
        try:
            yield
        finally:
            self._call = call
            for part, dtype in zip(parts, dtypes, strict=True):
                nn.Module.to(part, dtype)

    def unsafe(self, images: Tensor) -> Tensor:
        """Which images (B, C, H, W) the pipeline's safety checker rejects, (B,) bool."""
        flags = None
        if getattr(self.pipeline, "safety_checker", None) is not None:
            arrays = images.permute(0, 2, 3, 1).cpu().numpy()
            _, flags = self.pipeline.run_safety_checker(arrays, self.device, self.dtype)
        return torch.tensor([False] * len(images) if flags is None else flags)

    def channels_last(self) -> None:
        """Lay the U-Net's weights out as convolutions on recent GPUs and CPUs like them."""
        self.unet.to(memory_format=torch.channels_last)


class PixelBackbone(_UNetBackbone):
    """A ``UNet2DModel`` on pixels, such as ``DDPMPipeline``: unconditional or class-conditional.

    Args:
        pipeline: an object with ``unet`` and ``scheduler``.
        name: where it came from.
        class_names: names of its classes, in the order of its class embedding.
        null_class: index of the class that stands for "no class", which makes guidance possible;
            None where it was trained without one.

    Attributes are those of `Backbone`.
    """

    def __init__(
        self,
        pipeline,
        name: str = "pixel pipeline",
        class_names: Sequence[str] | None = None,
        null_class: int | None = None,
    ):
        check_unet(pipeline.unet)
        self.image_size = _pair(pipeline.unet.config.sample_size)
        self.channels = pipeline.unet.config.in_channels
        super().__init__(pipeline, name, class_names, null_class)

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.unet)

    def encode(self, images: Tensor) -> Tensor:
        return images.to(self.device, torch.float32) * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.float() / 2 + 0.5).clamp(0, 1)


class LatentBackbone(_UNetBackbone):
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

    def __init__(
        self,
        pipeline,
        name: str = "latent pipeline",
        image_size: tuple[int, int] | None = None,
        class_names: Sequence[str] | None = None,
        null_class: int | None = None,
        decode_batch: int = 8,
        low_memory: bool = False,
    ):
        check_unet(pipeline.unet)
        vae = getattr(pipeline, "vae", None) or pipeline.vqvae
        self.vae = vae.eval().requires_grad_(False)
        self.channels = self.vae.config.in_channels
        self.decode_batch, self.low_memory = decode_batch, low_memory
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        native = tuple(side * factor for side in _pair(pipeline.unet.config.sample_size))
        self.image_size = tuple(image_size or native)
        if any(side % factor for side in self.image_size):
            raise ValueError(
                f"image_size must be a multiple of {factor} for this VAE, got {self.image_size}."
            )
        if self.vae.config.get("force_upcast") and self.vae.dtype == torch.float16:
            self.vae.to(torch.float32)  # this VAE overflows in float16, and says so
        super().__init__(pipeline, name, class_names, null_class)
        if low_memory:
            self.decode_batch = 1
            for switch in ("slicing", "tiling"):
                if hasattr(self.vae, f"use_{switch}"):  # a VQModel has neither, and would raise
                    getattr(self.vae, f"enable_{switch}")()
            self.vae.to("cpu")

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.unet, self.vae)

    @property
    def in_tiles(self) -> bool:
        """Whether the VAE works in tiles, which see their own borders and give other latents."""
        tile = getattr(self.vae, "tile_sample_min_size", None)
        return getattr(self.vae, "use_tiling", False) and max(self.image_size) > tile

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

    def encode(self, images: Tensor) -> Tensor:
        with self._vae_at_hand():
            encoded = self.vae.encode(images.to(self.device, self.vae.dtype) * 2 - 1)
        # the mode, not a draw: the same image must give the same latents
        latents = encoded.latents if hasattr(encoded, "latents") else encoded.latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        with self._vae_at_hand():
            pixels = [self.vae.decode(part).sample.float()
                      for part in latents.split(self.decode_batch)]
        return (torch.cat(pixels) / 2 + 0.5).clamp(0, 1)


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)
