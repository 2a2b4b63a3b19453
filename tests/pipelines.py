"""Tiny random pipelines in diffusers' own classes."""

import dataclasses
import json

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)


def tiny_unet(channels: int = 1, num_classes: int | None = None, **changes) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**dict(
        sample_size=16, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=num_classes) | changes,
    ).eval()


def pixel_pipeline(
    prediction_type: str = "epsilon", num_classes: int | None = None, channels: int = 1
) -> DDPMPipeline:
    scheduler = DDPMScheduler(prediction_type=prediction_type, clip_sample=False)
    return DDPMPipeline(tiny_unet(channels, num_classes), scheduler)


def text_encoder_and_tokenizer(folder, width: int = 16):
    transformers = pytest.importorskip("transformers")
    characters = [chr(c) for c in range(33, 127)]
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder), model_max_length=32)
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=width, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32, bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )
    return transformers.CLIPTextModel(config).eval(), tokenizer


def tiny_text_unet(**changes) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(**dict(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), cross_attention_dim=16, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")) | changes).eval()


def xl_unet(sizes: int, text: int) -> UNet2DConditionModel:
    return tiny_text_unet(
        cross_attention_dim=text, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + sizes * 4)


def xl_vae(**changes):
    from benchmarks.families import parts

    return parts.vae(shift_factor=None, force_upcast=True, **changes)


def sdxl(pipeline=None, scheduler=None, **changes) -> StableDiffusionXLPipeline:
    from benchmarks.families import parts

    made = StableDiffusionXLPipeline(
        xl_vae(**changes), parts.clip(), parts.clip(), parts.tokenizer(), parts.tokenizer(),
        xl_unet(6, 16), scheduler or DDIMScheduler(clip_sample=False), add_watermarker=False)
    made.set_progress_bar_config(disable=True)
    return made


def spy_on(model) -> dict:
    """What a model is called with from now on, by argument; a later call overwrites."""
    seen, forward = {}, model.forward

    def spy(sample, t, **inputs):
        seen.update(inputs)
        return forward(sample, t, **inputs)

    model.forward = spy
    return seen


def sampler(model, preset="paper", *, static_shapes=False, **options):
    """What a synthesizer works on tensors with; without a cache unless one is given."""
    from dreamda_aug import Synthesizer

    made = Synthesizer(model, preset, **{"cache": None, **options}).sampler
    return dataclasses.replace(made, static_shapes=static_shapes or made.static_shapes)


def images(model, count=2) -> torch.Tensor:
    """Noise in the model's size, the same each time."""
    torch.manual_seed(0)
    return torch.rand(count, model.channels, *model.image_size)
