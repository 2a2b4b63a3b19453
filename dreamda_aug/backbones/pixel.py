"""Pixel diffusion models: a diffusers ``UNet2DModel`` and a scheduler."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from dreamda_aug.backbones.base import Condition, build_schedule, check_unet, fingerprint_of
from dreamda_aug.errors import BackboneError
from dreamda_aug.perturbation import BottleneckTap
from dreamda_aug.schedule import NoiseSchedule


class PixelBackbone:
    """A ``DDPMPipeline`` or ``DDIMPipeline``: unconditional or class-conditional.

    Args:
        pipeline: an object with ``unet`` and ``scheduler``.
        name: where it came from.
        class_names: names of its classes, in the order of its class embedding.
        null_class: index of the class that stands for "no class", which makes guidance possible;
            None where it was trained without one.

    Other attributes are those of `Backbone`.
    """

    def __init__(
        self,
        pipeline,
        name: str = "pixel pipeline",
        class_names: Sequence[str] | None = None,
        null_class: int | None = None,
    ):
        check_unet(pipeline.unet)
        self.pipeline, self.name = pipeline, name
        self.unet = pipeline.unet.eval().requires_grad_(False)
        self.class_names = list(class_names) if class_names else None
        self.null_class = null_class
        size = self.unet.config.sample_size
        self.image_size = (size, size) if isinstance(size, int) else tuple(size)
        self.channels = self.unet.config.in_channels
        self.condition_kind = "class" if self._num_classes else "none"
        self.guidable = null_class is not None
        self.tap = BottleneckTap(self.unet)

    @property
    def _num_classes(self) -> int:
        return self.unet.config.num_class_embeds or 0

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint_of(self.unet)

    def schedule(self, steps: int, strength: float) -> NoiseSchedule:
        return build_schedule(self.pipeline.scheduler, steps, strength).to(self.device)

    def encode(self, images: Tensor) -> Tensor:
        return images.to(self.device, torch.float32) * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.float() / 2 + 0.5).clamp(0, 1)

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        if self.condition_kind == "none":
            return {}
        indices = [self._class_index(condition) for condition in conditions]
        return {"class_labels": torch.tensor(indices, device=self.device)}

    def _class_index(self, condition: Condition) -> int:
        if condition is None:
            if self.null_class is None:
                raise BackboneError(
                    f"{self.name} is class-conditional without a null class, so every image needs "
                    "its label; give load_backbone(null_class=...) if it has one."
                )
            return self.null_class
        if isinstance(condition, str):
            if condition not in (self.class_names or ()):
                raise BackboneError(
                    f"{self.name} knows the classes {self.class_names}, got {condition!r}; "
                    "pass class_names that match, or integer labels."
                )
            return self.class_names.index(condition)
        if not 0 <= condition < self._num_classes:
            raise BackboneError(
                f"{self.name} has class labels 0 to {self._num_classes - 1}, got {condition}."
            )
        return int(condition)

    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return self.unet(x_t.to(self.unet.dtype), t, **condition).sample.float()
