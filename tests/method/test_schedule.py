"""The step formula and predictions on every path, against diffusers' own schedulers."""


import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.models.schedules import build_schedule


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
    schedule = build_schedule(scheduler, 10, 1.0, "scheduler", is_pixel_model=True)
    x_t, output, noise = torch.randn(3, 2, 4, 5, 5).unbind()
    for step, t in enumerate(scheduler.timesteps):
        expected = scheduler.step(output, t, x_t, eta=eta, variance_noise=noise).prev_sample
        mean, std = schedule.posterior(*schedule.predictions(output, x_t, step), step, eta)
        torch.testing.assert_close(mean + std * noise, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_a_flow_step_equals_diffusers(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(6)
    schedule = build_schedule(scheduler, 6, 1.0, "scheduler", is_pixel_model=False)
    torch.testing.assert_close(schedule.timesteps, scheduler.timesteps)
    x_t, output = torch.randn(2, 2, 4, 5, 5).unbind()
    for step, t in enumerate(scheduler.timesteps):
        expected = scheduler.step(output, t, x_t).prev_sample
        mean, _ = schedule.posterior(*schedule.predictions(output, x_t, step), step, 0.0)
        torch.testing.assert_close(mean, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_an_edm_step_equals_diffusers(prediction_type):
    scheduler = EDMEulerScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(6)
    schedule = build_schedule(scheduler, 6, 1.0, "scheduler", is_pixel_model=False)
    torch.testing.assert_close(schedule.timesteps, scheduler.timesteps, atol=1e-5, rtol=1e-4)
    x_t, output = torch.randn(2, 2, 4, 5, 5).unbind()
    for step, t in enumerate(scheduler.timesteps):
        torch.testing.assert_close(
            schedule.model_input(x_t, step), scheduler.scale_model_input(x_t, t),
            atol=1e-5, rtol=1e-4)
        expected = scheduler.step(output, t, x_t).prev_sample
        mean, _ = schedule.posterior(*schedule.predictions(output, x_t, step), step, 0.0)
        torch.testing.assert_close(mean, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["flow", "ddpm", "exploding"])
def test_the_posterior_keeps_the_marginals_of_every_path(kind):
    """Var(x_p) = direction² + std² must be noise_prev², and the mean signal_prev · x_0."""
    noise = torch.tensor([0.7, 0.4])
    signal = {"flow": 1 - noise, "ddpm": (1 - noise**2).sqrt(),
              "exploding": torch.ones_like(noise)}[kind]
    x_0, eps = torch.full((20000,), 0.5), torch.randn(20000)
    mean, std = NoiseSchedule(torch.arange(1), signal, noise).posterior(x_0, eps, 0, 0.8)
    made = mean + std * torch.randn(20000)
    assert abs(made.mean() - 0.5 * signal[1]) < 0.01
    assert abs(made.std() - noise[1]) < 0.01
    assert std > 0.05
