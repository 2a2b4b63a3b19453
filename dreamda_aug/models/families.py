"""Table of the known families of diffusion transformers, and how each is called.

A family differs in what it takes of the pipeline's embedded prompt, how latents become tokens, how
it scales time and which sign its output has. Each is read off its own pipeline in diffusers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dreamda_aug.models.conditioning import TextConditioning

Inputs = dict[str, Any]
# What a pipeline gives its scheduler as ``mu``, from itself, the latents' channels, the number of
# image tokens and the number of steps.
Shift = Callable[[Any, int, int, int], float]


@dataclass(frozen=True)
class Family:
    """How the transformers of one class are called.

    Attributes:
        transformer: name of the class.
        denoise: the call: (transformer, x_t (R, C, H, W), t (R,), inputs with R rows) to the
            prediction, (R, C or 2·C, H, W), of the scheduler's prediction type.
        embed: maps the model's prompts (`TextConditioning`) and a prompt to inputs for ``denoise``
            with one row each, of the same shapes for every prompt, or None for class labels.
        blocks: lists of blocks that can be hooked, in the order in which they run.
        before: lists of blocks that run before those, and are not hooked.
        text_tokens: number of text tokens before the image's where both are in one sequence, or one
            for each row; 0 where they are apart or the image's come first.
        patch: how many latents of a side make a token, or None for the transformer's
            ``patch_size``.
        packed: whether the transformer takes tokens of patch × patch latents.
        has_long_skips: whether later blocks than the next one read a block's output.
        even_sigmas: whether the pipeline passes noise levels from 1 to 1 / steps to its scheduler.
        shift: the ``mu`` that it passes if the scheduler shifts dynamically.
        guidable: whether it has an unconditional branch, unless the configuration differs.
        square: whether its images must be square.
    """

    transformer: str
    denoise: Callable[[Any, Tensor, Tensor, Inputs], Tensor]
    embed: Callable[[TextConditioning, str], dict[str, Tensor]] | None
    blocks: tuple[str, ...] = ("transformer_blocks",)
    before: tuple[str, ...] = ()
    text_tokens: Callable[[Inputs], int | Tensor] = lambda inputs: 0
    patch: int | None = None
    packed: bool = False
    has_long_skips: bool = False
    even_sigmas: bool = False
    shift: Shift | None = None
    guidable: bool = True
    square: bool = False


def _packed(x: Tensor, patch: int = 2) -> Tensor:
    """Latents (R, C, H, W) to tokens of patches, (R, H·W / patch², C·patch²)."""
    return F.pixel_unshuffle(x, patch).flatten(2).transpose(1, 2)


def _unpacked(tokens: Tensor, x: Tensor, patch: int = 2) -> Tensor:
    """Tokens of patches back to the height and width of x."""
    grid = tokens.transpose(1, 2).unflatten(2, (x.shape[2] // patch, x.shape[3] // patch))
    return F.pixel_shuffle(grid, patch)


def _by_tokens(pipeline: Any, channels: int, tokens: int, steps: int) -> float:
    """``mu`` that grows with the number of image tokens, as most pipelines compute it."""
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = pipeline.scheduler.config
    return float(calculate_shift(
        tokens, config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096),
        config.get("base_shift", 0.5), config.get("max_shift", 1.15)))


def _by_tokens_and_steps(pipeline: Any, channels: int, tokens: int, steps: int) -> float:
    """``mu`` as FLUX.2's pipelines compute it."""
    from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

    return float(compute_empirical_mu(tokens, steps))


def _masked(prompts: TextConditioning, prompt: str) -> dict[str, Tensor]:
    """Embeddings and mask of pipelines that give both for the prompt, then for no prompt."""
    parts = prompts.encode(prompt, do_classifier_free_guidance=not prompt)
    embeddings, mask = parts[:2] if prompt else parts[2:4]
    return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}


