"""From schedulers' configurations to noise schedules."""

import pytest
import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    DDIMScheduler,
    DDPMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LCMScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from dreamda_aug.errors import ModelError
from dreamda_aug.models.schedules import build_schedule, path_kind

CONFIG = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
BY_HAND = [
    DDPMScheduler, DEISMultistepScheduler, DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler,
    KDPM2DiscreteScheduler, LCMScheduler, LMSDiscreteScheduler, PNDMScheduler, TCDScheduler,
    UniPCMultistepScheduler,
]


def make(cls=DDIMScheduler, **changes):
    return cls(**{**CONFIG, **changes})


def build(scheduler, steps, strength, spacing="scheduler", is_pixel_model=False):
    return build_schedule(scheduler, steps, strength, spacing, is_pixel_model=is_pixel_model)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_timesteps_are_those_of_diffusers(spacing):
    scheduler = make(timestep_spacing=spacing, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(20)
    schedule = build(scheduler, 20, 0.8)
    levels = scheduler.alphas_cumprod[scheduler.timesteps[4:]]
    assert torch.equal(schedule.timesteps, scheduler.timesteps[4:])
    torch.testing.assert_close(schedule.signal[:-1], levels.sqrt())
    torch.testing.assert_close(schedule.signal[-1], scheduler.final_alpha_cumprod.sqrt())
    torch.testing.assert_close(schedule.signal**2 + schedule.noise**2, torch.ones(17))


@pytest.mark.parametrize("cls", BY_HAND)
def test_a_latent_model_is_never_clipped_whatever_scheduler_was_made_by_hand(cls):
    assert build(make(cls), 8, 0.8).clip_range is None
    assert build(make(cls), 8, 0.8, "uniform").clip_range is None


def test_a_pixel_model_is_clipped_where_its_own_scheduler_says_so():
    def clip_range(scheduler):
        return build(scheduler, 8, 0.8, is_pixel_model=True).clip_range

    assert clip_range(make(DDPMScheduler, clip_sample=True, clip_sample_range=2.0)) == 2.0
    assert clip_range(make(DDPMScheduler, clip_sample=False)) is None
    assert clip_range(make(EulerDiscreteScheduler)) is None


@pytest.mark.parametrize("steps", [5, 12, 25, 100])
@pytest.mark.parametrize("strength", [0.3, 0.8, 1.0])
def test_uniform_spacing_begins_at_the_same_noise_level_for_any_number_of_steps(steps, strength):
    schedule = build(make(), steps, strength, "uniform")
    assert schedule.timesteps[0] == round(1000 * strength) - 1
    assert len(schedule) == max(1, round(steps * strength))
    assert (schedule.timesteps.diff() < 0).all() and schedule.timesteps[-1] >= 0
    assert schedule.signal[-1] == 1 and schedule.noise[-1] == 0


@pytest.mark.parametrize("option", ["use_karras_sigmas", "use_exponential_sigmas"])
def test_the_schedulers_own_sigmas_are_taken(option):
    scheduler = make(DPMSolverMultistepScheduler, **{option: True})
    scheduler.set_timesteps(10)
    schedule = build(scheduler, 10, 1.0)
    sigmas = schedule.noise / schedule.signal
    torch.testing.assert_close(sigmas[:-1], scheduler.sigmas[:-1], atol=1e-4, rtol=1e-3)
    assert sigmas[-1] == 0


def test_zero_terminal_snr_serves_with_v_prediction_and_is_refused_with_epsilon():
    options = dict(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    schedule = build(make(prediction_type="v_prediction", **options), 10, 1.0)
    assert schedule.signal[0] == 0 and schedule.noise[0] == 1
    with pytest.raises(ValueError, match=r"strength must be below 1.* got 1\.0"):
        build(make(**options), 10, 1.0)
    assert build(make(**options), 10, 0.9).signal[0] > 0


def test_flows_are_flows_and_shifted():
    schedule = build(FlowMatchEulerDiscreteScheduler(shift=3.0), 8, 0.5, "uniform")
    assert schedule.prediction_type == "flow"
    torch.testing.assert_close(schedule.signal + schedule.noise, torch.ones(5))
    torch.testing.assert_close(schedule.noise[0], torch.tensor(3 * 0.5 / (1 + 2 * 0.5)))
    unipc = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction",
                                    flow_shift=3.0)
    assert path_kind(unipc) == "flow"


@pytest.mark.parametrize("scheduler, reason", [
    (CMStochasticIterativeScheduler(), "CMStochasticIterativeScheduler is not a scheduler"),
    (DDPMScheduler(thresholding=True), "thresholding=True"),
    (DPMSolverMultistepScheduler(prediction_type="flow_prediction"), "'flow_prediction'"),
    (DDIMScheduler(trained_betas=[2.0, 3.0]), "outside"),
])
def test_schedulers_that_are_not_understood_are_refused_by_name(scheduler, reason):
    with pytest.raises(ModelError, match=reason):
        path_kind(scheduler)


def test_strength_that_leaves_no_step_is_refused():
    with pytest.raises(ValueError, match=r"strength 0\.05 of 10 steps .* steps >= 20"):
        build(make(), 10, 0.05)


def test_more_steps_than_noise_levels_are_refused():
    with pytest.raises(ValueError, match="steps must be at most 1000.*got 1500"):
        build(make(), 1500, 1.0, "uniform")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("spacing", ["scheduler", "uniform"])
def test_a_scheduler_that_was_built_on_a_gpu_gives_the_same_steps(spacing):
    with torch.device("cuda"):
        there = DDIMScheduler()
    here = DDIMScheduler()
    assert there.alphas_cumprod.is_cuda
    one, other = (build_schedule(each, 10, 0.8, spacing, is_pixel_model=True)
                  for each in (there, here))
    assert torch.equal(one.signal, other.signal)
