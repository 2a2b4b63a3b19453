"""Adapters of diffusers pipelines that have a U-Net: what all share, and those on pixels."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamda_aug.models.base import check_unet
from dreamda_aug.models.conditioning import (
    ClassConditioning,
    Conditioning,
    NoConditioning,
    TextConditioning,
    UNetPrompts,
)
from dreamda_aug.models.denoiser import DenoiserModel, pair
from dreamda_aug.models.hook import Reached, UNetHook
from dreamda_aug.models.schedules import path_kind

# Conditions that SDXL's U-Net takes inside ``added_cond_kwargs``.
_ADDED = ("text_embeds", "time_ids")


class UNetModel(DenoiserModel):
    """What pixel and latent models share; they have checked the U-Net by `check_unet`."""

    def __init__(
        self, pipeline: Any, name: str, class_names: Sequence[str] | None, null_class: int | None
    ):
        unet = pipeline.unet
        path_kind(pipeline.scheduler)
        conditioning: Conditioning
        if hasattr(pipeline, "encode_prompt"):
            prompts = UNetPrompts(pipeline, self.image_size)
            conditioning = TextConditioning(pipeline, name, prompts, prompts.guidable)
        elif unet.config.get("num_class_embeds"):
            conditioning = ClassConditioning(
                unet, unet.config.num_class_embeds, name, class_names, null_class)
        else:
            conditioning = NoConditioning()
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
        added = {name: inputs.pop(name) for name in _ADDED if name in inputs}
        if added:
            inputs["added_cond_kwargs"] = added
        # one layout, whatever a VAE or a caller gives: other strides run other kernels, and what
        # one kernel recorded another does not replay exactly
        x_t = x_t.to(self.dtype).contiguous(memory_format=self._memory_format)
        return self._finished(self._call(x_t, t, return_dict=False, **inputs)[0], x_t)

    def features(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        found: list[Tensor] = []

        def stop(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            found.append(output.float())
            raise Reached  # the blocks that follow are the U-Net's most costly ones

        self.hook.clear()
        hook = self.unet.up_blocks[0].register_forward_hook(stop)
        # a graph that was compiled before knows nothing of this hook
        eager = torch.compiler.set_stance("force_eager")
        try:
            with eager, contextlib.suppress(Reached):
                self.predict(x_t, t, condition)
        finally:
            hook.remove()
        return found[0]

    def channels_last(self) -> None:
        """Lay the U-Net's weights out as convolutions on recent GPUs and CPUs like them."""
        self.unet.to(memory_format=torch.channels_last)
        self._memory_format = torch.channels_last


class PixelModel(UNetModel):
    """A ``UNet2DModel`` on pixels, such as ``DDPMPipeline``: unconditional or class-conditional.

    Args:
        pipeline: an object with ``unet`` and ``scheduler``.
        name: where it came from.
        class_names: names of its classes, in the order of its class embedding.
        null_class: index of the class that stands for "no class", which makes guidance possible;
            None where it was trained without one.

    Attributes are those of `DiffusionModel`.
    """

    is_pixel_model = True

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
