"""From schedulers to noise schedules, against the schedulers themselves."""

import diffusers
import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from dreamda_aug.errors import ModelError
from dreamda_aug.models import schedules
from dreamda_aug.models.schedules import build_schedule, path_kind

CONFIG = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
# as Stable Diffusion 1.5 is saved
SD_1_5 = PNDMScheduler(**CONFIG, steps_offset=1, skip_prk_steps=True, set_alpha_to_one=False).config
OF_DDPM = sorted((schedules._INDEXED | schedules._SIGMAS) - {"DPMSolverSDEScheduler"})  # torchsde
KARRAS = dict(use_karras_sigmas=True, timestep_spacing="linspace", final_sigmas_type="zero")


def make(cls=DDIMScheduler, **changes):
    return cls(**{**CONFIG, **changes})


def build(scheduler, steps, strength, spacing="scheduler", is_pixel_model=False):
    return build_schedule(scheduler, steps, strength, spacing, is_pixel_model=is_pixel_model)


def own_defaults(name, **options):
    """With betas that the scheduler takes from its own defaults, and that differ for each."""
    return getattr(diffusers, name)(**options)


def from_sd_1_5(name):
    return getattr(diffusers, name).from_config(SD_1_5)


@pytest.mark.parametrize("made", [own_defaults, from_sd_1_5])
@pytest.mark.parametrize("name", OF_DDPM)
def test_every_scheduler_takes_its_own_steps_and_its_own_noise_levels(name, made):
    """The noise that it would add to an image at each of its own timesteps."""
    scheduler, again, steps = made(name), made(name), 10
    schedule = build(scheduler, steps, 0.8)
    if name == "PNDMScheduler":
        again.register_to_config(skip_prk_steps=True)  # its start takes half steps
    again.set_timesteps(steps)
    expected = torch.unique(again.timesteps[::again.order]).flip(0)[-len(schedule):]
    assert len(schedule) == int(0.8 * steps)
    torch.testing.assert_close(schedule.timesteps.double(), expected.double())
    image, noise = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0)
    for step, t in enumerate(expected):
        # those with sigmas scale the image down just before the denoiser sees it, or at once
        theirs = again.add_noise(image, noise, t[None])
        if again.init_noise_sigma > 2:
            theirs = again.scale_model_input(theirs, t)
            again._step_index = None
        torch.testing.assert_close(schedule.add_noise(image, noise, step), theirs,
                                   atol=1e-4, rtol=1e-4)
    assert scheduler.num_inference_steps != steps  # it stays as it is


@pytest.mark.parametrize("name, options", [
    ("DDIMScheduler", dict(clip_sample=False)),
    ("DPMSolverMultistepScheduler", dict(solver_order=1)),
    ("DPMSolverMultistepScheduler", dict(solver_order=1, **KARRAS)),
    ("DEISMultistepScheduler", dict(solver_order=1)),
    ("EulerDiscreteScheduler", dict(use_exponential_sigmas=True)),
    ("EulerDiscreteScheduler", dict(final_sigmas_type="sigma_min", timestep_spacing="trailing")),
], ids=str)
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_deterministic_steps_end_where_the_schedulers_own_do(name, options, predicts):
    """First-order steps are DDIM's with eta 0, whatever a scheduler calls them."""
    scheduler = getattr(diffusers, name)(prediction_type=predicts, **CONFIG, **options)
    schedule = build(scheduler, 6, 1.0)

    def denoiser(x, t):
        return 0.3 * x + torch.cos(t.float() / 100)

    x = torch.linspace(-1, 1, 16).view(1, 1, 4, 4)
    ours, theirs = x, x / schedule.signal[0] if scheduler.init_noise_sigma > 2 else x
    for step in range(len(schedule)):
        x_0, eps = schedule.predictions(denoiser(ours, schedule.timesteps[step]), ours, step)
        ours, _ = schedule.posterior(x_0, eps, step, 0.0)
    scheduler.set_timesteps(6)
    for t in scheduler.timesteps:
        output = denoiser(scheduler.scale_model_input(theirs, t), t)
        theirs = scheduler.step(output, t, theirs).prev_sample
    last = schedule.signal[-1] if scheduler.init_noise_sigma > 2 else 1.0
    torch.testing.assert_close(ours, theirs * last, atol=1e-4, rtol=1e-4)


