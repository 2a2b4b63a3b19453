"""What a denoiser is conditioned on: nothing, a class, or a text."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dreamda_aug.errors import ModelError
from dreamda_aug.models.base import Condition
from dreamda_aug.models.fingerprints import quick_look

# The guidance scale that diffusers' own LCM pipeline takes by default.
LCM_GUIDANCE_SCALE = 8.5
# The aesthetic scores that diffusers' own SDXL pipeline gives the refiner by default: with a
# prompt, and on the unconditional branch.
AESTHETIC_SCORES = (6.0, 2.5)


# How many embedded prompts are kept beside the text encoders: 118 KB each for SD 1.5 in half
# precision, 320 KB for SDXL, which is less than the encoders themselves.
MAX_PROMPTS = 1024
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


class NoConditioning:
    """An unconditional model."""

    kind: Literal["none"] = "none"
    class_names = None
    guidable = False

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """No U-Net inputs at all."""
        return {}

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        """Nothing to free."""


class ClassConditioning:
    """A class embedding.

    Args:
        denoiser: has the class embedding.
        count: number of its classes, the null class among them.
        name: of the model, for messages.
        class_names: names of its classes, in the order of its class embedding, or None.
        null_class: index of the class that stands for "no class", which makes guidance possible;
            None where it was trained without one.
    """

    kind: Literal["class"] = "class"

    def __init__(
        self, denoiser: Any, count: int, name: str, class_names: Sequence[str] | None,
        null_class: int | None,
    ):
        self.denoiser, self.count, self.name = denoiser, count, name
        self.class_names = list(class_names) if class_names else None
        self.null_class = null_class
        self.guidable = null_class is not None

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """``class_labels``, (B,) int64."""
        indices = [self._index(condition) for condition in conditions]
        return {"class_labels": torch.tensor(indices, device=self.denoiser.device)}

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        """Nothing to free: the class embedding is a part of the denoiser."""

    def _index(self, condition: Condition) -> int:
        if condition is None:
            if self.null_class is None:
                raise ModelError(
                    f"{self.name} is class-conditional without a null class, so every image needs "
                    "its label; give load_model(null_class=...) if it has one."
                )
            return self.null_class
        if isinstance(condition, str):
            if self.class_names is None or condition not in self.class_names:
                raise ModelError(
                    f"{self.name} knows the classes {self.class_names}, got {condition!r}; "
                    "pass class_names that match, or integer labels."
                )
            return self.class_names.index(condition)
        if not 0 <= condition < self.count:
            raise ModelError(
                f"{self.name} has class labels 0 to {self.count - 1}, got {condition}."
            )
        return int(condition)


class TextConditioning:
    """Prompts; each is embedded once, and again where a text encoder has changed since.

    Args:
        pipeline: has the text encoders.
        name: of the model, for messages.
        embed_prompt: from a prompt to the denoiser's inputs, each with one row; the empty prompt is
            the unconditional branch.
        guidable: whether the model is guided away from that branch.
    """

    kind: Literal["text"] = "text"
    class_names = None

    def __init__(
        self, pipeline: Any, name: str, embed_prompt: Callable[[str], dict[str, Tensor]],
        guidable: bool,
    ):
        self.pipeline, self.name, self.guidable = pipeline, name, guidable
        self._embed_prompt = embed_prompt
        self._embedded: dict[str, dict[str, Tensor]] = {}
        self._seen = ""

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """The denoiser's inputs, one row for each condition."""
        prompts = self._embed_new(conditions)
        rows = [self._embedded[prompt] for prompt in prompts]
        if self._encoders():
            for prompt in list(self._embedded)[:-MAX_PROMPTS]:
                del self._embedded[prompt]  # the oldest; it can be embedded again
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        """Embed these and drop the text encoders, unless the embeddings would weigh more."""
        prompts = {condition or "" for condition in conditions} | self._embedded.keys()
        if len(prompts) <= MAX_PROMPTS:
            self._embed_new(conditions)
            self.drop_encoders()

    def drop_encoders(self) -> None:
        """Free the text encoders; prompts that were embedded already stay available."""
        for part in _ENCODERS:
            if getattr(self.pipeline, part, None) is not None:
                setattr(self.pipeline, part, None)

    def _encoders(self) -> list[Any]:
        found = [getattr(self.pipeline, part, None) for part in _ENCODERS]
        return [encoder for encoder in found if encoder is not None]

    def _embed_new(self, conditions: Sequence[Condition]) -> list[str]:
        """The conditions as prompts, all of them embedded."""
        prompts = []
        for condition in conditions:
            if condition is not None and not isinstance(condition, str):
                raise ModelError(
                    f"{self.name} takes text prompts, got {condition!r}; pass class_names so that "
                    "labels can be put into words."
                )
            prompts.append(condition or "")
        if encoders := self._encoders():
            now = quick_look(*encoders)
            if now != self._seen:
                self._seen, self._embedded = now, {}
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._embedded:
                if not encoders:
                    raise ModelError(
                        f"the text encoder of {self.name} was dropped from memory, and the prompt "
                        f"{prompt!r} was not embedded before; embed all prompts first, load the "
                        "model anew, or pass keep_text_encoder=True to DreamDAugment."
                    )
                with torch.no_grad():
                    self._embedded[prompt] = self._embed_prompt(prompt)
        return prompts


class UNetPrompts:
    """Prompts of a U-Net pipeline, through its own ``encode_prompt``.

    Knows SD 1.x and 2.x (one embedding), SDXL (two text encoders, pooled embedding and sizes; an
    aesthetic score in its refiner), and latent consistency models, which take the guidance scale as
    an input and are not guided again.

    Args:
        pipeline: has ``encode_prompt`` and ``unet``.
        image_size: height and width in pixels, which SDXL is conditioned on.
    """

    def __init__(self, pipeline: Any, image_size: tuple[int, int]):
        self.pipeline, self.image_size = pipeline, image_size
        self.guidable = pipeline.unet.config.get("time_cond_proj_dim") is None

    def __call__(self, prompt: str) -> dict[str, Tensor]:
        """``encoder_hidden_states``, and what else the U-Net takes, each with one row."""
        unet = self.pipeline.unet
        parts = self.pipeline.encode_prompt(
            prompt, device=unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        condition = {"encoder_hidden_states": parts[0].to(unet.dtype)}
        if unet.config.get("addition_embed_type") == "text_time":
            condition["text_embeds"] = parts[2].to(unet.dtype)
            condition["time_ids"] = torch.tensor(
                [self._sizes(prompt)], dtype=unet.dtype, device=unet.device)
            if not prompt and self.pipeline.config.get("force_zeros_for_empty_prompt"):
                for name in ("encoder_hidden_states", "text_embeds"):
                    condition[name] = torch.zeros_like(condition[name])
        if not self.guidable:
            scale = torch.tensor([LCM_GUIDANCE_SCALE - 1])
            embedding = self.pipeline.get_guidance_scale_embedding(
                scale, embedding_dim=unet.config.time_cond_proj_dim
            )
            condition["timestep_cond"] = embedding.to(unet.device, unet.dtype)
        return condition

    def _sizes(self, prompt: str) -> list[float]:
        """Original size and crop corner, as SDXL was trained: nothing cropped; then target size."""
        if self.pipeline.config.get("requires_aesthetics_score"):
            return [*self.image_size, 0, 0, AESTHETIC_SCORES[0 if prompt else 1]]
        return [*self.image_size, 0, 0, *self.image_size]


Conditioning = NoConditioning | ClassConditioning | TextConditioning
