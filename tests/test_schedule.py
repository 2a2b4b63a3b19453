import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler

from dreamda_aug.backbones.base import build_schedule
from dreamda_aug.schedule import ddim_posterior


def make_scheduler(**changes):
    config = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                  clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return DDIMScheduler(**{**config, **changes})


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])  # eta = 1 alone hides eta vs eta**2
@pytest.mark.parametrize("clip", [False, True])
def test_every_step_equals_diffusers(eta, prediction_type, clip):
    scheduler = make_scheduler(prediction_type=prediction_type, clip_sample=clip)
    scheduler.set_timesteps(10)
    schedule = build_schedule(scheduler, 10, 1.0)
    x_t, output, noise = torch.randn(3, 2, 4, 5, 5).unbind()
    for step, t in enumerate(scheduler.timesteps):
        expected = scheduler.step(output, t, x_t, eta=eta, variance_noise=noise).prev_sample
        mean, std = schedule.posterior(*schedule.predictions(output, x_t, step), step, eta)
        torch.testing.assert_close(mean + std * noise, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_those_of_diffusers(spacing):
    scheduler = make_scheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(20)
    schedule = build_schedule(scheduler, 20, 0.8)
    assert torch.equal(schedule.timesteps, scheduler.timesteps[4:])
    assert torch.equal(schedule.alpha_bars[:-1], scheduler.alphas_cumprod[scheduler.timesteps[4:]])
    assert schedule.alpha_bars[-1] == scheduler.final_alpha_cumprod


def test_another_schedulers_configuration_serves_too():
    ddim = make_scheduler(prediction_type="v_prediction")
    euler = EulerDiscreteScheduler.from_config(ddim.config)
    assert build_schedule(euler, 4, 1.0).prediction_type == "v_prediction"


def test_strength_that_leaves_no_step_is_refused():
    with pytest.raises(ValueError, match=r"strength 0\.05 of 10 steps .* steps >= 20"):
        build_schedule(make_scheduler(), 10, 0.05)


def test_the_last_step_to_a_clean_image_is_free_of_nan():
    one = torch.ones(())
    mean, std = ddim_posterior(torch.ones(1), torch.ones(1), 0.3 * one, one, eta=1.0)
    assert mean == 1 and std == 0
