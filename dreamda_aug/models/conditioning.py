"""What a denoiser is conditioned on: nothing, a class, or a text."""

import inspect
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from dreamda_aug.errors import ModelError
from dreamda_aug.models.fingerprints import digest_of, quick_look

# One image's condition: a prompt, a class index, or None for the unconditional one.
Condition = str | int | None

# How many embedded prompts are kept beside the text encoders: 118 KB each for SD 1.5 in half
# precision, 320 KB for SDXL, which is less than the encoders themselves.
MAX_PROMPTS = 1024
_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
# Options of ``encode_prompt`` for which a pipeline's call has defaults of its own.
_OPTIONS = ("max_sequence_length", "clean_caption", "complex_human_instruction", "system_prompt",
            "text_encoder_out_layers", "clip_skip")


class Conditioning:
    """No condition at all, and what the other kinds override; its methods are those of
    `DiffusionModel`."""

    kind: Literal["text", "class", "none"] = "none"
    class_names: list[str] | None = None
    guidable: bool = False

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        return {}

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        pass


class ClassConditioning(Conditioning):
    """A class embedding of ``count`` classes, null class included; see `UNetModel` for the rest.

    Raises:
        ModelError: there are more names than classes, or no such null class.
    """

    kind = "class"

    def __init__(
        self, denoiser: Any, count: int, name: str, class_names: Sequence[str] | None,
        null_class: int | None,
    ):
        self.denoiser, self.count, self.name = denoiser, count, name
        self.class_names, self.null_class = list(class_names or []) or None, null_class
        self.guidable = null_class is not None
        if len(class_names or []) > count or not 0 <= (null_class or 0) < count:
            raise ModelError(
                f"{name} has {count} classes, the null class among them; got "
                f"{len(class_names or [])} class_names and null_class={null_class}.")

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        indices = [self._index(condition) for condition in conditions]
        return {"class_labels": torch.tensor(indices, device=self.denoiser.device)}

    def _index(self, condition: Condition) -> int:
        if condition is None:
            if self.null_class is None:
                raise ModelError(
                    f"{self.name} is class-conditional without a null class, so every image needs "
                    "its label; give load_model(null_class=...) if it has one.")
            return self.null_class
        names = self.class_names or []
        index = names.index(condition) if condition in names else condition
        if isinstance(index, str) or not 0 <= index < self.count:
            raise ModelError(f"{self.name} has the classes {names} and class labels 0 to "
                             f"{self.count - 1}, got {condition!r}; pass class_names that match, "
                             "or integer labels.")
        return int(index)


