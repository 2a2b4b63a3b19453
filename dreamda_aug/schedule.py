"""The noise schedule and the one formula of a reverse step."""

from dataclasses import dataclass

import torch
from torch import Tensor


def ddim_posterior(
    x_0: Tensor, eps: Tensor, alpha_bar_t: Tensor, alpha_bar_prev: Tensor, eta: float
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of one reverse step, x_t -> x_{t-1}.

    The update rules differ only in what is put in: the symmetric rule gives ``x_0`` and ``eps``
    from one prediction, the asymmetric rule takes ``x_0`` from the perturbed prediction and
    ``eps``, the direction that points to x_t, from the clean one. With the true clean image and
    the noise that made x_t it is the posterior of the source path.

    Args:
        x_0: predicted (or true) clean latents, (B, C, H, W).
        eps: predicted (or true) noise, same shape as ``x_0``.
        alpha_bar_t: share of signal power left at t, in (0, 1), scalar or broadcastable.
        alpha_bar_prev: the same one step cleaner; 1 means no noise is left.
        eta: 0 is deterministic DDIM, 1 is DDPM.

    Returns:
        The mean, (B, C, H, W), and the std, which is 0 when ``eta`` is 0.

    Source: Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16.
    """
    variance = (1 - alpha_bar_prev) / (1 - alpha_bar_t) * (1 - alpha_bar_t / alpha_bar_prev)
    std = eta * variance.sqrt()
    # clamp: at alpha_bar_prev == 1 the difference is 0 up to rounding, and sqrt(-1e-17) is nan
    direction = (1 - alpha_bar_prev - std**2).clamp(min=0).sqrt()
    return alpha_bar_prev.sqrt() * x_0 + direction * eps, std


@dataclass(frozen=True)
class NoiseSchedule:
    """The steps of one run, noisiest first.

    Attributes:
        timesteps: what the U-Net is told at each step, (S,) int64, falling.
        alpha_bars: share of signal power before each step and after the last, (S + 1,) float32.
        prediction_type: what the U-Net predicts: ``"epsilon"``, ``"v_prediction"`` or ``"sample"``.
        clip_range: predicted clean pixels are clipped to [-clip_range, clip_range]; None: never.
    """

    timesteps: Tensor
    alpha_bars: Tensor
    prediction_type: str = "epsilon"
    clip_range: float | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        return NoiseSchedule(self.timesteps.to(device), self.alpha_bars.to(device),
                             self.prediction_type, self.clip_range)

    def predictions(self, output: Tensor, x_t: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """What the U-Net's output says about the clean image and about the noise.

        Args:
            output: the U-Net's output at this step, (B, C, H, W).
            x_t: what the U-Net saw, (B, C, H, W).
            step: number of the step, 0 is the noisiest.

        Returns:
            x_0 and eps, each (B, C, H, W).

        Source: Salimans & Ho 2022, arXiv:2202.00512, appendix D, for v-prediction.
        """
        signal, noise = self.alpha_bars[step].sqrt(), (1 - self.alpha_bars[step]).sqrt()
        if self.prediction_type == "epsilon":
            x_0, eps = (x_t - noise * output) / signal, output
        elif self.prediction_type == "v_prediction":
            x_0, eps = signal * x_t - noise * output, signal * output + noise * x_t
        else:
            x_0, eps = output, (x_t - signal * output) / noise
        if self.clip_range is not None:
            x_0 = x_0.clamp(-self.clip_range, self.clip_range)
        return x_0, eps

    def posterior(self, x_0: Tensor, eps: Tensor, step: int, eta: float) -> tuple[Tensor, Tensor]:
        """`ddim_posterior` from ``step`` to the next one."""
        return ddim_posterior(x_0, eps, self.alpha_bars[step], self.alpha_bars[step + 1], eta)

    def add_noise(self, x_0: Tensor, noise: Tensor, step: int) -> Tensor:
        """x_t = sqrt(alpha_bar)·x_0 + sqrt(1 - alpha_bar)·noise; all (B, C, H, W)."""
        alpha_bar = self.alpha_bars[step]
        return alpha_bar.sqrt() * x_0 + (1 - alpha_bar).sqrt() * noise