def _filled(embeddings: Tensor, longest: int) -> dict[str, Tensor]:
    """Embeddings (N, D) as one row of so many tokens as any prompt may have, and their mask."""
    length = min(len(embeddings), longest)
    room = embeddings.new_zeros(1, longest, embeddings.shape[1])
    room[0, :length] = embeddings[:length]
    mask = torch.arange(longest, device=room.device)[None] < length
    return {"encoder_hidden_states": room, "encoder_attention_mask": mask}


def _dit(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    return model(x, timestep=t, return_dict=False, **inputs)[0]


def _embed_sd3(prompts: TextConditioning, prompt: str) -> dict[str, Tensor]:
    embeddings, _, pooled, _ = prompts.encode(prompt)
    return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}


def _embed_flux(prompts: TextConditioning, prompt: str) -> dict[str, Tensor]:
    # schnell, which takes no guidance scale, was trained with fewer tokens than dev
    options = {} if prompts.denoiser.config.guidance_embeds else {"max_sequence_length": 256}
    embeddings, pooled, ids = prompts.encode(prompt, **options)
    return {"encoder_hidden_states": embeddings, "pooled_projections": pooled, "txt_ids": ids[None]}


def _embed_flux2(prompts: TextConditioning, prompt: str) -> dict[str, Tensor]:
    embeddings, ids = prompts.encode(prompt)
    return {"encoder_hidden_states": embeddings, "txt_ids": ids}


