"""From a diffusers scheduler to the noise schedule of a run."""

import copy
import inspect
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dreamda_aug.errors import ModelError
from dreamda_aug.method.schedule import NoiseSchedule

Spacing = Literal["uniform", "scheduler"]
Kind = Literal["ddpm", "flow", "edm"]

# Schedulers over a table of DDPM noise levels: those that step through its entries, and those that
# step through sigmas, which may lie between entries. How they step is ours.
_INDEXED = {"DDIMScheduler", "DDIMParallelScheduler", "DDPMScheduler", "DDPMParallelScheduler",
            "LCMScheduler", "PNDMScheduler", "TCDScheduler"}
_SIGMAS = {
    "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
    "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler", "SASolverScheduler", "UniPCMultistepScheduler"}
_FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
         "FlowMatchLCMScheduler"}
_EDM = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}


def path_kind(scheduler: Any) -> Kind:
    """Kind of path that a diffusers scheduler lays between image and noise.

    Raises:
        ModelError: its class, prediction type, thresholding or betas are not supported.
    """
    if scheduler is None:
        raise ModelError("the pipeline must have a scheduler, got None.")
    kind, config = type(scheduler).__name__, scheduler.config
    predicts = config.get("prediction_type", "epsilon")
    if config.get("thresholding"):
        raise ModelError(
            f"{kind} has thresholding=True, which changes predictions pixel by pixel and is not "
            "supported; make the scheduler anew with thresholding=False.")
    if kind in _FLOW or config.get("use_flow_sigmas"):
        return "flow"
    if kind not in _INDEXED | _SIGMAS | _EDM:
        raise ModelError(f"{kind} is not a supported scheduler; supported are "
                         f"{', '.join(sorted(_INDEXED | _SIGMAS | _FLOW | _EDM))}.")
    supported = ("epsilon", "v_prediction", *(() if kind in _EDM else ("sample",)))
    if predicts not in supported:
        raise ModelError(
            f"{kind} has prediction_type {predicts!r}; supported are {', '.join(supported)} (a "
            "rectified flow needs use_flow_sigmas=True or a FlowMatch scheduler).")
    if kind in _EDM:
        return "edm"
    levels = torch.as_tensor(scheduler.alphas_cumprod)
    if not len(levels) or not ((levels >= 0) & (levels <= 1)).all():
        raise ModelError(f"{kind} has no noise levels, or signal power outside [0, 1]; check "
                         "num_train_timesteps, beta_start, beta_end and trained_betas.")
    return "ddpm"


def build_schedule(
    scheduler: Any, steps: int, strength: float, spacing: Spacing, *, is_pixel_model: bool,
    shift_mu: float | None = None, even_sigmas: bool = False,
) -> NoiseSchedule:
    """Noise schedule of a run.

    Args:
        scheduler: a diffusers scheduler that `path_kind` supports; it stays unchanged.
        steps: number of steps from pure noise to the image.
        strength: share of the way to pure noise at which the run begins, in (0, 1].
        spacing: see `Settings.timestep_spacing`.
        is_pixel_model: whether predicted images are clipped where the scheduler's configuration
            says so; latents never are.
        shift_mu: for flows with dynamic shifting, what their pipeline passes as ``mu``.
        even_sigmas: for flows, whether their pipeline passes the noise levels 1 to 1 / steps.

    Raises:
        ModelError: the flow shifts dynamically, and ``shift_mu`` is None.
        ValueError: no step is left to run, the scheduler cannot take so many steps, or a model
            that predicts noise begins where no signal is left.
    """
    config, kind = scheduler.config, path_kind(scheduler)
    options: dict[str, Any] = {}
    if kind == "flow" and config.get("use_dynamic_shifting"):
        if shift_mu is None:
            raise ModelError(
                f"{type(scheduler).__name__} has use_dynamic_shifting=True, and its pipeline does "
                "not say by how much; make the scheduler anew with use_dynamic_shifting=False and "
                "a shift.")
        options["mu"] = shift_mu
    if spacing == "scheduler":
        if int(steps * strength) == 0:
            raise ValueError(f"strength {strength} of {steps} steps leaves no step to run; use "
                             f"steps >= {-(-1 // strength):.0f} or a larger strength.")
        if even_sigmas and "sigmas" in inspect.signature(scheduler.set_timesteps).parameters:
            options["sigmas"] = np.linspace(1, 1 / steps, steps).tolist()
        timesteps, levels = _own_steps(scheduler, steps, options)
        first = steps - int(steps * strength)
        timesteps, levels = timesteps[first:], levels[first:]
    else:
        count = max(1, round(steps * strength))
        timesteps, levels = _even_steps(scheduler, kind, strength, count, shift_mu)
    if not (timesteps.isfinite().all() and levels.isfinite().all()):
        raise ModelError(f"{type(scheduler).__name__} has noise levels that are not finite; check "
                         "its shift, sigma_min and sigma_max.")
    predicts = config.get("prediction_type", "epsilon")
    if kind == "flow":
        return NoiseSchedule(timesteps, 1 - levels, levels, "flow")
    if kind == "edm":
        data = float(config.sigma_data)
        return NoiseSchedule(timesteps, torch.ones_like(levels), levels, "edm",
                             sigma_data=-data if predicts == "v_prediction" else data)
    if levels[0] == 0 and predicts == "epsilon":
        raise ValueError(
            "strength must be below 1: this schedule leaves no signal at its noisiest level, and "
            f"from predicted noise no image follows there, got {strength}.")
    clip = is_pixel_model and config.get("clip_sample", False)
    clip_range = float(config.get("clip_sample_range", 1.0)) if clip else None
    return NoiseSchedule(timesteps, levels.sqrt(), (1 - levels).sqrt(), predicts, clip_range)


