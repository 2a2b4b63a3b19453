"""Adapters of diffusers pipelines that have a U-Net: what all share, and those on pixels."""

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dreamda_aug.errors import ModelError
from dreamda_aug.models.conditioning import (
    ClassConditioning,
    Conditioning,
    PipelinePrompts,
    TextConditioning,
    unet_inputs,
)
from dreamda_aug.models.denoiser import DenoiserModel, check_denoiser, pair
from dreamda_aug.models.hook import Reached, UNetHook
from dreamda_aug.models.schedules import path_kind


class UNetModel(DenoiserModel):
    """What pixel and latent models share; subclasses set ``image_size`` and ``channels`` first.

    Args:
        pipeline: an object with ``unet`` and ``scheduler``; prompts are used if it has
            ``encode_prompt``, class labels if the U-Net has a class embedding.
        name: where it came from.
        class_names: names of its classes, in the order of its class embedding, or None.
        null_class: index of the class that stands for "no class", which makes guidance possible, or
            None if the model was trained without one.

    Raises:
        ModelError: the U-Net cannot be perturbed, or its scheduler is not supported.
    """

    def __init__(
        self, pipeline: Any, name: str, class_names: Sequence[str] | None, null_class: int | None
    ):
        unet = pipeline.unet
        path_kind(pipeline.scheduler)
        conditioning = Conditioning()
        if hasattr(pipeline, "encode_prompt"):
            # latent consistency models take the guidance scale as an input
            guidable = unet.config.get("time_cond_proj_dim") is None
            prompts = PipelinePrompts(pipeline, unet, unet_inputs, self.image_size)
            conditioning = TextConditioning(pipeline, name, prompts, guidable)
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

    def features(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        found: list[Tensor] = []

        def stop(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            found.append(output.float())
            raise Reached  # the blocks that follow are the U-Net's most costly ones

        self.hook.clear()
        hook = self.unet.up_blocks[0].register_forward_hook(stop)
        # a graph that was compiled before does not have this hook
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
    """A ``UNet2DModel`` on pixels, such as ``DDPMPipeline``; arguments are those of `UNetModel`."""

    is_pixel_model = True

    def __init__(
        self, pipeline: Any, name: str = "pixel pipeline",
        class_names: Sequence[str] | None = None, null_class: int | None = None,
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


def check_unet(unet: Any) -> None:
    """Raise `ModelError` if a denoiser has no bottleneck to perturb, with the reason."""
    kind, config = type(unet).__name__, unet.config
    if not all(hasattr(unet, name) for name in ("down_blocks", "mid_block", "up_blocks")):
        raise ModelError(
            f"{kind} has no U-Net bottleneck (down_blocks, mid_block and up_blocks), where the "
            "perturbation enters. Use a U-Net model such as Stable Diffusion 1.x, 2.x or XL.")
    if config.out_channels not in (config.in_channels, 2 * config.in_channels):
        raise ModelError(
            f"{kind} takes {config.in_channels} channels and gives {config.out_channels}: an "
            "inpainting or super-resolution model, which needs a mask or an image beside the "
            "noise. Use the text-to-image model.")
    check_denoiser(unet, config.get("encoder_hid_dim_type") in ("ip_image_proj", "text_image_proj"))
    if config.get("time_embedding_type") == "fourier":
        raise ModelError(
            f"{kind} has time_embedding_type='fourier' (a score-SDE model), whose noise schedule "
            "is not a DDPM one. Use a model with time_embedding_type='positional'.")
    if not config.sample_size or not isinstance(config.sample_size, int | list | tuple):
        raise ModelError(f"{kind} must have a number or two as sample_size in its configuration, "
                         f"found {config.sample_size!r}.")
