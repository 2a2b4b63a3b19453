"""Inversions of a model that has changed since are not used again."""

import copy

import pytest
import torch
from diffusers import DDIMParallelScheduler, DDIMScheduler, EulerDiscreteScheduler
from pipelines import sampler

from dreamda_aug import LatentCache, load_model
from dreamda_aug.generation.sampler import Request

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
ASKED = [Request(0, "a cat"), Request(1, "a cat")]


@pytest.fixture
def pipeline(sd_pipeline):
    return copy.deepcopy(sd_pipeline)


def make(model, tmp_path):
    return sampler(
        model, "paper", steps=4, strength=1.0, noise_scale=0.0, guidance_scale=1.0,
        source_prompt="a cat", cache=LatentCache(tmp_path),
    )


def change_prediction_type(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, prediction_type="v_prediction")


def change_betas(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, beta_end=0.02)


def change_spacing(pipeline):
    pipeline.scheduler = DDIMScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing")


def change_sigmas(pipeline):
    pipeline.scheduler = EulerDiscreteScheduler.from_config(
        pipeline.scheduler.config, use_karras_sigmas=True)


def change_unet_in_place(pipeline):
    with torch.no_grad():
        for weight in pipeline.unet.parameters():
            weight.mul_(1.1)


def change_unet_behind_autograd(pipeline):
    for weight in pipeline.unet.parameters():
        weight.data += 0.05


def change_vae(pipeline):
    with torch.no_grad():
        for weight in pipeline.vae.parameters():
            weight.mul_(1.1)


def change_text_encoder(pipeline):
    with torch.no_grad():
        for weight in pipeline.text_encoder.parameters():
            weight.add_(0.1)


def add_lora(pipeline):
    from peft import LoraConfig

    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"],
                                         init_lora_weights=False))


LIVE = [change_prediction_type, change_betas, change_spacing, change_sigmas, change_unet_in_place,
        change_unet_behind_autograd, change_vae, add_lora]


@pytest.mark.parametrize("change", LIVE, ids=lambda f: f.__name__)
def test_a_change_of_a_live_pipeline_is_noticed(pipeline, tmp_path, change):
    core = make(load_model(pipeline), tmp_path)
    core.synthesize(X, ASKED)
    assert core.inversions == 2
    core.synthesize(X, ASKED)
    assert core.inversions == 2
    change(pipeline)
    made = core.synthesize(X, ASKED).images
    assert core.inversions == 4
    # the image comes back only if it was inverted with what it was generated with
    decoded = core.model.decode(core.model.encode(X))
    torch.testing.assert_close(made, decoded, atol=1e-3, rtol=0)


@pytest.mark.parametrize("change", [*LIVE, change_text_encoder], ids=lambda f: f.__name__)
def test_another_model_does_not_use_the_inversions_of_the_first(pipeline, tmp_path, change):
    make(load_model(copy.deepcopy(pipeline)), tmp_path).synthesize(X, ASKED)
    change(pipeline)
    core = make(load_model(pipeline), tmp_path)
    made = core.synthesize(X, ASKED).images
    assert core.inversions == 2
    assert made.isfinite().all()


def test_what_plays_no_role_changes_no_key(pipeline, tmp_path):
    make(load_model(copy.deepcopy(pipeline)), tmp_path).synthesize(X, ASKED)
    # another class with the same noise levels
    pipeline.scheduler = DDIMParallelScheduler.from_config(pipeline.scheduler.config)
    core = make(load_model(pipeline), tmp_path)
    core.synthesize(X, ASKED)
    assert core.inversions == 0
