"""Adapters of diffusers pipelines that have a U-Net: what all share, and those on pixels."""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from dreamda_aug.backbones.base import Condition, check_unet
from dreamda_aug.backbones.conditioning import (
    ClassConditioning,
    Conditioning,
    NoConditioning,
    TextConditioning,
)
from dreamda_aug.backbones.fingerprints import Fingerprint, digest_of
from dreamda_aug.backbones.schedules import Spacing, build_schedule, path_kind
from dreamda_aug.backbones.tap import BottleneckTap
from dreamda_aug.method.schedule import NoiseSchedule


class _Reached(Exception):
    """The block whose output was wanted has run."""


# Conditions that SDXL's U-Net takes inside ``added_cond_kwargs``.
_ADDED = ("text_embeds", "time_ids")


class UNetBackbone:
    """What pixel and latent models share."""

    is_pixel_model = True
    image_size: tuple[int, int]
    channels: int
    low_memory: bool = False

    def __init__(
        self, pipeline: Any, name: str, class_names: Sequence[str] | None, null_class: int | None
    ):
        check_unet(pipeline.unet)
        path_kind(pipeline.scheduler)
        self.pipeline, self.name = pipeline, name
        self.unet = pipeline.unet.eval()
        self._fingerprint = Fingerprint(*self._identifying())
        self.tap = BottleneckTap(self.unet)
        if hasattr(pipeline, "encode_prompt"):
            self.conditioning: Conditioning = TextConditioning(pipeline, name, self.image_size)
        elif self.unet.config.get("num_class_embeds"):
            self.conditioning = ClassConditioning(self.unet, name, class_names, null_class)
        else:
            self.conditioning = NoConditioning()
        self._call: Callable[..., Any] = self.unet
        self._schedules: dict[Any, NoiseSchedule] = {}
        self._memory_format = torch.contiguous_format

    def _identifying(self) -> tuple[Any, ...]:
        """The modules that an inversion depends on, beside the condition's embedding."""
        return (self.unet,)

    @property
    def in_tiles(self) -> bool:
        """Whether images are encoded in tiles, which gives other latents."""
        return False

    @property
    def fingerprint(self) -> str:
        return self._fingerprint.value

    @property
    def condition_kind(self) -> Literal["text", "class", "none"]:
        return self.conditioning.kind

    @property
    def guidable(self) -> bool:
        return self.conditioning.guidable

    @property
    def class_names(self) -> list[str] | None:
        return self.conditioning.class_names

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    def schedule(
        self, steps: int, strength: float, spacing: Spacing = "uniform"
    ) -> NoiseSchedule:
        scheduler = self.pipeline.scheduler
        # a scheduler may be put in another's place, or its configuration changed, at any time
        key = (type(scheduler), repr(scheduler.config), steps, strength, spacing, self.device)
        if key not in self._schedules:
            self._schedules = {key: build_schedule(
                scheduler, steps, strength, spacing, is_pixel_model=self.is_pixel_model
            ).to(self.device)}
        return self._schedules[key]

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        return self.conditioning.embed(conditions)

    def condition_digest(self, condition: Condition) -> str:
        return digest_of(self.conditioning.embed([condition]))

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        self.conditioning.embed_only(conditions)

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        inputs: dict[str, Any] = {name: value.to(self.dtype) if value.is_floating_point() else value
                  for name, value in condition.items()}
        added = {name: inputs.pop(name) for name in _ADDED if name in inputs}
        if added:
            inputs["added_cond_kwargs"] = added
        # one layout, whatever a VAE or a caller gives: other strides run other kernels, and what
        # one kernel recorded another does not replay exactly
        x_t = x_t.to(self.dtype).contiguous(memory_format=self._memory_format)
        output = self._call(x_t, t, return_dict=False, **inputs)[0]
        # models with learned variance predict it in the second half of the channels
        output = output[:, : x_t.shape[1]].float().contiguous()
        self.tap.encoder_rows += len(x_t)
        self.tap.decoder_rows += len(output)
        return output

    def features(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        found: list[Tensor] = []

        def stop(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            found.append(output.float())
            raise _Reached  # the blocks that follow are the U-Net's most costly ones

        self.tap.clear()
        hook = self.unet.up_blocks[0].register_forward_hook(stop)
        try:
            with contextlib.suppress(_Reached):
                self.predict(x_t, t, condition)
        finally:
            hook.remove()
        return found[0]

    def compiled(self, **options: Any) -> Self:
        """The same model, its U-Net run through ``torch.compile``; this one stays as it is.

        Both share weights and tap; the tap is in place already and survives compilation.

        Args:
            options: for ``torch.compile``; static shapes unless ``dynamic`` is given.
        """
        other = copy.copy(self)
        other._call = torch.compile(self.unet, **{"dynamic": False, **options})
        return other

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        """Run in float32 for a while; half-precision weights come back unchanged."""
        parts = self._identifying()
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
        self._memory_format = torch.channels_last


class PixelBackbone(UNetBackbone):
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
        pipeline: Any,
        name: str = "pixel pipeline",
        class_names: Sequence[str] | None = None,
        null_class: int | None = None,
    ):
        check_unet(pipeline.unet)
        self.image_size = pair(pipeline.unet.config.sample_size)
        self.channels = pipeline.unet.config.in_channels
        super().__init__(pipeline, name, class_names, null_class)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        return images.to(self.device, torch.float32) * 2 - 1

    def decode(self, latents: Tensor) -> Tensor:
        return (latents.float() / 2 + 0.5).clamp(0, 1)


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