def _own_steps(scheduler: Any, steps: int, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """The scheduler's own timesteps (S,), and noise levels (S + 1,): sigmas of flows and EDM,
    shares of signal power of DDPM."""
    own, kind = copy.deepcopy(scheduler), type(scheduler).__name__
    if kind in _INDEXED | _SIGMAS:  # built on a GPU it has them there, and numpy reads them
        own.alphas_cumprod = torch.as_tensor(own.alphas_cumprod).cpu()
    if kind == "PNDMScheduler":  # its Runge-Kutta start takes half steps
        own.register_to_config(skip_prk_steps=True)
    try:
        own.set_timesteps(steps, **options)
    except ValueError as error:
        raise ValueError(
            f"steps={steps} with timestep_spacing='scheduler' does not suit {kind}: {error} Take "
            "fewer steps, or timestep_spacing='uniform'.") from error
    if kind in _INDEXED:
        # PNDM repeats a timestep, which tells its multistep formula where it begins
        timesteps = torch.unique(own.timesteps.cpu()).flip(0)
        last = torch.as_tensor(getattr(own, "final_alpha_cumprod", 1.0)).cpu()
        return timesteps, torch.cat([own.alphas_cumprod[timesteps], last.reshape(1)])
    # second-order schedulers list two calls a step
    timesteps = own.timesteps.cpu()[:: own.order].float()
    sigmas = torch.cat([own.sigmas[:: own.order][: len(timesteps)], own.sigmas[-1:]]).float().cpu()
    is_ddpm = kind in _SIGMAS and not own.config.get("use_flow_sigmas")
    return timesteps, 1 / (1 + sigmas**2) if is_ddpm else sigmas


def _even_steps(
    scheduler: Any, kind: Kind, strength: float, count: int, mu: float | None
) -> tuple[Tensor, Tensor]:
    """The same, evenly spaced from the noise level of the strength on."""
    config, last = scheduler.config, torch.zeros(1)
    if kind == "ddpm":
        table = torch.as_tensor(scheduler.alphas_cumprod).float().cpu()
        top = len(table) * strength
        if count > top:
            raise ValueError(f"steps must be at most {len(table)}, as the model has that many "
                             f"noise levels, got {count} steps at strength {strength}.")
        timesteps = ((top * torch.arange(count, 0, -1) / count).round().long() - 1).clamp(min=0)
        return timesteps, torch.cat([table[timesteps], last + 1])
    if kind == "edm":  # Karras' sigmas; arXiv:2206.00364, eq. 5
        low, high = config.sigma_min ** (1 / config.rho), config.sigma_max ** (1 / config.rho)
        sigmas = (high + torch.linspace(1 - strength, 1, count) * (low - high)) ** config.rho
        return 0.25 * sigmas.log(), torch.cat([sigmas, last])
    shares = torch.linspace(strength, 0, count + 1)[:-1]
    if config.get("use_dynamic_shifting"):
        sigmas = torch.as_tensor(scheduler.time_shift(mu, 1.0, shares)).float()
    else:
        shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
        sigmas = shift * shares / (1 + (shift - 1) * shares)
    return sigmas * int(config.get("num_train_timesteps", 1000)), torch.cat([sigmas, last])