def _flux(model: Any, x: Tensor, t: Tensor, inputs: Inputs, patch: int = 2) -> Tensor:
    text = inputs["txt_ids"][0]  # the same for every row
    # a token's place has a fourth coordinate in FLUX.2
    sides = (1, x.shape[2] // patch, x.shape[3] // patch, 1)[: text.shape[1]]
    image = torch.cartesian_prod(*(torch.arange(n, device=x.device) for n in sides))
    tokens = model(_packed(x, patch), timestep=t.to(x.dtype) / 1000, img_ids=image.to(text.dtype),
                   return_dict=False, **{**inputs, "txt_ids": text})[0]
    return _unpacked(tokens, x, patch)


def _embed_qwen(prompts: TextConditioning, prompt: str) -> dict[str, Tensor]:
    # a space is the empty prompt that the model was trained with; the mask is None where all
    # tokens count
    embeddings, mask = prompts.encode(prompt or " ")[:2]
    kept = embeddings[0] if mask is None else embeddings[0][mask[0].bool()]
    return _filled(kept, prompts.longest)


def _qwen(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    text, mask = inputs.pop("encoder_hidden_states"), inputs.pop("encoder_attention_mask")
    lengths = mask.sum(1).tolist()
    same = len(set(lengths)) == 1
    tokens = model(
        _packed(x), timestep=t.to(x.dtype) / 1000,
        encoder_hidden_states=text[:, : max(lengths)],
        encoder_hidden_states_mask=None if same else mask[:, : max(lengths)],
        img_shapes=[[(1, x.shape[2] // 2, x.shape[3] // 2)]] * len(x), return_dict=False, **inputs,
    )[0]
    return _unpacked(tokens, x)


def _embed_z_image(prompts: TextConditioning, prompt: str) -> dict[str, Tensor]:
    (embeddings,), _ = prompts.encode(prompt)
    return _filled(embeddings, prompts.longest)


def _z_image(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    lengths = inputs["encoder_attention_mask"].sum(1).tolist()
    texts = [row[:length] for row, length in
             zip(inputs["encoder_hidden_states"], lengths, strict=True)]
    images = model(list(x[:, :, None].unbind()), (1000 - t) / 1000, texts, return_dict=False)[0]
    return -torch.stack(images)[:, :, 0]


def _sana(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    return model(x, timestep=t * model.config.timestep_scale, return_dict=False, **inputs)[0]


def _embed_pixart(prompts: TextConditioning, prompt: str) -> dict[str, Tensor]:
    condition = _masked(prompts, prompt)
    if prompts.denoiser.use_additional_conditions:  # PixArt-alpha at 1024 pixels
        height, width = prompts.image_size
        condition["resolution"] = torch.tensor([[float(height), float(width)]])
        condition["aspect_ratio"] = torch.tensor([[height / width]])
    return condition


def _pixart(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    added = {name: inputs.pop(name, None) for name in ("resolution", "aspect_ratio")}
    return model(x, timestep=t, added_cond_kwargs=added, return_dict=False, **inputs)[0]


def _embed_hunyuan(prompts: TextConditioning, prompt: str) -> dict[str, Tensor]:
    bert, _, bert_mask, _ = prompts.encode(prompt, text_encoder_index=0, max_sequence_length=77)
    t5, _, t5_mask, _ = prompts.encode(prompt, text_encoder_index=1, max_sequence_length=256)
    # the original size that the pipeline's own call takes by default, target size, crop corner
    sizes = torch.tensor([[1024.0, 1024.0, *prompts.image_size, 0, 0]])
    return {"encoder_hidden_states": bert, "text_embedding_mask": bert_mask,
            "encoder_hidden_states_t5": t5, "text_embedding_mask_t5": t5_mask,
            "image_meta_size": sizes, "style": torch.zeros(1, dtype=torch.long)}


def _hunyuan(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    from diffusers.models.embeddings import get_2d_rotary_pos_embed
    from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

    patch = model.config.patch_size
    grid = (x.shape[2] // patch, x.shape[3] // patch)
    crop = get_resize_crop_region_for_grid(grid, 512 // 8 // patch)
    rotary = get_2d_rotary_pos_embed(
        model.inner_dim // model.num_heads, crop, grid, device=x.device, output_type="pt")
    return model(x, t.to(x.dtype), image_rotary_emb=rotary, return_dict=False, **inputs)[0]


def _lumina(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    return -model(x, timestep=1 - t / 1000, return_dict=False, **inputs)[0]


# of both versions, whose text tokens come first
_FLUX: dict[str, Any] = dict(
    blocks=("transformer_blocks", "single_transformer_blocks"), even_sigmas=True,
    text_tokens=lambda inputs: inputs["encoder_hidden_states"].shape[1])
_REFINERS = ("noise_refiner", "context_refiner")

FAMILIES = {family.transformer: family for family in (
    Family("DiTTransformer2DModel", _dit, None, square=True),
    Family("SD3Transformer2DModel", _dit, _embed_sd3, shift=_by_tokens),
    # its guidance is an input or distilled away
    Family("FluxTransformer2DModel", _flux, _embed_flux, patch=2, packed=True, shift=_by_tokens,
           guidable=False, **_FLUX),
    # its latents are patches already
    Family("Flux2Transformer2DModel", partial(_flux, patch=1), _embed_flux2, patch=1,
           shift=_by_tokens_and_steps, **_FLUX),
    Family("QwenImageTransformer2DModel", _qwen, _embed_qwen, patch=2, packed=True,
           even_sigmas=True, shift=_by_tokens),
    Family("ZImageTransformer2DModel", _z_image, _embed_z_image, ("layers",), _REFINERS, patch=2,
           even_sigmas=True, shift=_by_tokens),
    Family("SanaTransformer2DModel", _sana, _masked),
    Family("PixArtTransformer2DModel", _pixart, _embed_pixart),
    Family("HunyuanDiT2DModel", _hunyuan, _embed_hunyuan, ("blocks",), has_long_skips=True),
    Family("Lumina2Transformer2DModel", _lumina, _masked, ("layers",), _REFINERS,
           text_tokens=lambda inputs: inputs["encoder_attention_mask"].sum(1), even_sigmas=True,
           # the number of channels in the place of that of tokens, as its pipeline has it
           shift=lambda pipeline, channels, _, steps: _by_tokens(pipeline, 0, channels, steps)),
)}
