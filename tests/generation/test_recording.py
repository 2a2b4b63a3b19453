"""From seed images to what leads back to them, for every kind of condition; and cache keys."""

import copy

import pytest
import torch
from pipelines import pixel_pipeline, sampler

from dreamda_aug import CycleDiffusion, DDIMInversion, Settings, load_model
from dreamda_aug.generation.recording import (
    inversion_keys,
    record_trajectories,
    source_condition,
)
from dreamda_aug.models.unet import PixelModel

STEPS = 4


def settings(**changes):
    return Settings(**{"steps": STEPS, "strength": 1.0, **changes}).with_dials()


def run(model, settings, dtype=torch.float32, seeds=(3, 4)):
    schedule = model.schedule(settings.steps, settings.strength)
    images = torch.rand(2, model.channels, *model.image_size,
                        generator=torch.Generator().manual_seed(0))
    return record_trajectories(model, settings, schedule, images, (None, None), seeds, dtype)


@pytest.fixture
def model():
    return PixelModel(pixel_pipeline())


@pytest.mark.parametrize("inversion", [CycleDiffusion(), DDIMInversion()])
def test_a_start_and_one_residual_more_than_steps_are_kept_in_the_dtype_of_the_cache(
    model, inversion
):
    for trajectory in run(model, settings(inversion=inversion), torch.float16):
        assert trajectory.x_T.shape == (1, 16, 16) and trajectory.x_0 is None
        assert trajectory.residuals.shape == (STEPS + 1, 1, 16, 16)
        assert trajectory.x_T.dtype == trajectory.residuals.dtype == torch.float16
        assert set(trajectory.tensors()) == {"x_T", "residuals"}


def test_without_residuals_the_start_alone_is_kept(model):
    inexact, exact = (run(model, settings(eta=0.0, inversion=DDIMInversion(exact=exact)))
                      for exact in (False, True))
    for one, other in zip(inexact, exact, strict=True):
        assert one.residuals is one.x_0 is None and torch.equal(one.x_T, other.x_T)


def test_without_replay_the_encoded_image_alone_is_kept(model):
    made = run(model, settings(replay=0.0), torch.float16)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    for trajectory, image in zip(made, images, strict=True):
        assert trajectory.x_T is trajectory.residuals is None
        assert torch.equal(trajectory.x_0, (image * 2 - 1).half())


def test_the_noise_of_a_path_follows_its_seed_and_not_its_batch_mates(model):
    first, second = run(model, settings(), seeds=(3, 4))
    again, other = run(model, settings(), seeds=(3, 5))
    assert torch.equal(first.x_T, again.x_T) and not torch.equal(second.x_T, other.x_T)


def test_the_recording_runs_on_the_plain_unet(model):
    """What an earlier call left in the hook must not perturb it."""
    expected = run(model, settings())
    model.hook.set(lambda h, **arguments: h + 1, None, 0, 2)
    for one, other in zip(run(model, settings()), expected, strict=True):
        assert torch.equal(one.residuals, other.residuals)


def test_an_inversion_is_conditioned_on_the_source_prompt_or_on_nothing(sd_pipeline):
    text = load_model(copy.deepcopy(sd_pipeline))
    assert source_condition(text, settings(source_prompt="a photo"), "a cat") == "a photo"
    assert source_condition(text, settings(), "a cat") == ""
    with_null = PixelModel(pixel_pipeline(num_classes=4), null_class=3)
    assert source_condition(with_null, settings(), 2) is None
    without_null = PixelModel(pixel_pipeline(num_classes=4))
    assert source_condition(without_null, settings(), 2) == 2


def key(model, digest="d", path=0, source=None, **settings):
    core = sampler(model, **{"steps": STEPS, **settings})
    only, = inversion_keys(model, core.settings, core.schedule, core.rng_seed, [digest], [path],
                           [source], torch.float16)
    return only


def test_whatever_changes_the_inversion_changes_its_key_and_nothing_else_does(model):
    changes = [dict(eta=0.5), dict(steps=20), dict(strength=0.5), dict(inversion=DDIMInversion()),
               dict(rng_seed=1), dict(replay=0.0), dict(solver="heun"), dict(digest="e"),
               dict(timestep_spacing="uniform"), dict(path=1)]
    assert len({key(model), *(key(model, **change) for change in changes)}) == 11
    for change in (dict(batch_size=3), dict(noise_scale=9.0), dict(guidance_scale=2.0),
                   dict(replay=0.5), dict(update_rule="symmetric")):
        assert key(model) == key(model, **change)


def test_the_source_prompt_and_the_weights_are_part_of_the_key(sd_pipeline):
    text = load_model(sd_pipeline)
    assert len({key(text, source=""), key(text, source="a photo"), key(text, source="a cat")}) == 3
    others = [PixelModel(pixel_pipeline()) for _ in range(2)]
    others[1].unet.conv_out.bias.data += 1e-3
    assert key(others[0]) != key(others[1])
