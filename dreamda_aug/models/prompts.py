"""Prompts of a transformer pipeline, through its own ``encode_prompt``."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamda_aug.arguments import real
from dreamda_aug.errors import ModelError

# Options of ``encode_prompt`` for which a pipeline's call has defaults of its own.
_OPTIONS = ("max_sequence_length", "clean_caption", "complex_human_instruction", "system_prompt",
            "text_encoder_out_layers", "clip_skip")


@dataclass
class PipelinePrompts:
    """From a prompt to a transformer's inputs.

    Attributes:
        pipeline: has ``encode_prompt`` and ``transformer``.
        embed: what the family makes of the pipeline's embeddings; see `Family`.
        image_size: height and width in pixels, which some models are conditioned on.
        guidance: the guidance scale that a guidance-distilled model takes as an input; None: the
            model takes none.
    """

    pipeline: Any
    embed: Callable[["PipelinePrompts", str], dict[str, Tensor]]
    image_size: tuple[int, int]
    guidance: float | None = None

    def __call__(self, prompt: str) -> dict[str, Tensor]:
        """The inputs, each with one row; the empty prompt is the unconditional branch."""
        condition = self.embed(self, prompt)
        if self.guidance is not None:
            condition["guidance"] = torch.tensor([self.guidance])
        return {name: value.to(self.transformer.device) for name, value in condition.items()}

    @property
    def transformer(self) -> Any:
        return self.pipeline.transformer

    def encode(self, prompt: str, **options: Any) -> tuple[Any, ...]:
        """What ``encode_prompt`` returns for one prompt, with the options of the pipeline's call.

        Args:
            prompt: the prompt.
            options: further ones, left out where ``encode_prompt`` does not know them.
        """
        known = inspect.signature(self.pipeline.encode_prompt).parameters
        given = {"prompt": prompt, "num_images_per_prompt": 1, "do_classifier_free_guidance": False,
                 "device": self.transformer.device, **self._defaults(), **options}
        # a second and third prompt, for further text encoders, are the first one where not given
        given |= {name: None for name, parameter in known.items()
                  if parameter.default is inspect.Parameter.empty and name not in given}
        return tuple(self.pipeline.encode_prompt(
            **{name: value for name, value in given.items() if name in known}))

    @property
    def longest(self) -> int:
        """How many text tokens the pipeline's call keeps."""
        return int(self._defaults()["max_sequence_length"])

    def _defaults(self) -> dict[str, Any]:
        known = inspect.signature(self.pipeline.__call__).parameters
        return {name: known[name].default for name in _OPTIONS if name in known}


def guidance_input(pipeline: Any, asked: float | None) -> float | None:
    """The guidance scale that a guidance-distilled transformer takes as an input.

    Args:
        pipeline: has ``transformer``.
        asked: the scale to use, >= 0; None: the default of the pipeline's own call.

    Returns:
        The scale; None: the transformer takes none.

    Raises:
        ValueError: a scale is asked for that is no number >= 0, or where none is taken.
        ModelError: none is asked for, and the pipeline has no default.
    """
    kind = type(pipeline.transformer).__name__
    if not pipeline.transformer.config.get("guidance_embeds"):
        if asked is None:
            return None
        raise ValueError(
            f"embedded_guidance must be None for this {kind}, which takes no guidance scale as an "
            f"input, got {asked!r}; leave it out."
        )
    if asked is not None:
        return real("embedded_guidance", asked, "be a number >= 0", 0)
    default = inspect.signature(pipeline.__call__).parameters["guidance_scale"].default
    if default is None:
        raise ModelError(
            f"{kind} takes a guidance scale as an input, and {type(pipeline).__name__} has no "
            "default for it; give embedded_guidance."
        )
    return float(default)
