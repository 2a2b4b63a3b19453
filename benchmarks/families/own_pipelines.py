"""What diffusers' own pipelines make of the same starting noise."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import diffusers
from torch import Tensor

PROMPT, LABEL = "a cat", 3
# From a guidance scale to the arguments that mean it in a pipeline.
Guided = Callable[[float], dict[str, Any]]


@dataclass(frozen=True)
class Own:
    """A pipeline of diffusers to compare with.

    Attributes:
        kind: its class.
        guidance_scale: where both are compared: 4, or 1 where it guides in another way than by the
            plain formula.
        strength: of image-to-image; 1 for a pipeline from text or class alone.
        guided: from the guidance scale to its arguments.
        given: whether it takes the start as its ``latents``; else it draws its noise, and is given
            this one.
        options: of its call. Sizes stand there where a pipeline reckons with a VAE of factor 8, and
            the tiny one's factor is 2.
    """

    kind: str
    guidance_scale: float = 4
    strength: float = 1
    guided: Guided = lambda scale: {"guidance_scale": scale}
    given: bool = False
    options: dict[str, Any] | None = None

    def __call__(self, pipeline: Any, image: Tensor, noise: Tensor, steps: int) -> Tensor:
        """The pipeline's image, (1, 3, H, W) in [0, 1].

        Args:
            pipeline: the tiny pipeline of the family.
            image: the seed image, (1, 3, H, W) in [0, 1].
            noise: what to start from, in the shape of the image's latents: the noise that is
                added to them; at strength 1 the noisy latents themselves.
            steps: from pure noise to the image.
        """
        made = getattr(diffusers, self.kind)(**pipeline.components)
        made.set_progress_bar_config(disable=True)
        arguments = {"num_inference_steps": steps, "output_type": "pt", **(self.options or {}),
                     **self.guided(self.guidance_scale)}
        if self.strength < 1:
            arguments |= {"image": image, "strength": self.strength}
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
    "sd3": Own("StableDiffusion3Img2ImgPipeline", strength=0.5, options=_SIZE),
    # its guidance is an input; 3.5 is what FluxPipeline gives by default
    "flux": Own("FluxImg2ImgPipeline", strength=0.5, options=_SIZE,
                guided=lambda _: {"guidance_scale": 3.5}),
    # from FLUX.2 on, an image is no start but a condition
    "flux2": Own("Flux2KleinPipeline", given=True, options=_SIZE),
    # where guided, the prediction is brought back to the length of the conditional one
    "qwen_image": Own("QwenImageImg2ImgPipeline", 1, 0.5, options=_SIZE,
                      guided=lambda scale: {"true_cfg_scale": scale}),
    # counts from the conditional prediction, and so one less
    "z_image": Own("ZImageImg2ImgPipeline", strength=0.5,
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
