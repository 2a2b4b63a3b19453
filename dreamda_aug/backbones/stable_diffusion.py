"""Stable-Diffusion-like models: ``UNet2DConditionModel``, VAE and CLIP text encoder."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from dreamda_aug.backbones.base import Condition, build_schedule, check_unet, fingerprint_of
from dreamda_aug.errors import BackboneError
from dreamda_aug.perturbation import BottleneckTap
from dreamda_aug.schedule import NoiseSchedule


class StableDiffusionBackbone:
    """A text-to-image pipeline with a U-Net, such as ``StableDiffusionPipeline``.

    Args:
        pipeline: an object with ``unet``, ``vae``, ``scheduler`` and ``encode_prompt``.
        name: where it came from.
        image_size: height and width in pixels; None: what the U-Net was trained for.

    Other attributes are those of `Backbone`.
    """

    channels = 3
    condition_kind = "text"
    guidable = True

    def __init__(
        self,
        pipeline,
        name: str = "Stable Diffusion pipeline",
        image_size: tuple[int, int] | None = None,
    ):
        check_unet(pipeline.unet)
        self.pipeline, self.name = pipeline, name
        self.unet = pipeline.unet.eval().requires_grad_(False)
        self.vae = pipeline.vae.eval().requires_grad_(False)
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        size = self.unet.config.sample_size
        native = (size, size) if isinstance(size, int) else tuple(size)
        self.image_size = tuple(image_size or (native[0] * factor, native[1] * factor))
        if any(side % factor for side in self.image_size):
            raise ValueError(
                f"image_size must be a multiple of {factor} for this VAE, got {self.image_size}."
            )
        self.tap = BottleneckTap(self.unet)
        self._embeddings: dict[str, dict[str, Tensor]] = {}

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.unet, self.vae)

    def schedule(self, steps: int, strength: float) -> NoiseSchedule:
        return build_schedule(self.pipeline.scheduler, steps, strength).to(self.device)

    def encode(self, images: Tensor) -> Tensor:
        pixels = images.to(self.device, self.vae.dtype) * 2 - 1
        # the mode, not a draw: the same image must give the same latents
        latents = self.vae.encode(pixels).latent_dist.mode()
        return latents.float() * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        latents = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        return (self.vae.decode(latents).sample.float() / 2 + 0.5).clamp(0, 1)

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        for condition in conditions:
            if not isinstance(condition, str | None):
                raise BackboneError(
                    f"{self.name} takes text prompts, got {condition!r}; pass class_names so that "
                    "labels can be put into words."
                )
        prompts = [condition or "" for condition in conditions]
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._embeddings:
                self._embeddings[prompt] = self._embed_prompt(prompt)
        rows = [self._embeddings[prompt] for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def _embed_prompt(self, prompt: str) -> dict[str, Tensor]:
        embeddings, _ = self.pipeline.encode_prompt(
            prompt, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeddings.to(self.unet.dtype)}

    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.unet(x_t.to(self.unet.dtype), t, **condition).sample.float()
