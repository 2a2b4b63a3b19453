"""Adapter of diffusers pipelines whose denoiser is a transformer on the latents of a VAE."""

import copy
import hashlib
import inspect
from typing import Any, Self

import torch
from torch import Tensor

from dreamda_aug.arguments import real
from dreamda_aug.errors import ModelError
from dreamda_aug.models.base import DiffusionModel, check_denoiser, pair
from dreamda_aug.models.conditioning import ClassConditioning, Conditioning, TextConditioning
from dreamda_aug.models.families import FAMILIES, Family
from dreamda_aug.models.hook import BlockHook, forwards
from dreamda_aug.models.schedules import path_kind


class TransformerModel(DiffusionModel):
    """A diffusion transformer: SD3, FLUX, Qwen-Image, Z-Image, Sana, PixArt and others.

    It has no bottleneck. The perturbation enters behind one of its blocks, the middle one by
    default, on the image's tokens only; relative noise counts in each channel's RMS.

    Args:
        pipeline: an object with ``transformer``, ``vae`` and ``scheduler``.
        name: where it came from.
        image_size: as in `ModelSpec`, as are ``low_memory``, ``block_index`` and
            ``embedded_guidance``.
        null_class: for class-conditional models, the class that stands for "no class", or None for
            the one behind the last.
        family: how the transformer is called, or None to look it up in `FAMILIES`.

    Raises:
        ModelError: the transformer is not supported, or not one from text or class to image.
        ValueError: ``image_size``, ``block_index`` or ``embedded_guidance`` is not possible here.
    """

    hook: BlockHook

    def __init__(
        self, pipeline: Any, name: str = "transformer pipeline",
        image_size: tuple[int, int] | None = None, null_class: int | None = None,
        low_memory: bool = False, block_index: int | None = None,
        embedded_guidance: float | None = None, family: Family | None = None,
    ):
        transformer, kind = pipeline.transformer, type(pipeline.transformer).__name__
        if family is None and kind not in FAMILIES:
            raise ModelError(
                f"{kind} of {type(pipeline).__name__} is not a known transformer. Use one of "
                f"{', '.join(sorted(FAMILIES))}, a U-Net such as Stable Diffusion 1.x, 2.x or XL, "
                "or describe it: dreamda_aug.models.transformer.TransformerModel(pipeline, "
                "family=Family(...)).")
        encode = getattr(pipeline, "encode_prompt", None)
        if encode is not None and "image" in inspect.signature(encode).parameters:
            raise ModelError(f"{type(pipeline).__name__} needs an image beside the prompt: an "
                             "editing model. Use the text-to-image model of its family.")
        self.family = family or FAMILIES[kind]
        path_kind(pipeline.scheduler)
        self._patch = self.family.patch or int(transformer.config.patch_size)
        self._take_vae(pipeline.vae, low_memory)
        check_denoiser(
            transformer, self.latent_channels * (self._patch**2 if self.family.packed else 1))
        side = getattr(pipeline, "default_sample_size", None)
        side = pair(side or transformer.config.get("sample_size") or 128)
        native = [each * self.factor // self.patch for each in side]
        self._take_size(image_size or native, self.factor * self._patch)
        if self.family.square and len(set(self.image_size)) > 1:
            raise ValueError(f"image_size must be square for {kind}, got {self.image_size}.")
        self._before, self._lists = ([list(getattr(transformer, part, ())) for part in parts]
                                     for parts in (self.family.before, self.family.blocks))
        self.embedded_guidance = _guidance_input(pipeline, embedded_guidance)
        conditioning = self._condition(pipeline, name, null_class)
        self._hook_behind(transformer, block_index)
        super().__init__(pipeline, name, transformer, self.hook, conditioning)

    def _hook_behind(self, transformer: Any, block_index: int | None) -> None:
        """Hook the block of this number among all that can be hooked, or the middle one."""
        blocks = [block for each in self._lists for block in each]
        count = len(blocks)
        # the blocks in the first half, but for the last one, also feed a skip to the second half
        first = max(count // 2 - 1, 0) if self.family.has_long_skips else 0
        index = count // 2 if block_index is None else block_index
        if not first <= index < count:
            raise ValueError(f"block_index must be an integer from {first} to {count - 1} for "
                             f"{type(transformer).__name__}, got {block_index!r}.")
        self.block_index = index
        self.hook = BlockHook(
            [*self._before, *self._lists], blocks[index], self.family.has_long_skips)

    def with_block(self, block_index: int) -> Self:
        """The same model, perturbed behind another block; this one stays as it is.

        Both share weights and embedded prompts. The new one's hooks stay on the transformer, and do
        nothing while the other is used, until its ``hook.remove()``.

        Args:
            block_index: as in `ModelSpec`.

        Raises:
            ValueError: there is no such block.
        """
        other = copy.copy(self)
        other._hook_behind(self.denoiser, block_index)
        return other

    def _condition(self, pipeline: Any, name: str, null_class: int | None) -> Conditioning:
        config = pipeline.transformer.config
        if self.family.embed is None:
            count = int(config.num_embeds_ada_norm)
            return ClassConditioning(
                pipeline.transformer, count + 1, name,
                _class_names(getattr(pipeline, "labels", {}), count),
                count if null_class is None else null_class)
        distilled = config.get("guidance_embeds") or pipeline.config.get("is_distilled")
        return TextConditioning(
            pipeline, name, pipeline.transformer, self.family.embed,
            self.family.guidable and not distilled, self.image_size, self.embedded_guidance)

    @property
    def fingerprint(self) -> str:
        # a calibration belongs to the hook and to the guidance, too
        text = f"{super().fingerprint}{self.block_index}{self.embedded_guidance}"
        return hashlib.sha256(text.encode()).hexdigest()

    def _flow_options(self, steps: int) -> dict[str, Any]:
        height, width = (side // self.factor for side in self.image_size)
        tokens, shift = height * width // self._patch**2, self.family.shift
        mu = None if shift is None else shift(self.pipeline, self.latent_channels, tokens, steps)
        return {"shift_mu": mu, "even_sigmas": self.family.even_sigmas}

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        if getattr(self.denoiser, "is_cache_enabled", False):
            raise ModelError(
                f"{type(self.denoiser).__name__} has a cache enabled, which skips blocks and would "
                "skip the perturbed one; switch it off with transformer.disable_cache().")
        inputs = self._inputs(condition)
        x_t = x_t.to(self.dtype).contiguous()

        def denoise(rows: Tensor | slice) -> Tensor:
            x, given = x_t[rows], {name: value[rows] for name, value in inputs.items()}
            self.hook.image_count = x.shape[2] * x.shape[3] // self._patch**2
            self.hook.image_start = self.family.text_tokens(given)
            return self.family.denoise(self.denoiser, x, t.expand(len(x)), given)

        with forwards(self._compiled or {}):
            return self._finished(self.hook.branched(denoise), x_t)

    def features(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        grid = (x_t.shape[2] // self._patch, x_t.shape[3] // self._patch)
        return super().features(x_t, t, condition).transpose(1, 2).unflatten(2, grid)

    def _compile(self, options: dict[str, Any]) -> Any:
        # one by one, as diffusers recommends: blocks share one graph, and the hook stays outside it
        return {block: torch.compile(block.forward, **options)
                for stage in (*self._before, *self._lists) for block in stage}


def _class_names(labels: dict[str, int], count: int) -> list[str] | None:
    """The shortest of each class's names, or None where a class has none."""
    longest_first = sorted(labels, key=lambda label: (len(label), label), reverse=True)
    by_class = {int(labels[label]): label for label in longest_first}
    return [by_class[n] for n in range(count)] if by_class.keys() >= set(range(count)) else None


def _guidance_input(pipeline: Any, requested: float | None) -> float | None:
    """The guidance scale that the transformer takes as an input, or None if it takes none."""
    if pipeline.transformer.config.get("guidance_embeds"):
        if requested is None:
            return float(inspect.signature(pipeline.__call__).parameters["guidance_scale"].default)
        return real("embedded_guidance", requested, "be a number >= 0", 0)
    if requested is not None:
        raise ValueError(
            f"embedded_guidance must be None for this {type(pipeline.transformer).__name__}, which "
            f"takes no guidance scale as an input, got {requested!r}; leave it out.")
    return None
