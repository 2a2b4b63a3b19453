"""What diffusers' own pipelines make of the same starting noise."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple
from unittest.mock import patch

import diffusers
from torch import Tensor

PROMPT, LABEL = "a cat", 3
# From a guidance scale to the arguments that mean it in a pipeline.
Guided = Callable[[float], dict[str, Any]]


class Setting(NamedTuple):
    """Where a family is compared: steps from pure noise, strength and guidance scale."""

    steps: int
    strength: float
    guidance_scale: float


@dataclass(frozen=True)
class Own:
    """A pipeline of diffusers to compare with.

    Attributes:
        kind: its class.
        guidance_scales: where both are compared; 1 alone where it guides in another way than by the
            plain formula.
        from_image: whether it is image-to-image; else it begins with text or a class alone.
        guided: from the guidance scale to its arguments.
        given: whether it takes the start as its ``latents``; else it draws its noise, and is given
            this one.
        options: of its call. Sizes stand there where a pipeline reckons with a VAE of factor 8, and
            the tiny one's factor is 2.
    """

    kind: str
    guidance_scales: tuple[float, ...] = (1, 4)
    from_image: bool = False
    guided: Guided = lambda scale: {"guidance_scale": scale}
    given: bool = False
    options: dict[str, Any] | None = None

    @property
    def settings(self) -> list[Setting]:
        """All that both are compared at."""
        runs = [(4, 0.5), (8, 0.75)] if self.from_image else [(4, 1.0), (8, 1.0)]
        return [Setting(*run, scale) for run, scale in product(runs, self.guidance_scales)]

    def __call__(self, pipeline: Any, image: Tensor, noise: Tensor, setting: Setting) -> Tensor:
        """The pipeline's image, (1, 3, H, W) in [0, 1].

        Args:
            pipeline: the tiny pipeline of the family.
            image: the seed image, (1, 3, H, W) in [0, 1].
            noise: what to start from, in the shape of the image's latents: the noise that is
                added to them; at strength 1 the noisy latents themselves.
            setting: one of `settings`.
        """
        made = getattr(diffusers, self.kind)(**pipeline.components)
        made.set_progress_bar_config(disable=True)
        arguments = {"num_inference_steps": setting.steps, "output_type": "pt",
                     **(self.options or {}), **self.guided(setting.guidance_scale)}
        if self.from_image:
            arguments |= {"image": image, "strength": setting.strength}
        if self.given:
            arguments["latents"] = noise
        if self.kind == "DiTPipeline":
            arguments["class_labels"] = [LABEL]
        else:
            arguments["prompt"] = PROMPT
        with _noise_of(made, noise):
            return made(**arguments).images


def _noise_of(pipeline: Any, noise: Tensor) -> AbstractContextManager[Any]:
    """Within it, the pipeline draws this noise."""
    return patch(f"{type(pipeline).__module__}.randn_tensor",
                 lambda shape, **_: noise.reshape(shape))


_SIZE = {"height": 16, "width": 16}
OWN = {
    "sd": Own("StableDiffusionImg2ImgPipeline", from_image=True),
    "sd_euler": Own("StableDiffusionImg2ImgPipeline", from_image=True),
    "sd_2": Own("StableDiffusionPipeline", given=True, options=_SIZE),
    "sdxl": Own("StableDiffusionXLImg2ImgPipeline", from_image=True),
    "sdxl_euler": Own("StableDiffusionXLPipeline", given=True, options=_SIZE),
    "sd3": Own("StableDiffusion3Img2ImgPipeline", from_image=True, options=_SIZE),
    # its guidance is an input; 3.5 is what FluxPipeline gives by default
    "flux": Own("FluxImg2ImgPipeline", (1,), True, options=_SIZE,
                guided=lambda _: {"guidance_scale": 3.5}),
    # from FLUX.2 on, an image is no start but a condition
    "flux2": Own("Flux2KleinPipeline", given=True, options=_SIZE),
    # where guided, the prediction is brought back to the length of the conditional one
    "qwen_image": Own("QwenImageImg2ImgPipeline", (1,), True, options=_SIZE,
                      guided=lambda scale: {"true_cfg_scale": scale}),
    # counts from the conditional prediction, and so one less
    "z_image": Own("ZImageImg2ImgPipeline", from_image=True,
                   guided=lambda scale: {"guidance_scale": scale - 1}),
    "sana": Own("SanaPipeline", given=True,
                options={"height": 32, "width": 32, "use_resolution_binning": False}),
    "pixart": Own("PixArtSigmaPipeline", given=True,
                  options={**_SIZE, "use_resolution_binning": False}),
    "hunyuan_dit": Own("HunyuanDiTPipeline", given=True, options={
        "height": 64, "width": 64, "target_size": (16, 16), "use_resolution_binning": False}),
    "lumina2": Own("Lumina2Pipeline", given=True,
                   options={"height": 64, "width": 64, "cfg_normalization": False}),
    "dit": Own("DiTPipeline"),
}
