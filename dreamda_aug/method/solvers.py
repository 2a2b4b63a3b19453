"""Solvers of the reverse process: how a step's predictions are sharpened by further ones.

A step of any solver here is `NoiseSchedule.posterior` with sharpened predictions. So one loop
serves all of them, with either update rule and any eta, and a recorded residual, which is what
the solver's deterministic part missed, replays exactly with any of them.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dreamda_aug.method.schedule import NoiseSchedule, Prediction

SolverName = Literal["ddim", "dpmsolver++", "heun"]
# A level with a smaller factor of signal counts as pure noise: Heun's clean latents, which are
# divided by it, would be 0 / 0, or mostly rounding where a scheduler leaves 2**-12 in place of 0.
_PURE_NOISE = 1e-3


# Calls the denoiser: (x, (B, C, H, W), noise level, number of the call in this run) -> predictions:
# the perturbed one gives x_0, the clean one the direction to x_t. They are the same object in the
# symmetric rule and where nothing is perturbed. Each call draws its own perturbation.
Evaluate = Callable[[Tensor, int, int], tuple[Prediction, Prediction]]


class Solver:
    """One run of a solver; it may remember predictions of earlier steps.

    Args:
        name: ``"ddim"``: first order, any eta. ``"dpmsolver++"``: second-order multistep (2M), as
            many denoiser calls as ``"ddim"``; with eta 1 it is the SDE variant. ``"heun"``: second
            order, two calls in `second_order_steps`.
        schedule: the steps of the run.
        eta: 0 is deterministic, 1 adds as much fresh noise as DDPM.

    Source: Song et al. 2021, arXiv:2010.02502; Lu et al. 2022, arXiv:2211.01095, algorithm 2, with
        `x_0` extrapolated in log-SNR and the first and last step of first order, as in diffusers;
        Karras et al. 2022, arXiv:2206.00364, algorithm 1 without churn.
    """

    def __init__(self, name: SolverName, schedule: NoiseSchedule, eta: float):
        self.name, self.schedule, self.eta = name, schedule, eta
        self._last: tuple[Prediction, Prediction] | None = None
        self._twice = second_order_steps(name, schedule)
        # log-SNR of every level; infinite at the last one, where the step is of first order
        self._log_snr = schedule.signal.log() - schedule.noise.log()

    def step(self, x_t: Tensor, step: int, evaluate: Evaluate) -> tuple[Tensor, Tensor]:
        """Mean, (B, C, H, W), and std of the next latents.

        Args:
            x_t: noisy latents, (B, C, H, W).
            step: number of the step, 0 is the first; steps must be taken in order.
            evaluate: calls the denoiser.
        """
        call = step * (2 if self.name == "heun" else 1)
        now = perturbed, clean = evaluate(x_t, step, call)
        is_last = step == len(self.schedule) - 1
        if self.name == "dpmsolver++" and self._last is not None and not is_last:
            perturbed, clean = (self._extrapolate(*pair, x_t, step)
                                for pair in zip(now, self._last, strict=True))
        elif step in self._twice:
            end, _ = self.schedule.posterior(perturbed.x_0, clean.eps, step, 0.0)
            later = evaluate(end, step + 1, call + 1)
            perturbed, clean = (self._average(*pair, x_t, step)
                                for pair in zip(now, later, strict=True))
        self._last = now
        return self.schedule.posterior(perturbed.x_0, clean.eps, step, self.eta)

    def _extrapolate(
        self, now: Prediction, before: Prediction, x_t: Tensor, step: int
    ) -> Prediction:
        """x_0 halfway to the next level, along the line through the last two."""
        log_snr = self._log_snr
        share = (log_snr[step + 1] - log_snr[step]) / (log_snr[step] - log_snr[step - 1])
        # where no signal was left (zero terminal SNR) there is nothing to extrapolate from
        share = torch.where(share.isfinite(), share, torch.zeros_like(share))
        x_0 = now.x_0 + share / 2 * (now.x_0 - before.x_0)
        return Prediction(x_0, self.schedule.noise_of(x_0, x_t, step))

    def _average(self, now: Prediction, later: Prediction, x_t: Tensor, step: int) -> Prediction:
        """The mean of the slopes at both ends of the step."""
        schedule = self.schedule
        if schedule.prediction_type == "flow":
            velocity = (now.eps - now.x_0 + later.eps - later.x_0) / 2
            return Prediction(x_t - schedule.noise[step] * velocity,
                              x_t + schedule.signal[step] * velocity)
        eps = (now.eps + later.eps) / 2
        return Prediction((x_t - schedule.noise[step] * eps) / schedule.signal[step], eps)


def second_order_steps(name: SolverName, schedule: NoiseSchedule) -> range:
    """The steps in which the denoiser is called a second time, at their end.

    They are Heun's, but for the last one, which leaves no noise, and those that begin at pure noise
    (zero terminal SNR), unless the denoiser predicts the velocity of a flow.
    """
    if name != "heun":
        return range(0)
    is_flow = schedule.prediction_type == "flow"
    first = 0 if is_flow else int((schedule.signal < _PURE_NOISE).sum())
    return range(first, len(schedule) - 1)


def call_levels(name: SolverName, schedule: NoiseSchedule) -> list[int]:
    """The noise level of each denoiser call of a run, in order."""
    twice = second_order_steps(name, schedule)
    return [level for step in range(len(schedule))
            for level in range(step, step + 1 + (step in twice))]