def test_a_pixel_model_is_clipped_where_its_own_scheduler_says_so():
    def clip_range(scheduler, is_pixel_model=True):
        return build(scheduler, 8, 0.8, is_pixel_model=is_pixel_model).clip_range

    clipped = make(DDPMScheduler, clip_sample=True, clip_sample_range=2.0)
    assert clip_range(clipped) == 2.0 and clip_range(clipped, False) is None
    assert clip_range(make(DDPMScheduler, clip_sample=False)) is None
    assert clip_range(make(EulerDiscreteScheduler)) is None


@pytest.mark.parametrize("steps, strength", [(5, 0.8), (100, 0.3)])
def test_uniform_spacing_begins_at_the_same_noise_level_for_any_number_of_steps(steps, strength):
    schedule = build(make(), steps, strength, "uniform")
    assert schedule.timesteps[0] == round(1000 * strength) - 1
    assert len(schedule) == max(1, round(steps * strength))
    assert (schedule.timesteps.diff() < 0).all() and schedule.timesteps[-1] >= 0
    assert schedule.signal[-1] == 1 and schedule.noise[-1] == 0


ZERO_SNR = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")


@pytest.mark.parametrize("scheduler, steps, strength, spacing, message", [
    (make(**ZERO_SNR), 10, 1.0, "scheduler", r"strength must be below 1.* got 1\.0"),
    (make(), 10, 0.05, "scheduler", r"strength 0\.05 of 10 steps .* steps >= 20"),
    (make(), 1500, 1.0, "uniform", "steps must be at most 1000.*got 1500"),
    (EDMEulerScheduler(sigma_min=0), 4, 1.0, "uniform", "EDMEulerScheduler has noise levels that"),
    (FlowMatchEulerDiscreteScheduler(shift=float("nan")), 4, 1.0, "scheduler", "are not finite"),
])
def test_numbers_that_cannot_be_run_are_refused(scheduler, steps, strength, spacing, message):
    with pytest.raises((ValueError, ModelError), match=message):
        build(scheduler, steps, strength, spacing)


@pytest.mark.parametrize("scheduler", [
    FlowMatchEulerDiscreteScheduler(shift=3.0), FlowMatchHeunDiscreteScheduler(shift=3.0),
    UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
], ids=lambda scheduler: type(scheduler).__name__)
def test_flows_are_flows_and_shifted(scheduler):
    assert path_kind(scheduler) == "flow"
    even = build(scheduler, 8, 0.5, "uniform")
    assert even.prediction_type == "flow"
    torch.testing.assert_close(even.signal + even.noise, torch.ones(5))
    torch.testing.assert_close(even.noise[0], torch.tensor(3 * 0.5 / (1 + 2 * 0.5)))
    own = build(scheduler, 8, 0.5)
    scheduler.set_timesteps(8)
    torch.testing.assert_close(own.noise[:-1], scheduler.sigmas[:-1:scheduler.order][4:8])
    torch.testing.assert_close(own.timesteps, scheduler.timesteps[::scheduler.order][4:].float())


def test_edm_levels_are_its_own():
    scheduler = EDMEulerScheduler(sigma_data=0.5)
    scheduler.set_timesteps(8)
    torch.testing.assert_close(build(scheduler, 8, 0.5).noise, scheduler.sigmas[4:])
    torch.testing.assert_close(build(scheduler, 8, 1.0, "uniform").noise, scheduler.sigmas)


@pytest.mark.parametrize("scheduler, reason", [
    (CMStochasticIterativeScheduler(), "CMStochasticIterativeScheduler is not a supported sched"),
    (DDPMScheduler(thresholding=True), "thresholding=True"),
    (DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "'flow_prediction'"),
])
def test_unsupported_schedulers_are_refused_by_name(scheduler, reason):
    with pytest.raises(ModelError, match=reason):
        path_kind(scheduler)
