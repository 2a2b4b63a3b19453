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


def make(pipeline, tmp_path):
    return sampler(
        load_model(pipeline), "paper", steps=4, strength=1.0, noise_scale=0.0, guidance_scale=1.0,
        source_prompt="a cat", cache=LatentCache(tmp_path))


def scheduler(pipeline, kind, **changes):
    pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **changes)


@torch.no_grad()
def scale(part, factor=1.1):
    for weight in part.parameters():
        weight.mul_(factor)


def behind_autograd(unet):
    for weight in unet.parameters():
        weight.data += 0.05


def add_lora(pipeline):
    from peft import LoraConfig

    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"],
                                         init_lora_weights=False))


LIVE = {
    "prediction type": lambda p: scheduler(p, DDIMScheduler, prediction_type="v_prediction"),
    "betas": lambda p: scheduler(p, DDIMScheduler, beta_end=0.02),
    "sigmas": lambda p: scheduler(p, EulerDiscreteScheduler, use_karras_sigmas=True),
    "U-Net": lambda p: scale(p.unet), "behind autograd": lambda p: behind_autograd(p.unet),
    "VAE": lambda p: scale(p.vae), "LoRA": add_lora,
}


@pytest.mark.parametrize("change", LIVE)
def test_a_change_of_a_live_pipeline_is_noticed(pipeline, tmp_path, change):
    core = make(pipeline, tmp_path)
    for _ in range(2):
        core.synthesize(X, ASKED)
        assert core.inversions == 2
    LIVE[change](pipeline)
    made = core.synthesize(X, ASKED).images
    assert core.inversions == 4
    # the image comes back only if it was inverted with what it was generated with
    decoded = core.model.decode(core.model.encode(X))
    torch.testing.assert_close(made, decoded, atol=1e-3, rtol=0)


def test_another_text_encoder_is_another_inversion_and_an_equal_scheduler_is_not(
    pipeline, tmp_path
):
    make(copy.deepcopy(pipeline), tmp_path).synthesize(X, ASKED)
    for change, computed in ((lambda: scheduler(pipeline, DDIMParallelScheduler), 0),
                             (lambda: scale(pipeline.text_encoder), 2)):
        change()
        core = make(pipeline, tmp_path)
        core.synthesize(X, ASKED)
        assert core.inversions == computed
