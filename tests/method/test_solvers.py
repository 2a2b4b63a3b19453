"""The second-order solvers against diffusers' own, and exact replay with each of them."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)

from dreamda_aug.method.inversion import CycleDiffusion, DDIMInversion, record
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.solvers import Solver, call_levels, second_order_steps
from dreamda_aug.models.schedules import build_schedule


def model(x, level):
    """Stands for a denoiser: smooth, and different at every level."""
    return torch.tanh(x * (0.5 + 0.1 * level)) * 0.8


def evaluate_with(schedule, denoiser=model):
    def evaluate(x, level, call):
        prediction = schedule.predictions(denoiser(x, level), x, level)
        return prediction, prediction

    return evaluate


def run(solver_name, schedule, x, eta=0.0, noises=None, denoiser=model):
    solver, evaluate = Solver(solver_name, schedule, eta), evaluate_with(schedule, denoiser)
    for step in range(len(schedule)):
        x, std = solver.step(x, step, evaluate)
        if noises is not None:
            x = x + std * noises[step]
    return x


def from_sigmas(sigmas, timesteps, prediction_type="epsilon"):
    signal = 1 / (1 + sigmas**2).sqrt()
    return NoiseSchedule(timesteps, signal, sigmas * signal, prediction_type)


@pytest.mark.parametrize("steps, prediction_type", [
    (4, "epsilon"), (9, "v_prediction"), (9, "sample")])
@pytest.mark.parametrize("stochastic", [False, True])
def test_2m_equals_diffusers(steps, prediction_type, stochastic):
    scheduler = DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        prediction_type=prediction_type, timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    schedule = from_sigmas(scheduler.sigmas, scheduler.timesteps, prediction_type)
    x = torch.randn(2, 1, 5, 5)
    noises = torch.randn(steps, 2, 1, 5, 5)
    expected = x
    for step, t in enumerate(scheduler.timesteps):
        expected = scheduler.step(model(expected, step), t, expected,
                                  variance_noise=noises[step]).prev_sample
    found = run("dpmsolver++", schedule, x, float(stochastic), noises if stochastic else None)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert (run("ddim", schedule, x, float(stochastic), noises) - expected).abs().max() > 1e-3


def heun_of_diffusers(scheduler, sigmas, x):
    level_of = {round(float(s), 4): i for i, s in enumerate(sigmas)}
    for i, t in enumerate(scheduler.timesteps):
        level = level_of[round(float(scheduler.sigmas[i]), 4)]
        scaled = (x if isinstance(scheduler, FlowMatchHeunDiscreteScheduler)
                  else scheduler.scale_model_input(x, t))
        x = scheduler.step(model(scaled, level), t, x).prev_sample
    return x


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_heun_equals_diffusers(prediction_type):
    scheduler = HeunDiscreteScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(6)
    sigmas = torch.unique(scheduler.sigmas, sorted=True).flip(0)
    schedule = from_sigmas(sigmas, torch.arange(len(sigmas) - 1), prediction_type)
    x = torch.randn(2, 1, 5, 5)
    # diffusers works on x / signal
    expected = heun_of_diffusers(scheduler, sigmas, x * (1 + sigmas[0] ** 2).sqrt())
    torch.testing.assert_close(run("heun", schedule, x), expected, atol=1e-3, rtol=1e-3)


def test_heun_of_a_flow_equals_diffusers():
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(5)
    sigmas = torch.unique(scheduler.sigmas, sorted=True).flip(0)
    schedule = NoiseSchedule(torch.arange(len(sigmas) - 1), 1 - sigmas, sigmas, "flow")
    x = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(run("heun", schedule, x), heun_of_diffusers(scheduler, sigmas, x),
                               atol=1e-4, rtol=1e-4)
    assert second_order_steps("heun", schedule) == range(4)  # from pure noise on


def zero_snr(prediction_type):
    scheduler = DDIMScheduler(prediction_type=prediction_type, rescale_betas_zero_snr=True,
                              timestep_spacing="trailing", clip_sample=False)
    scheduler.set_timesteps(5)
    return scheduler, build_schedule(scheduler, 5, 1.0, "scheduler", is_pixel_model=False)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("solver", ["ddim", "dpmsolver++", "heun"])
def test_a_run_from_pure_noise_is_finite_and_near_the_first_order(solver, prediction_type, eta):
    """Diffusers' DDIM; its 2M puts 2**-24 in the place of 0, and its Heun gives garbage."""
    scheduler, schedule = zero_snr(prediction_type)
    assert schedule.signal[0] == 0
    x, noises = torch.randn(2, 1, 5, 5), torch.randn(5, 2, 1, 5, 5)
    first_order = x
    for step, t in enumerate(scheduler.timesteps):
        first_order = scheduler.step(model(first_order, step), t, first_order, eta=eta,
                                     variance_noise=noises[step]).prev_sample
    found = run(solver, schedule, x, eta, noises)
    assert found.isfinite().all() and (found - first_order).abs().mean() < 0.5
    if solver == "ddim":
        torch.testing.assert_close(found, first_order, atol=1e-4, rtol=1e-4)


def test_heun_takes_first_order_steps_where_next_to_no_signal_is_left():
    """From there on it is diffusers' Heun, whose own first step from sigma 4096 gives garbage."""
    _, schedule = zero_snr("v_prediction")
    nearly = NoiseSchedule(schedule.timesteps, schedule.signal.clamp(min=2**-12), schedule.noise,
                           "v_prediction")
    assert second_order_steps("heun", nearly) == second_order_steps("heun", schedule) == range(1, 4)
    assert call_levels("heun", schedule) == [0, 1, 2, 2, 3, 3, 4, 4]
    assert call_levels("ddim", schedule) == list(range(5))


def make_schedule(kind, steps):
    noise = torch.linspace(0.95, 0, steps + 1)
    if kind == "flow":
        return NoiseSchedule(torch.arange(steps), 1 - noise, noise, "flow")
    if kind == "exploding":
        return NoiseSchedule(torch.arange(steps), torch.ones(steps + 1), 5 * noise, "epsilon")
    return NoiseSchedule(torch.arange(steps), (1 - noise**2).sqrt(), noise, kind)


@pytest.mark.parametrize("solver, kind, inversion, eta", [
    ("ddim", "epsilon", CycleDiffusion(), 1.0), ("ddim", "exploding", CycleDiffusion(), 0.0),
    ("ddim", "sample", DDIMInversion(), 0.5), ("dpmsolver++", "epsilon", CycleDiffusion(), 0.7),
    ("dpmsolver++", "flow", DDIMInversion(), 0.0),
    ("heun", "v_prediction", DDIMInversion(), 0.7), ("heun", "flow", CycleDiffusion(), 0.7),
])
def test_residuals_of_any_solver_lead_back_to_the_image(solver, kind, inversion, eta):
    """Also through a history that is made of recorded points, rounded to half precision."""
    schedule = make_schedule(kind, 12)
    x_0 = torch.rand(2, 1, 6, 6) * 2 - 1
    path = inversion.source_path(x_0, model, schedule, eta, torch.tensor([1, 2]))
    x_T, residuals = record(path, model, schedule, eta, torch.float16, solver)
    assert x_T.dtype == residuals.dtype == torch.float16
    x, history = x_T.float(), Solver(solver, schedule, eta)
    for step in range(12):
        mean, _ = history.step(x, step, evaluate_with(schedule))
        x = mean + residuals[:, step].float()
    assert (x + residuals[:, 12].float() - x_0).abs().max() < 1e-4
