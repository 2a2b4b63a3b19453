"""From a diffusers scheduler's configuration to the noise schedule of a run."""

import inspect
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dreamda_aug.errors import ModelError
from dreamda_aug.method.schedule import NoiseSchedule, PredictionType

Spacing = Literal["uniform", "scheduler"]

# Schedulers over a table of DDPM noise levels. They differ in how they step, which is ours.
_DDPM = {
    "DDIMScheduler", "DDIMInverseScheduler", "DDIMParallelScheduler", "DDPMScheduler",
    "DDPMParallelScheduler", "DEISMultistepScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverMultistepInverseScheduler", "DPMSolverSDEScheduler", "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler", "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler", "LCMScheduler",
    "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler", "TCDScheduler",
    "UniPCMultistepScheduler",
}
_FLOW = {
    "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler",
}
_EDM = {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
# Were distilled on steps that end at the noisiest one, whatever their configuration says.
_TRAILING = {"LCMScheduler", "TCDScheduler"}
_OWN_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


def path_kind(scheduler: Any) -> Literal["ddpm", "flow", "edm"]:
    """Which path a scheduler lays between image and noise; refuses what is not understood.

    Args:
        scheduler: any diffusers scheduler.

    Raises:
        ModelError: its class, its prediction type or its thresholding is not supported.
    """
    kind, config = type(scheduler).__name__, scheduler.config
    predicts = config.get("prediction_type", "epsilon")
    if config.get("thresholding"):
        raise ModelError(
            f"{kind} has thresholding=True, which changes predictions pixel by pixel and is not "
            "supported; make the scheduler anew with thresholding=False."
        )
    if kind in _FLOW or config.get("use_flow_sigmas"):
        return "flow"
    if kind in _EDM:
        if predicts not in ("epsilon", "v_prediction"):
            raise ModelError(
                f"{kind} has prediction_type {predicts!r}; supported are 'epsilon' and "
                "'v_prediction'."
            )
        return "edm"
    if kind not in _DDPM:
        raise ModelError(
            f"{kind} is not a scheduler whose noise levels are understood; supported are "
            f"{', '.join(sorted(_DDPM | _FLOW | _EDM))}."
        )
    if predicts not in ("epsilon", "v_prediction", "sample"):
        raise ModelError(
            f"{kind} has prediction_type {predicts!r}; with DDPM noise levels supported are "
            "'epsilon', 'v_prediction' and 'sample' (a rectified flow needs use_flow_sigmas=True "
            "or a FlowMatch scheduler)."
        )
    levels = torch.as_tensor(scheduler.alphas_cumprod)
    if not (levels.isfinite().all() and levels.min() >= 0 and levels.max() <= 1):
        raise ModelError(
            f"{kind} has betas that leave shares of signal power outside [0, 1]; check beta_start, "
            "beta_end and trained_betas."
        )
    return "ddpm"


def build_schedule(
    scheduler: Any, steps: int, strength: float, spacing: Spacing, *, is_pixel_model: bool,
    shift_mu: float | None = None, even_sigmas: bool = False,
) -> NoiseSchedule:
    """The steps of a run.

    Args:
        scheduler: a diffusers scheduler that `path_kind` understands.
        steps: number of steps from pure noise to the image.
        strength: share of the way to pure noise at which the run begins, in (0, 1].
        spacing: see `Settings.timestep_spacing`.
        is_pixel_model: predicted images are clipped only in pixel space, and only where the
            scheduler's own configuration says so.
        shift_mu: for flows with dynamic shifting, what their pipeline gives as ``mu``.
        even_sigmas: for flows whose pipeline gives the scheduler the noise levels 1 to 1 / steps
            in place of the scheduler's own.

    Raises:
        ValueError: no step is left to run; or a model that predicts noise begins where no signal
            is left.
    """
    config, kind = scheduler.config, path_kind(scheduler)
    count = max(1, round(steps * strength))
    if spacing == "scheduler":
        count = min(int(steps * strength), steps)
        if count == 0:
            raise ValueError(
                f"strength {strength} of {steps} steps leaves no step to run; "
                f"use steps >= {-(-1 // strength):.0f} or a larger strength."
            )
    if kind == "ddpm":
        clip = is_pixel_model and config.get("clip_sample", False)
        clip_range = float(config.get("clip_sample_range", 1.0)) if clip else None
        if spacing == "uniform":
            # a pipeline that was built on a GPU has its scheduler's levels there
            levels = torch.as_tensor(scheduler.alphas_cumprod).float().cpu()
            top = len(levels) * strength
            if count > top:
                raise ValueError(
                    f"steps must be at most {len(levels)}, as the model has that many noise "
                    f"levels, got {steps}."
                )
            timesteps = (top * torch.arange(count, 0, -1) / count).round().long() - 1
            alpha_bars = torch.cat([levels[timesteps.clamp(min=0)], torch.ones(1)])
            timesteps = timesteps.clamp(min=0)
        else:
            timesteps, alpha_bars = _ddpm_steps(scheduler, steps, count)
        predicts: PredictionType = config.get("prediction_type", "epsilon")
        if alpha_bars[0] == 0 and predicts == "epsilon":
            raise ValueError(
                "strength must be below 1: this schedule leaves no signal at its noisiest level, "
                f"and from predicted noise no image follows there, got {strength}."
            )
        return NoiseSchedule.from_alpha_bars(timesteps, alpha_bars, predicts, clip_range)
    if kind == "flow":
        sigmas, timesteps = _flow_steps(
            scheduler, steps, count, strength, spacing, shift_mu, even_sigmas)
        return NoiseSchedule(timesteps, 1 - sigmas, sigmas, "flow")
    sigmas = _edm_sigmas(config, steps, count, strength, spacing)
    data = float(config.sigma_data)
    return NoiseSchedule(
        0.25 * sigmas[:-1].log(), torch.ones_like(sigmas), sigmas, "edm",
        sigma_data=-data if config.get("prediction_type") == "v_prediction" else data,
    )


def _ddpm_steps(scheduler: Any, steps: int, count: int) -> tuple[Tensor, Tensor]:
    """Timesteps and shares of signal power that the scheduler itself would take."""
    from diffusers import DDIMScheduler

    config = scheduler.config
    if any(config.get(name) for name in _OWN_SIGMAS):
        own = type(scheduler).from_config(config)
        own.set_timesteps(steps)
        sigmas = torch.unique(own.sigmas.float(), sorted=True).flip(0)
        levels = 1 / (1 + sigmas**2)
        timesteps = torch.as_tensor(own.timesteps).float()
        timesteps = torch.unique(timesteps, sorted=True).flip(0)
        count = min(count, len(timesteps))
        return timesteps[-count:], torch.cat([levels[: len(timesteps)][-count:], torch.ones(1)])
    spacing = {"timestep_spacing": "trailing"} if type(scheduler).__name__ in _TRAILING else {}
    ddim = DDIMScheduler.from_config(config, **spacing)
    ddim.set_timesteps(steps)
    timesteps = ddim.timesteps[steps - count :]
    levels = ddim.alphas_cumprod[timesteps]
    return timesteps, torch.cat([levels, ddim.final_alpha_cumprod.reshape(1)])


def _flow_steps(
    scheduler: Any, steps: int, count: int, strength: float, spacing: Spacing, mu: float | None,
    even_sigmas: bool,
) -> tuple[Tensor, Tensor]:
    """Sigmas (count + 1,) and timesteps (count,) of a rectified flow."""
    config = scheduler.config
    own = type(scheduler).from_config(config)
    options: dict[str, Any] = {}
    if config.get("use_dynamic_shifting"):
        if mu is None:
            raise ModelError(
                f"{type(scheduler).__name__} has use_dynamic_shifting=True, and its pipeline does "
                "not say by how much; make the scheduler anew with use_dynamic_shifting=False and "
                "a shift."
            )
        options["mu"] = mu
    total = int(config.get("num_train_timesteps", 1000))
    if spacing == "uniform":
        shares = torch.linspace(strength, 0, count + 1)[:-1]
        if config.get("use_dynamic_shifting"):
            sigmas = torch.as_tensor(own.time_shift(mu, 1.0, shares)).float()
        else:
            shift = float(config.get("shift") or config.get("flow_shift") or 1.0)
            sigmas = shift * shares / (1 + (shift - 1) * shares)
        return torch.cat([sigmas, torch.zeros(1)]), sigmas * total
    if even_sigmas and "sigmas" in inspect.signature(own.set_timesteps).parameters:
        options["sigmas"] = np.linspace(1, 1 / steps, steps).tolist()
    own.set_timesteps(steps, **options)
    sigmas = torch.unique(own.sigmas.float(), sorted=True).flip(0)
    timesteps = torch.unique(own.timesteps.float(), sorted=True).flip(0)
    count = min(count, len(timesteps))
    start = len(timesteps) - count
    return torch.cat([sigmas[start : start + count], torch.zeros(1)]), timesteps[start:]


def _edm_sigmas(
    config: Any, steps: int, count: int, strength: float, spacing: Spacing
) -> Tensor:
    """Karras' noise levels, (count + 1,), the last one 0; arXiv:2206.00364, eq. 5."""
    low, high = config.sigma_min ** (1 / config.rho), config.sigma_max ** (1 / config.rho)
    if spacing == "scheduler":
        places = torch.linspace(0, 1, steps)[steps - count :]
    else:
        places = torch.linspace(1 - strength, 1, count)
    sigmas = (high + places * (low - high)) ** config.rho
    return torch.cat([sigmas, torch.zeros(1)])
