"""The families of diffusion transformers that are known."""

from typing import Any

import torch
from torch import Tensor

from dreamda_aug.models.families import (
    Family,
    Inputs,
    by_channels,
    by_tokens,
    by_tokens_and_steps,
    filled,
    masked,
    packed,
    places,
    unpacked,
)
from dreamda_aug.models.prompts import PipelinePrompts


def _dit(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    return model(x, timestep=t, return_dict=False, **inputs)[0]


def _embed_sd3(prompts: PipelinePrompts, prompt: str) -> dict[str, Tensor]:
    embeddings, _, pooled, _ = prompts.encode(prompt)
    return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}


def _embed_flux(prompts: PipelinePrompts, prompt: str) -> dict[str, Tensor]:
    embeddings, pooled, ids = prompts.encode(prompt)
    return {"encoder_hidden_states": embeddings, "pooled_projections": pooled, "txt_ids": ids[None]}


def _flux(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    text = inputs["txt_ids"][0]  # the same for every row
    image = places(1, x.shape[2] // 2, x.shape[3] // 2, like=x).to(x.dtype)
    tokens = model(packed(x), timestep=t.to(x.dtype) / 1000, img_ids=image, return_dict=False,
                   **{**inputs, "txt_ids": text})[0]
    return unpacked(tokens, x)


def _embed_flux2(prompts: PipelinePrompts, prompt: str) -> dict[str, Tensor]:
    embeddings, ids = prompts.encode(prompt)
    return {"encoder_hidden_states": embeddings, "txt_ids": ids}


def _flux2(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    image = places(1, x.shape[2], x.shape[3], 1, like=x)
    tokens = model(x.flatten(2).transpose(1, 2), timestep=t.to(x.dtype) / 1000, img_ids=image,
                   return_dict=False, **{**inputs, "txt_ids": inputs["txt_ids"][0]})[0]
    return tokens.transpose(1, 2).reshape(len(x), -1, *x.shape[2:])


def _text_length(inputs: Inputs) -> int:
    return int(inputs["encoder_hidden_states"].shape[1])


def _embed_qwen(prompts: PipelinePrompts, prompt: str) -> dict[str, Tensor]:
    embeddings, mask = prompts.encode(prompt)[:2]  # the mask is None where all tokens count
    kept = embeddings[0] if mask is None else embeddings[0][mask[0].bool()]
    return filled(kept, prompts.longest)


def _qwen(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    text, mask = inputs.pop("encoder_hidden_states"), inputs.pop("encoder_attention_mask")
    lengths = mask.sum(1).tolist()
    same = len(set(lengths)) == 1
    tokens = model(
        packed(x), timestep=t.to(x.dtype) / 1000,
        encoder_hidden_states=text[:, : max(lengths)],
        encoder_hidden_states_mask=None if same else mask[:, : max(lengths)],
        img_shapes=[[(1, x.shape[2] // 2, x.shape[3] // 2)]] * len(x), return_dict=False, **inputs,
    )[0]
    return unpacked(tokens, x)


def _embed_z_image(prompts: PipelinePrompts, prompt: str) -> dict[str, Tensor]:
    (embeddings,), _ = prompts.encode(prompt)
    return filled(embeddings, prompts.longest)


def _z_image(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    lengths = inputs["encoder_attention_mask"].sum(1).tolist()
    texts = [row[:length] for row, length in
             zip(inputs["encoder_hidden_states"], lengths, strict=True)]
    images = model(list(x[:, :, None].unbind()), (1000 - t) / 1000, texts, return_dict=False)[0]
    return -torch.stack(images)[:, :, 0]


def _sana(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    return model(x, timestep=t * model.config.timestep_scale, return_dict=False, **inputs)[0]


def _embed_pixart(prompts: PipelinePrompts, prompt: str) -> dict[str, Tensor]:
    condition = masked(prompts, prompt)
    if prompts.transformer.use_additional_conditions:  # PixArt-alpha at 1024 pixels
        height, width = prompts.image_size
        condition["resolution"] = torch.tensor([[float(height), float(width)]])
        condition["aspect_ratio"] = torch.tensor([[height / width]])
    return condition


def _pixart(model: Any, x: Tensor, t: Tensor, inputs: Inputs) -> Tensor:
    added = {name: inputs.pop(name, None) for name in ("resolution", "aspect_ratio")}
    return model(x, timestep=t, added_cond_kwargs=added, return_dict=False, **inputs)[0]


def _embed_hunyuan(prompts: PipelinePrompts, prompt: str) -> dict[str, Tensor]:
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


def _caption_lengths(inputs: Inputs) -> Tensor:
    lengths: Tensor = inputs["encoder_attention_mask"].sum(1)
    return lengths


_FLUX_BLOCKS = ("transformer_blocks", "single_transformer_blocks")
_REFINERS = ("noise_refiner", "context_refiner")

# Each is read off the pipeline of its name in diffusers.
FAMILIES = {family.transformer: family for family in (
    Family("DiTTransformer2DModel", _dit, None, square=True),
    Family("SD3Transformer2DModel", _dit, _embed_sd3, shift=by_tokens),
    # its guidance is an input or distilled away
    Family("FluxTransformer2DModel", _flux, _embed_flux, _FLUX_BLOCKS, text_tokens=_text_length,
           patch=2, packed=True, even_sigmas=True, shift=by_tokens, guidable=False),
    # its latents are patches already
    Family("Flux2Transformer2DModel", _flux2, _embed_flux2, _FLUX_BLOCKS, text_tokens=_text_length,
           patch=1, even_sigmas=True, shift=by_tokens_and_steps),
    Family("QwenImageTransformer2DModel", _qwen, _embed_qwen, patch=2, packed=True,
           even_sigmas=True, shift=by_tokens),
    Family("ZImageTransformer2DModel", _z_image, _embed_z_image, ("layers",), _REFINERS, patch=2,
           even_sigmas=True, shift=by_tokens),
    Family("SanaTransformer2DModel", _sana, masked),
    Family("PixArtTransformer2DModel", _pixart, _embed_pixart),
    Family("HunyuanDiT2DModel", _hunyuan, _embed_hunyuan, ("blocks",), has_long_skips=True),
    Family("Lumina2Transformer2DModel", _lumina, masked, ("layers",), _REFINERS,
           text_tokens=_caption_lengths, even_sigmas=True, shift=by_channels),
)}
