"""Source paths, by their marginals and against diffusers; `test_solvers` replays their record."""

import pytest
import torch
from diffusers import DDIMInverseScheduler, DDIMScheduler

from dreamda_aug.method.inversion import CycleDiffusion, DDIMInversion
from dreamda_aug.models.schedules import build_schedule as build


def build_schedule(scheduler, steps, strength):
    return build(scheduler, steps, strength, "scheduler", is_pixel_model=False)


def predict(x_t, step):
    """Stands for a U-Net: smooth, and different at every step."""
    return torch.tanh(x_t * (1 + step)) + 0.1 * step


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_the_cyclediffusion_path_has_the_true_posterior_at_every_level(eta):
    """Marginals of the source path are q(x_t | x_0), whatever eta is."""
    schedule = build_schedule(DDIMScheduler(clip_sample=False), 5, 1.0)
    x_0 = torch.full((2000, 1, 2, 2), 0.7)
    path = CycleDiffusion().source_path(x_0, None, schedule, eta, torch.arange(2000))
    for x_t, signal, noise in zip(path[:-1], schedule.signal, schedule.noise):
        assert abs(x_t.mean() - 0.7 * signal) < 0.05
        assert abs(x_t.std() - noise) < 0.05


def test_the_ddim_path_equals_diffusers_inverse_scheduler():
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    inverse = DDIMInverseScheduler.from_config(scheduler.config)
    schedule = build_schedule(scheduler, 8, 1.0)
    x_0 = torch.rand(2, 1, 6, 6)
    path = DDIMInversion().source_path(x_0, predict, schedule, 0.0, torch.zeros(2))
    inverse.set_timesteps(8)
    x = x_0
    for step, t in zip(reversed(range(8)), schedule.timesteps.flip(0)):
        x = inverse.step(predict(x, step), t, x).prev_sample
        torch.testing.assert_close(path[step], x, atol=1e-5, rtol=1e-4)
