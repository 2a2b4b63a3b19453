"""Tiny random pipelines of every kind, in diffusers' own classes."""

import os

# several test processes beside each other spin against each other with more than one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import json
import sys
from pathlib import Path

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)

torch.set_num_threads(1)
# the plain paths that ours are compared with belong to the benchmark
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))


@pytest.fixture(autouse=True)
def _private_default_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMDA_CACHE", str(tmp_path / "default_cache"))


@pytest.fixture(params=[1_000_000, 500], ids=["one tile", "many tiles"])
def tile(request, monkeypatch):
    """500 entries split the arrays of ``clouds.sets`` into bands of unequal length."""
    from dreamda_aug import distances

    monkeypatch.setattr(distances, "TILE_ENTRIES", request.param)


def tiny_unet(channels: int = 1, num_classes: int | None = None) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=16, in_channels=channels, out_channels=channels, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=num_classes,
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


def tiny_text_unet(width: int = 16) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), cross_attention_dim=width, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()


@pytest.fixture(scope="session")
def sd_pipeline(tmp_path_factory) -> StableDiffusionPipeline:
    encoder, tokenizer = text_encoder_and_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8), in_channels=3, out_channels=3, latent_channels=4,
        norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
    ).eval()
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, steps_offset=1,
    )
    return StableDiffusionPipeline(
        vae=vae, text_encoder=encoder, tokenizer=tokenizer, unet=tiny_text_unet(),
        scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )


@pytest.fixture(scope="session")
def bundled():
    """The bundled backbone, on the CPU."""
    from dreamda_aug import load_backbone

    return load_backbone(device="cpu")