class TextConditioning(Conditioning):
    """Prompts through a pipeline's own ``encode_prompt``, with the defaults of its call.

    Each is embedded once, and again after a text encoder has changed. Two prompts with one
    embedding are warned about once: a tokenizer cuts long prompts.

    Args:
        pipeline: has the text encoders.
        name: of the model, for messages.
        denoiser: its U-Net or transformer.
        embed_prompt: maps this object and a prompt to the denoiser's inputs, each with one row; the
            empty prompt is the unconditional branch. See `Family` and `unet_inputs`.
        guidable: whether the model is guided away from that branch.
        image_size: height and width in pixels, which some models are conditioned on.
        guidance: the guidance scale that a guidance-distilled transformer takes as an input, or
            None if it takes none.
    """

    kind = "text"

    def __init__(
        self, pipeline: Any, name: str, denoiser: Any,
        embed_prompt: Callable[["TextConditioning", str], dict[str, Tensor]], guidable: bool,
        image_size: tuple[int, int], guidance: float | None = None,
    ):
        self.pipeline, self.name, self.denoiser = pipeline, name, denoiser
        self.guidable, self.image_size, self.guidance = guidable, image_size, guidance
        self._embed_prompt = embed_prompt
        self._embedded: dict[str, dict[str, Tensor]] = {}
        self._seen = ""
        self._by_digest: dict[str, str] = {}
        self._has_warned = False

    def embed(self, conditions: Sequence[Condition]) -> dict[str, Tensor]:
        prompts = self._embed_new(conditions)
        rows = [self._embedded[prompt] for prompt in prompts]
        if self._encoders():
            for prompt in list(self._embedded)[:-MAX_PROMPTS]:
                del self._embedded[prompt]  # the oldest; it can be embedded again
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    def embed_only(self, conditions: Sequence[Condition]) -> None:
        # unless the embeddings would weigh more
        prompts = {condition or "" for condition in conditions} | self._embedded.keys()
        if len(prompts) <= MAX_PROMPTS:
            self._embed_new(conditions)
            for part in self._encoders():
                setattr(self.pipeline, part, None)

    def encode(self, prompt: str, **options: Any) -> tuple[Any, ...]:
        """What ``encode_prompt`` returns for one prompt; it is given those options that it has."""
        known = inspect.signature(self.pipeline.encode_prompt).parameters
        given = {"prompt": prompt, "num_images_per_prompt": 1, "do_classifier_free_guidance": False,
                 "device": self.denoiser.device, **self._defaults(), **options}
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
        known = (inspect.signature(self.pipeline.__call__).parameters
                 if callable(self.pipeline) else {})
        return {name: known[name].default for name in _OPTIONS if name in known}

    def _encoders(self) -> dict[str, Any]:
        return {part: encoder for part in _ENCODERS
                if (encoder := getattr(self.pipeline, part, None)) is not None}

    @torch.no_grad()
    def _embed_new(self, conditions: Sequence[Condition]) -> list[str]:
        """The conditions as prompts, all of them embedded."""
        for condition in conditions:
            if condition is not None and not isinstance(condition, str):
                raise ModelError(f"{self.name} takes text prompts, got {condition!r}; pass "
                                 "class_names so that labels can be put into words.")
        prompts = [str(condition or "") for condition in conditions]
        if encoders := self._encoders():
            now = quick_look(*encoders.values())
            if now != self._seen:
                self._seen, self._embedded, self._by_digest = now, {}, {}
        for prompt in dict.fromkeys(prompts):
            if prompt in self._embedded:
                continue
            if not encoders:
                raise ModelError(
                    f"the text encoder of {self.name} was dropped from memory, and the prompt "
                    f"{prompt!r} was not embedded before; embed all prompts first, load the model "
                    "anew, or pass keep_text_encoder=True to DreamDAugment.")
            row = self._embed_prompt(self, prompt)
            if self.guidance is not None:
                row["guidance"] = torch.tensor([self.guidance])
            self._embedded[prompt] = {
                name: value.to(self.denoiser.device) for name, value in row.items()}
            self._compare(prompt)
        return prompts

    def _compare(self, prompt: str) -> None:
        """Warn if the model cannot tell a prompt from an earlier one."""
        if self._has_warned or len(self._by_digest) >= MAX_PROMPTS:
            return
        other = self._by_digest.setdefault(digest_of(self._embedded[prompt]), prompt)
        if other != prompt:
            self._has_warned = True
            warnings.warn(
                f"{self.name} cannot tell the prompts {other!r} and {prompt!r} apart: they are the "
                "same to its tokenizer, which cuts long prompts. Shorten them, or put what differs "
                "first, such as the class name.", stacklevel=2)


def unet_inputs(prompts: TextConditioning, prompt: str) -> dict[str, Tensor]:
    """A prompt as the inputs of a U-Net: ``encoder_hidden_states``, and what else it takes.

    SD 1.x and 2.x take one embedding; SDXL a pooled one and sizes too, its refiner an aesthetic
    score; latent consistency models the guidance scale.
    """
    pipeline, unet = prompts.pipeline, prompts.denoiser
    parts = prompts.encode(prompt)
    condition = {"encoder_hidden_states": parts[0]}
    if unet.config.get("addition_embed_type") == "text_time":
        # original size and crop corner, as SDXL was trained: nothing cropped; then target size, or
        # the scores that diffusers' own pipeline gives the refiner
        score = [6.0 if prompt else 2.5]
        last = score if pipeline.config.get("requires_aesthetics_score") else prompts.image_size
        condition |= {"text_embeds": parts[2],
                      "time_ids": torch.tensor([[*prompts.image_size, 0.0, 0.0, *last]])}
        if not prompt and pipeline.config.get("force_zeros_for_empty_prompt"):
            for name in ("encoder_hidden_states", "text_embeds"):
                condition[name] = torch.zeros_like(condition[name])
    if width := unet.config.get("time_cond_proj_dim"):
        # of the guidance scale 8.5, the default of diffusers' own LCM pipeline
        condition["timestep_cond"] = pipeline.get_guidance_scale_embedding(
            torch.tensor([8.5 - 1]), embedding_dim=width)
    return condition
