"""The second-order solvers against diffusers' own, and exact replay with each of them."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
)

from dreamda_aug.method.inversion import CycleDiffusion, DDIMInversion, record
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.solvers import SOLVERS, Prediction, Predictions, Solver


def model(x, level):
    """Stands for a denoiser: smooth, and different at every level."""
    return torch.tanh(x * (0.5 + 0.1 * level)) * 0.8


def run(solver_name, schedule, x, eta=0.0, noises=None):
    solver = Solver(solver_name, schedule, eta)

    def evaluate(x, level, call):
        pair = Prediction(*schedule.predictions(model(x, level), x, level))
        return Predictions(pair, pair)

    for step in range(len(schedule)):
        x, std = solver.step(x, step, evaluate)
        if noises is not None:
            x = x + std * noises[step]
    return x


def from_sigmas(sigmas, timesteps, prediction_type="epsilon"):
    signal = 1 / (1 + sigmas**2).sqrt()
    return NoiseSchedule(timesteps, signal, sigmas * signal, prediction_type)


@pytest.mark.parametrize("steps", [4, 9])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
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


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_heun_equals_diffusers(prediction_type):
    scheduler = HeunDiscreteScheduler(prediction_type=prediction_type)
    scheduler.set_timesteps(6)
    sigmas = torch.cat([scheduler.sigmas[:1], scheduler.sigmas[1:-1:2], scheduler.sigmas[-1:]])
    sigmas = torch.unique(sigmas, sorted=True).flip(0)
    schedule = from_sigmas(sigmas, torch.arange(len(sigmas) - 1), prediction_type)
    level_of = {round(float(s), 4): i for i, s in enumerate(sigmas)}
    x = torch.randn(2, 1, 5, 5)
    expected = x * (1 + sigmas[0] ** 2).sqrt()  # diffusers works on x / signal
    for i, t in enumerate(scheduler.timesteps):
        level = level_of[round(float(scheduler.sigmas[i]), 4)]
        # odd calls evaluate at the end of the step
        if i % 2:
            level = level_of[round(float(scheduler.sigmas[i]), 4)]
        scaled = scheduler.scale_model_input(expected, t)
        expected = scheduler.step(model(scaled, level), t, expected).prev_sample
    torch.testing.assert_close(run("heun", schedule, x), expected, atol=1e-3, rtol=1e-3)


def test_heun_of_a_flow_equals_diffusers():
    scheduler = FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(5)
    sigmas = torch.unique(scheduler.sigmas, sorted=True).flip(0)
    schedule = NoiseSchedule(torch.arange(len(sigmas) - 1), 1 - sigmas, sigmas, "flow")
    level_of = {round(float(s), 4): i for i, s in enumerate(sigmas)}
    x = torch.randn(2, 1, 5, 5)
    expected = x
    for i, t in enumerate(scheduler.timesteps):
        level = level_of[round(float(scheduler.sigmas[i]), 4)]
        expected = scheduler.step(model(expected, level), t, expected).prev_sample
    torch.testing.assert_close(run("heun", schedule, x), expected, atol=1e-4, rtol=1e-4)


def make_schedule(kind, steps):
    noise = torch.linspace(0.95, 0, steps + 1)
    if kind == "flow":
        return NoiseSchedule(torch.arange(steps), 1 - noise, noise, "flow")
    if kind == "exploding":
        return NoiseSchedule(torch.arange(steps), torch.ones(steps + 1), 5 * noise, "epsilon")
    return NoiseSchedule(torch.arange(steps), (1 - noise**2).sqrt(), noise, kind)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow", "exploding"])
@pytest.mark.parametrize("inversion", [CycleDiffusion(), DDIMInversion()])
@pytest.mark.parametrize("steps", [6, 12, 25])
@pytest.mark.parametrize("eta", [0.0, 0.7])
def test_zero_noise_replays_the_image(solver, kind, inversion, steps, eta):
    schedule = make_schedule(kind, steps)
    x_0 = torch.rand(2, 1, 6, 6) * 2 - 1
    path = inversion.source_path(x_0, model, schedule, eta, torch.tensor([1, 2]))
    x_T, residuals = record(path, model, schedule, eta, torch.float16, solver)
    # residuals lie between the steps: they are what the solver's history is made of
    x, history = x_T.float(), Solver(solver, schedule, eta)

    def evaluate(x, level, call):
        pair = Prediction(*schedule.predictions(model(x, level), x, level))
        return Predictions(pair, pair)

    for step in range(steps):
        mean, _ = history.step(x, step, evaluate)
        x = mean + residuals[:, step].float()
    assert (x + residuals[:, steps].float() - x_0).abs().max() < 1e-4


def test_2m_needs_fewer_steps_than_the_first_order():
    """Against a run with very many steps, on the same path."""
    x = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))

    def levelled(steps):
        noise = torch.linspace(0.95, 0.05, steps + 1)
        return NoiseSchedule(torch.arange(steps), (1 - noise**2).sqrt(), noise, "epsilon")

    def solve(name, steps):
        schedule = levelled(steps)
        solver = Solver(name, schedule, 0.0)

        def evaluate(x, level, call):
            eps = torch.tanh(x * (1 + schedule.noise[level]))
            pair = Prediction(*schedule.predictions(eps, x, level))
            return Predictions(pair, pair)

        y = x
        for step in range(steps):
            y, _ = solver.step(y, step, evaluate)
        return y

    exact = solve("ddim", 2000)
    error = {name: (solve(name, 20) - exact).abs().mean() for name in SOLVERS}
    assert error["dpmsolver++"] < error["ddim"] / 4
    assert error["heun"] < error["ddim"] / 4
