"""Adapter of diffusers pipelines whose denoiser is a transformer on the latents of a VAE."""

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from dreamda_aug.models.block_hook import BlockHook, ImageTokens, forwards
from dreamda_aug.models.codec import ImageCodec
from dreamda_aug.models.conditioning import (
    ClassConditioning,
    Conditioning,
    TextConditioning,
)
from dreamda_aug.models.denoiser import pair
from dreamda_aug.models.families import Family
from dreamda_aug.models.latent import OnLatents
from dreamda_aug.models.places import (
    block_lists,
    check_transformer,
    check_uncached,
    family_of,
    hooked_block,
)
from dreamda_aug.models.prompts import PipelinePrompts, guidance_input
from dreamda_aug.models.schedules import path_kind


class TransformerModel(OnLatents):
    """A diffusion transformer: SD3, FLUX, Qwen-Image, Z-Image, Sana, PixArt and others.

    It has no bottleneck. The perturbation enters behind one of its blocks, the middle one by
    default, on the image's tokens only; relative noise counts in each channel's RMS.

    Args:
        pipeline: an object with ``transformer``, ``vae`` and ``scheduler``.
        name: where it came from.
        image_size: height and width in pixels; None: what the transformer was trained for.
        class_names: for class-conditional models, names in the order of their classes; None: the
            pipeline's own.
        null_class: for class-conditional models, the class that stands for "no class"; None: the
            one behind the last.
        decode_batch: as in `ImageCodec`.
        low_memory: as in `ImageCodec`.
        block_index: number of the hooked block, in the order in which blocks run; None: the middle.
        embedded_guidance: the guidance scale that a guidance-distilled model takes as an input;
            None: the default of its pipeline's own call.
        family: how the transformer is called; None: as the table of known families says.

    Attributes are those of `DiffusionModel`.

    Raises:
        ModelError: the transformer is not understood, or is not one from text or class to image.
        ValueError: ``image_size``, ``block_index`` or ``embedded_guidance`` is not possible here.
    """

    def __init__(
        self,
        pipeline: Any,
        name: str = "transformer pipeline",
        image_size: tuple[int, int] | None = None,
        class_names: Sequence[str] | None = None,
        null_class: int | None = None,
        decode_batch: int = 8,
        low_memory: bool = False,
        block_index: int | None = None,
        embedded_guidance: float | None = None,
        family: Family | None = None,
    ):
        transformer = pipeline.transformer
        self.family = family or family_of(pipeline)
        path_kind(pipeline.scheduler)
        self._patch = self.family.patch or int(transformer.config.patch_size)
        codec = ImageCodec(pipeline.vae, decode_batch, low_memory)
        check_transformer(pipeline, codec, self._patch if self.family.packed else 1)
        side = getattr(pipeline, "default_sample_size", None)
        side = pair(side or transformer.config.get("sample_size") or 128)
        native = tuple(each * codec.factor // codec.patch for each in side)
        self._take_codec(codec, native, image_size, codec.factor * self._patch)
        if self.family.square and len(set(self.image_size)) > 1:
            raise ValueError(
                f"image_size must be square for {type(transformer).__name__}, got "
                f"{self.image_size}."
            )
        self._blocks = [block for stages in block_lists(transformer, self.family)
                        for stage in stages for block in stage]
        self._compiled: dict[nn.Module, Callable[..., Any]] = {}
        self.embedded_guidance = guidance_input(pipeline, embedded_guidance)
        conditioning = self._condition(pipeline, name, class_names, null_class)
        self._block_hook = self._hook_behind(transformer, block_index)
        super().__init__(pipeline, name, transformer, self._block_hook, conditioning)

    def _hook_behind(self, transformer: Any, block_index: int | None) -> BlockHook:
        before, lists = block_lists(transformer, self.family)
        self.block_index, stage, index = hooked_block(transformer, self.family, block_index)
        return BlockHook(
            [*before, *lists], len(before) + stage, index, self.family.has_long_skips)

    def with_block(self, block_index: int) -> Self:
        """The same model, perturbed behind another block; this one stays as it is.

        Both share weights and embedded prompts. The new one's hooks stay on the transformer, and do
        nothing while the other is used, until its ``hook.remove()``.

        Args:
            block_index: number of the hooked block, in the order in which blocks run.

        Raises:
            ValueError: there is no such block.
        """
        other = copy.copy(self)
        other.hook = other._block_hook = other._hook_behind(self.denoiser, block_index)
        return other

    def _condition(
        self, pipeline: Any, name: str, class_names: Sequence[str] | None, null_class: int | None
    ) -> Conditioning:
        config = pipeline.transformer.config
        if self.family.embed is None:
            count = int(config.num_embeds_ada_norm)
            names = class_names or _class_names(getattr(pipeline, "labels", {}), count)
            return ClassConditioning(pipeline.transformer, count + 1, name, names,
                                     count if null_class is None else null_class)
        prompts = PipelinePrompts(
            pipeline, self.family.embed, self.image_size, self.embedded_guidance)
        distilled = config.get("guidance_embeds") or pipeline.config.get("is_distilled")
        return TextConditioning(pipeline, name, prompts, self.family.guidable and not distilled)

    @property
    def fingerprint(self) -> str:
        # a calibration belongs to the hook and to the guidance, too
        facts = f"{super().fingerprint}{self.block_index}{self.embedded_guidance}"
        return hashlib.sha256(facts.encode()).hexdigest()

    def _flow_options(self, steps: int) -> dict[str, Any]:
        height, width = (side // self.codec.factor for side in self.image_size)
        mu = None
        if self.family.shift is not None:
            shape = (self.codec.latent_channels, height, width)
            tokens = height * width // self._patch**2
            mu = self.family.shift(self.pipeline, shape, tokens, steps)
        return {"shift_mu": mu, "even_sigmas": self.family.even_sigmas}

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        check_uncached(self.denoiser)
        inputs, hook = self._inputs(condition), self._block_hook
        x_t = x_t.to(self.dtype).contiguous()
        with forwards(self._compiled):
            if hook.rows is None:
                output = self._denoise(x_t, t, inputs)
            else:
                with hook.recording():
                    self._denoise(x_t, t, inputs)
                rows = {name: value[hook.rows] for name, value in inputs.items()}
                with hook.recalling():
                    output = self._denoise(x_t[hook.rows], t, rows)
        return self._finished(output, x_t)

    def _denoise(self, x_t: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        count = x_t.shape[2] * x_t.shape[3] // self._patch**2
        self._block_hook.image_tokens = ImageTokens(count, self.family.text_tokens(inputs))
        return self.family.denoise(self.denoiser, x_t, t.expand(len(x_t)), dict(inputs))

    def features(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        found: list[Tensor] = []
        self.hook.clear()
        with self._block_hook.stopping_behind(found):
            self.predict(x_t, t, condition)
        grid = (x_t.shape[2] // self._patch, x_t.shape[3] // self._patch)
        return found[0].float().transpose(1, 2).unflatten(2, grid)

    def compiled(self, **options: Any) -> Self:
        """The same model, each of its blocks run through ``torch.compile``; this one stays.

        Blocks are compiled one by one, as diffusers recommends for transformers: they share one
        graph, and the hook stays outside it.

        Args:
            options: for ``torch.compile``; static shapes unless ``dynamic`` is given.
        """
        other = copy.copy(self)
        other._compiled = {block: torch.compile(block.forward, **{"dynamic": False, **options})
                           for block in self._blocks}
        return other

    @contextmanager
    def in_float32(self) -> Iterator[None]:
        compiled, self._compiled = self._compiled, {}
        try:
            with super().in_float32():
                yield
        finally:
            self._compiled = compiled


def _class_names(labels: dict[str, int], count: int) -> list[str] | None:
    """The shortest of each class's names, or None where a class has none."""
    by_class: dict[int, list[str]] = {}
    for label, number in labels.items():
        by_class.setdefault(int(number), []).append(label)
    if not all(number in by_class for number in range(count)):
        return None
    return [min(by_class[number], key=lambda label: (len(label), label)) for number in range(count)]
