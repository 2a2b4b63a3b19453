"""What a denoiser is conditioned on: nothing, a class, or a text."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dreamda_aug.backbones.base import Condition
from dreamda_aug.errors import BackboneError

# The guidance scale that diffusers' own LCM pipeline takes by default.
LCM_GUIDANCE_SCALE = 8.5


# How many embedded prompts are kept beside the text encoders: 118 KB each for SD 1.5 in half
# precision, 320 KB for SDXL, which is less than the encoders themselves.
MAX_PROMPTS = 1024
_ENCODERS = ("text_encoder", "text_encoder_2")


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
        unet: has ``num_class_embeds`` in its configuration.
        name: of the model, for messages.
        class_names: names of its classes, in the order of its class embedding, or None.
        null_class: index of the class that stands for "no class", which makes guidance possible;
            None where it was trained without one.
    """

    kind: Literal["class"] = "class"

    def __init__(
        self, unet: Any, name: str, class_names: Sequence[str] | None, null_class: int | None
    ):
        self.unet, self.name = unet, name
        self.class_names = list(class_names) if class_names else None
        self.null_class = null_class
        self.guidable = null_class is not None

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """``class_labels``, (B,) int64."""
        indices = [self._index(condition) for condition in conditions]
        return {"class_labels": torch.tensor(indices, device=self.unet.device)}

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        """Nothing to free: the class embedding is a part of the U-Net."""

    def _index(self, condition: Condition) -> int:
        if condition is None:
            if self.null_class is None:
                raise BackboneError(
                    f"{self.name} is class-conditional without a null class, so every image needs "
                    "its label; give load_backbone(null_class=...) if it has one."
                )
            return self.null_class
        if isinstance(condition, str):
            if self.class_names is None or condition not in self.class_names:
                raise BackboneError(
                    f"{self.name} knows the classes {self.class_names}, got {condition!r}; "
                    "pass class_names that match, or integer labels."
                )
            return self.class_names.index(condition)
        count = self.unet.config.num_class_embeds
        if not 0 <= condition < count:
            raise BackboneError(
                f"{self.name} has class labels 0 to {count - 1}, got {condition}."
            )
        return int(condition)


class TextConditioning:
    """Prompts, through the pipeline's own ``encode_prompt``; each is embedded once.

    Knows SD 1.x and 2.x (one embedding), SDXL (two text encoders, pooled embedding and sizes), and
    latent consistency models, which take the guidance scale as an input and are not guided again.

    Args:
        pipeline: has ``encode_prompt`` and ``unet``.
        name: of the model, for messages.
        image_size: height and width in pixels, which SDXL is conditioned on.
    """

    kind: Literal["text"] = "text"
    class_names = None

    def __init__(self, pipeline: Any, name: str, image_size: tuple[int, int]):
        self.pipeline, self.name, self.image_size = pipeline, name, image_size
        self.guidable = pipeline.unet.config.get("time_cond_proj_dim") is None
        self._embedded: dict[str, dict[str, Tensor]] = {}

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        """``encoder_hidden_states``, and what else the model takes, one row for each condition."""
        prompts = self._embed_new(conditions)
        rows = [self._embedded[prompt] for prompt in prompts]
        if self._has_encoders():
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

    def _has_encoders(self) -> bool:
        return any(getattr(self.pipeline, part, None) is not None for part in _ENCODERS)

    def _embed_new(self, conditions: Sequence[Condition]) -> list[str]:
        """The conditions as prompts, all of them embedded."""
        prompts = []
        for condition in conditions:
            if condition is not None and not isinstance(condition, str):
                raise BackboneError(
                    f"{self.name} takes text prompts, got {condition!r}; pass class_names so that "
                    "labels can be put into words."
                )
            prompts.append(condition or "")
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._embedded:
                self._embedded[prompt] = self._embed_prompt(prompt)
        return prompts

    @torch.no_grad()
    def _embed_prompt(self, prompt: str) -> dict[str, Tensor]:
        if not self._has_encoders():
            raise BackboneError(
                f"the text encoder of {self.name} was dropped from memory, and the prompt "
                f"{prompt!r} was not embedded before; embed all prompts first, load the backbone "
                "anew, or pass keep_text_encoder=True to DreamDAugment."
            )
        unet = self.pipeline.unet
        parts = self.pipeline.encode_prompt(
            prompt, device=unet.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        condition = {"encoder_hidden_states": parts[0].to(unet.dtype)}
        if unet.config.get("addition_embed_type") == "text_time":
            # original size, crop corner and target size, as SDXL was trained: nothing cropped
            sizes = [*self.image_size, 0, 0, *self.image_size]
            condition["text_embeds"] = parts[2].to(unet.dtype)
            condition["time_ids"] = torch.tensor([sizes], dtype=unet.dtype, device=unet.device)
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


Conditioning = NoConditioning | ClassConditioning | TextConditioning
