"""What others would run instead, on the same weights: diffusers' own pipelines, or a plain loop."""

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from diffusers import (
    CycleDiffusionPipeline,
    DDIMScheduler,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionXLImg2ImgPipeline,
)
from torch import Tensor, nn

from dreamda_aug import Settings
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.transformer import TransformerModel

PROMPT = "a photo"


class Peer:
    """Image-to-image as diffusers has it: same weights, scheduler, steps and strength.

    Prompts are embedded beforehand, and nothing but the deterministic DDIM step (Euler's for flows)
    is run: the cheapest form of it.

    Args:
        model: whose weights it uses; our hooks are not in its way.
        settings: steps, strength, guidance scale and eta are taken.

    Attributes:
        rows: batch rows that went through the denoiser so far.
    """

    def __init__(self, model: DiffusionModel, settings: Settings):
        self.model, self.settings = model, settings
        self.rows = 0
        self.denoiser: Any = without_hooks(model.denoiser)
        self.denoiser.register_forward_pre_hook(self._count, with_kwargs=True)

    def img2img(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) in [0, 1] to such images."""
        return self._img2img(images)

    def cycle(self, image: Tensor) -> Tensor:
        """CycleDiffusion of one image, (1, 3, H, W): with guidance its pipeline takes no more."""
        return self._cycle(image)

    @property
    def has_cycle(self) -> bool:
        """Whether diffusers has CycleDiffusion for this model: U-Nets with one text encoder."""
        return self._kind == "sd"

    @property
    def _kind(self) -> str:
        if isinstance(self.model, TransformerModel):
            return "sd3"
        if self.model.vae is None:
            return "pixels"
        added = self.denoiser.config.get("addition_embed_type")
        return "sdxl" if added == "text_time" else "sd"

    @cached_property
    def _img2img(self) -> Callable[[Tensor], Tensor]:
        s, kind, scheduler = self.settings, self._kind, self.model.pipeline.scheduler
        if kind == "pixels":
            scheduler = DDIMScheduler.from_config(scheduler.config)
            denoise = self._pixel_denoiser()
            return lambda images: ddim_loop(
                denoise, scheduler, images.to(self.denoiser.device, self.denoiser.dtype), s.steps,
                s.strength)
        vae = self.model.vae
        pipeline: Any
        if kind == "sd":
            pipeline = StableDiffusionImg2ImgPipeline(
                vae, None, None, self.denoiser, scheduler, None, None,
                requires_safety_checker=False)
        elif kind == "sdxl":
            pipeline = StableDiffusionXLImg2ImgPipeline(
                vae, None, None, None, None, self.denoiser, scheduler, add_watermarker=False)
        else:
            pipeline = StableDiffusion3Img2ImgPipeline(
                self.denoiser, scheduler, vae, None, None, None, None, None, None)
        pipeline.set_progress_bar_config(disable=True)
        prompts = self._prompts()

        def run(images: Tensor) -> Tensor:
            given = _repeated(prompts, len(images))
            return pipeline(
                image=images, strength=s.strength, num_inference_steps=s.steps,
                guidance_scale=s.guidance_scale, output_type="pt", return_dict=False, **given)[0]

        return run

    def _pixel_denoiser(self) -> Callable[[Tensor, Tensor], Tensor]:
        """A call of a pixel U-Net, guided towards its first class where it knows a null class."""
        known = self.model.embed([0 if self.model.condition_kind == "class" else None])
        null = self.model.embed([None]) if self.model.guidable else {}

        def plain(x: Tensor, t: Tensor) -> Tensor:
            return self.denoiser(x, t, return_dict=False, **_repeated(known, len(x)))[0]

        def guided(x: Tensor, t: Tensor) -> Tensor:
            both = {name: torch.cat([null[name].expand(len(x)), value.expand(len(x))])
                    for name, value in known.items()}
            output = self.denoiser(torch.cat([x, x]), t, return_dict=False, **both)[0]
            away, towards = output.chunk(2)
            return away + self.settings.guidance_scale * (towards - away)

        return guided if self.model.guidable else plain

    def _prompts(self) -> dict[str, Tensor]:
        """A prompt and no prompt, embedded, under the names that the pipelines have for them."""
        names = {"encoder_hidden_states": "prompt_embeds", "text_embeds": "pooled_prompt_embeds",
                 "pooled_projections": "pooled_prompt_embeds"}
        found = {}
        for prefix, prompt in (("", PROMPT), ("negative_", None)):
            for name, value in self.model.embed([prompt]).items():
                if name in names:
                    found[prefix + names[name]] = value
        return found

    @cached_property
    def _cycle(self) -> Callable[[Tensor], Tensor]:
        s = self.settings
        target, source = (self.model.embed([prompt])["encoder_hidden_states"]
                          for prompt in (PROMPT, s.source_prompt or None))

        class Embedded(CycleDiffusionPipeline):
            """Prompts are embedded already."""

            def encode_prompt(self, prompt: Any, *options: Any, **named: Any) -> Any:
                return (target if prompt == PROMPT else source), source

        scheduler = DDIMScheduler.from_config(self.model.pipeline.scheduler.config)
        pipeline = Embedded(self.model.vae, None, None, self.denoiser, scheduler, None, None,
                            requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        return lambda image: pipeline(
            prompt=PROMPT, source_prompt=s.source_prompt, image=image, strength=s.strength,
            num_inference_steps=s.steps, guidance_scale=s.guidance_scale, eta=s.eta,
            output_type="pt", return_dict=False)[0]

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        self.rows += len(x)


def _repeated(given: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    return {name: value.expand(count, *value.shape[1:]) for name, value in given.items()}


@torch.no_grad()
def ddim_loop(
    denoise: Callable[[Tensor, Tensor], Tensor], scheduler: DDIMScheduler, images: Tensor,
    steps: int, strength: float,
) -> Tensor:
    """Image-to-image on pixels as diffusers' pipelines do it on latents: add noise, take it away.

    Args:
        denoise: noisy images and a timestep to what the model predicts.
        scheduler: its noise levels.
        images: (B, C, H, W) in [0, 1], where the model is.
        steps: from pure noise to the image; ``strength`` of them are run.
        strength: in (0, 1].
    """
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps[steps - min(int(steps * strength), steps):]
    x = images * 2 - 1
    x = scheduler.add_noise(x, torch.randn_like(x), timesteps[:1].expand(len(x)))
    for t in timesteps:
        x = scheduler.step(denoise(x, t), t, x, return_dict=False)[0]
    return (x.float() / 2 + 0.5).clamp(0, 1)


def without_hooks(module: nn.Module) -> nn.Module:
    """A copy that shares all weights, and has none of the hooks."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    hooks = [(part, name, getattr(part, name)) for part in module.modules()
             for name in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs",
                          "_forward_pre_hooks_with_kwargs")]
    # a hook would take along the hook that it belongs to
    for part, name, found in hooks:
        setattr(part, name, type(found)())
    try:
        return copy.deepcopy(module, shared)
    finally:
        for part, name, found in hooks:
            setattr(part, name, found)
