"""The noise schedule, what a denoiser's output says, and the one formula of a reverse step."""

import hashlib
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample", "flow", "edm"]


class Prediction(NamedTuple):
    """Clean latents and noise that a denoiser's output stands for at one noise level.

    Attributes:
        x_0: the clean latents, (B, C, H, W).
        eps: the noise, (B, C, H, W).
    """

    x_0: Tensor
    eps: Tensor


@dataclass(frozen=True)
class NoiseSchedule:
    """The steps of one run, noisiest first, on a path x_t = signal · x_0 + noise · eps.

    Attributes:
        timesteps: the time input of the denoiser at each step, (S,), falling.
        signal: factor of the clean latents before each step and after the last, (S + 1,) float32.
        noise: factor of the noise, likewise.
        prediction_type: what the denoiser predicts: ``"epsilon"``, ``"v_prediction"``,
            ``"sample"``, ``"flow"`` (the velocity eps - x_0 of a rectified flow) or ``"edm"`` (the
            preconditioned output of Karras et al. 2022, arXiv:2206.00364).
        clip_range: predicted clean pixels are clipped to [-clip_range, clip_range]; None: never.
        sigma_data: for ``"edm"``: the data's standard deviation; negative where the output has
            the other sign, as v-prediction gives it.
    """

    timesteps: Tensor
    signal: Tensor
    noise: Tensor
    prediction_type: PredictionType = "epsilon"
    clip_range: float | None = None
    sigma_data: float = 0.5

    def __len__(self) -> int:
        return len(self.timesteps)

    def digest(self) -> str:
        """SHA-256 in hexadecimal of everything that a run takes from it."""
        digest = hashlib.sha256(
            f"{self.prediction_type}{self.clip_range}{self.sigma_data}".encode())
        for values in (self.timesteps, self.signal, self.noise):
            digest.update(values.detach().cpu().to(torch.float64).numpy().tobytes())
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> "NoiseSchedule":
        """The same schedule on another device."""
        return replace(self, timesteps=self.timesteps.to(device), signal=self.signal.to(device),
                       noise=self.noise.to(device))

    def model_input(self, x: Tensor, step: int) -> Tensor:
        """What the denoiser is called with for x, (B, C, H, W), at a step."""
        if self.prediction_type != "edm":
            return x
        return x / (self.noise[step] ** 2 + self.sigma_data**2).sqrt()

    def predictions(
        self, output: Tensor, x_t: Tensor, step: int, *, clip: bool = True
    ) -> Prediction:
        """What the denoiser's output says about the clean image and about the noise.

        Args:
            output: the denoiser's output at this step, (B, C, H, W).
            x_t: the noisy latents, (B, C, H, W).
            step: number of the noise level, 0 is the noisiest; S is the level after the last step.
            clip: whether to clip the clean image as ``clip_range`` says.

        Source: Salimans & Ho 2022, arXiv:2202.00512, appendix D, for v-prediction; Liu et al.
            2022, arXiv:2209.03003, for the velocity.
        """
        signal, noise = self.signal[step], self.noise[step]
        if self.prediction_type == "epsilon":
            x_0, eps = (x_t - noise * output) / signal, output
        elif self.prediction_type == "v_prediction":
            x_0, eps = signal * x_t - noise * output, signal * output + noise * x_t
        elif self.prediction_type == "flow":
            x_0, eps = x_t - noise * output, x_t + signal * output
        else:
            x_0 = output
            if self.prediction_type == "edm":
                power = noise**2 + self.sigma_data**2
                skip = self.sigma_data**2 / power
                x_0 = skip * x_t + noise * self.sigma_data / power.sqrt() * output
            eps = self.noise_of(x_0, x_t, step)
        if clip and self.clip_range is not None:
            x_0 = x_0.clamp(-self.clip_range, self.clip_range)
        return Prediction(x_0, eps)

    def noise_of(self, x_0: Tensor, x_t: Tensor, step: int) -> Tensor:
        """The eps with which x_t = signal · x_0 + noise · eps; 0 where no noise is left."""
        noise = self.noise[step]
        # chosen by the GPU itself: an `if` would wait for it. At noise 0 nothing is left to divide
        # by; what is missing from x_0 then has no direction
        safe = torch.where(noise > 0, noise, torch.ones_like(noise))
        eps = (x_t - self.signal[step] * x_0) / safe
        return torch.where(noise > 0, eps, torch.zeros_like(eps))

    def posterior(self, x_0: Tensor, eps: Tensor, step: int, eta: float) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of one reverse step, x_t -> x_prev, on any path.

        For DDPM's path, where signal² + noise² = 1, this is DDIM's formula; it also holds for
        rectified flow (signal = 1 - noise) and for variance exploding models (signal = 1), and
        stays finite where no signal is left.

        The update rules differ only in what is put in: the symmetric rule gives ``x_0`` and
        ``eps`` from one prediction, the asymmetric rule takes ``x_0`` from the perturbed
        prediction and ``eps``, the direction that points to x_t, from the clean one. With the true
        clean image and the noise that made x_t it is the posterior of the source path.

        Args:
            x_0: predicted (or true) clean latents, (B, C, H, W).
            eps: predicted (or true) noise, same shape as ``x_0``.
            step: number of the step, 0 is the noisiest.
            eta: 0 is deterministic DDIM, 1 is DDPM.

        Returns:
            The mean, (B, C, H, W), and the std, which is 0 when ``eta`` is 0.

        Source: Song et al. 2021, arXiv:2010.02502, eqs. 12 and 16; for other paths: ours, from the
            same conditions (a Gaussian posterior whose marginals are those of the path).
        """
        (signal_t, signal_prev), (noise_t, noise_prev) = (
            factors[step : step + 2].unbind() for factors in (self.signal, self.noise))
        ratio = noise_prev / noise_t
        variance = ratio**2 * (noise_t**2 - (signal_t / signal_prev) ** 2 * noise_prev**2)
        # clamp: where two steps hardly differ it is 0 up to rounding, and sqrt(-1e-17) is nan
        std = eta * variance.clamp(min=0).sqrt()
        direction = (noise_prev**2 - std**2).clamp(min=0).sqrt()
        return signal_prev * x_0 + direction * eps, std

    def add_noise(self, x_0: Tensor, noise: Tensor, step: int) -> Tensor:
        """x_t = signal · x_0 + noise factor · noise; all (B, C, H, W)."""
        return self.signal[step] * x_0 + self.noise[step] * noise
