"""Relatives of SDXL with a U-Net: its refiner, and Playground 2.5."""

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EDMEulerScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

pytest.importorskip("transformers")

from pipelines import spy_on, tiny_text_unet

from benchmarks.families import checks, parts
from dreamda_aug import load_model
from dreamda_aug.generation.tensors import Request, TensorSynthesizer


def unet(sizes: int, text: int):
    torch.manual_seed(0)
    config = {k: v for k, v in tiny_text_unet().config.items() if not k.startswith("_")}
    return UNet2DConditionModel(**{
        **config, "cross_attention_dim": text, "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 8 + sizes * 4,
    }).eval()


def vae(**changes) -> AutoencoderKL:
    return parts.vae(shift_factor=None, **changes)


def test_the_refiner_is_told_the_aesthetic_scores_of_its_own_pipeline():
    pipeline = StableDiffusionXLImg2ImgPipeline(
        vae(), None, parts.clip(), None, parts.tokenizer(), unet(5, 8),
        DDIMScheduler(clip_sample=False), requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False)
    pipeline.set_progress_bar_config(disable=True)
    seen = spy_on(pipeline.unet)
    pipeline("a cat", image=checks.images(1), strength=0.5, num_inference_steps=2,
             guidance_scale=4.0, output_type="latent")
    model = load_model(pipeline)
    ours = model.embed([None, "a cat"])
    assert torch.equal(ours["time_ids"], seen["added_cond_kwargs"]["time_ids"])
    assert ours["time_ids"][:, 4].tolist() == [2.5, 6.0]
    torch.testing.assert_close(ours["encoder_hidden_states"], seen["encoder_hidden_states"])
    assert checks.replay_error(model, 4) <= 1e-4


def test_playground_scales_its_latents_and_steps_as_its_own_pipeline():
    pipeline = StableDiffusionXLPipeline(
        vae(latents_mean=[-1.6, 1.1, 0.3, -0.2], latents_std=[8.4, 6.0, 5.6, 5.3]),
        parts.clip(), parts.clip(), parts.tokenizer(), parts.tokenizer(), unet(6, 16),
        EDMEulerScheduler(sigma_data=0.5), add_watermarker=False)
    pipeline.set_progress_bar_config(disable=True)
    model = load_model(pipeline)
    dials = checks.settings(replay=0.0, noise_scale=0.0, eta=0.0, guidance_scale=3.0)
    made = model.decode(checks.latents(model, dials, ["a cat"], [5]))
    schedule = model.schedule(checks.STEPS, 1.0, "scheduler")
    noise = checks.seeded_normal(torch.tensor([5]), 0, checks.SOURCE, (4, 8, 8))
    start = schedule.add_noise(model.encode(checks.images(7)[:1]), noise, 0)
    own = pipeline("a cat", latents=start / pipeline.scheduler.init_noise_sigma, height=16,
                   width=16, num_inference_steps=checks.STEPS, guidance_scale=3.0,
                   output_type="pt").images
    assert ((own > 0) & (own < 1)).float().mean() > 0.5
    torch.testing.assert_close(made, own, atol=1e-4, rtol=0)
    core = TensorSynthesizer(model, "paper", steps=4, noise_scale=0.0, guidance_scale=1.0)
    x = checks.images(1)
    torch.testing.assert_close(core.synthesize(x, [Request(0)]).images,
                               model.decode(model.encode(x)), atol=1e-3, rtol=0)
