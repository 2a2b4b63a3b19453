"""What is minimized, and the same measured on held-out images with fixed noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.models import DiffusionModel

# About how many denoiser rows a measurement takes, whatever the number of images, and how many of
# them at once: without gradients they take far less memory than in training.
_MEASURED_ROWS, _MEASURED_AT_ONCE = 256, 32


def noise_levels(model: DiffusionModel) -> NoiseSchedule:
    """The noise levels that are trained: every second one of the model's scheduler."""
    count = int(model.pipeline.scheduler.config.get("num_train_timesteps", 1000))
    # without the noisiest one, at which some schedules leave no signal to predict noise from
    return model.schedule(max(1, count // 2), 1 - 1 / max(count, 2))


def spread_levels(count: int, levels: int, generator: torch.Generator) -> Tensor:
    """Random noise levels, (count,) int64, one from each of ``count`` equal shares of them all."""
    places = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    chosen = (places * levels).long().clamp(max=levels - 1)
    return chosen[torch.randperm(count, generator=generator)]


class Noised(NamedTuple):
    """Rows of a training batch."""

    x_t: Tensor  # what the denoiser is called with, (B, C, H, W)
    t: Tensor  # its time input, (B,)
    target: Tensor  # what it should answer, (B, C, H, W)


def add_noise(schedule: NoiseSchedule, x_0: Tensor, eps: Tensor, levels: Tensor) -> Noised:
    """Noisy rows and the output that is right for them.

    Args:
        schedule: the noise levels.
        x_0: clean latents, (B, C, H, W).
        eps: the noise, same shape.
        levels: number of each row's level, (B,) int64.

    Source: the inverse of `NoiseSchedule.predictions`, which names its sources.
    """
    signal = schedule.signal[levels].view(-1, 1, 1, 1)
    noise = schedule.noise[levels].view(-1, 1, 1, 1)
    x_t, t = signal * x_0 + noise * eps, schedule.timesteps[levels]
    kind, sigma_data = schedule.prediction_type, schedule.sigma_data
    if kind == "epsilon":
        return Noised(x_t, t, eps)
    if kind == "v_prediction":
        return Noised(x_t, t, signal * eps - noise * x_0)
    if kind == "sample":
        return Noised(x_t, t, x_0)
    if kind == "flow":
        return Noised(x_t, t, eps - x_0)
    power = noise**2 + sigma_data**2
    target = (x_0 - sigma_data**2 / power * x_t) * power.sqrt() / (noise * sigma_data)
    return Noised(x_t / power.sqrt(), t, target)


@dataclass(frozen=True)
class HeldOut:
    """Held-out images with the noise that they are always measured with, D draws for each."""

    x_0: Tensor  # clean latents, (N, C, H, W)
    labels: Tensor  # (N,) int64; -1 is none
    eps: Tensor  # (N, D, C, H, W)
    levels: Tensor  # number of the noise level of each draw, (N, D) int64

    @classmethod
    def draw(cls, x_0: Tensor, labels: Tensor, levels: int, rng_seed: int) -> "HeldOut":
        """Draw noise at ``levels`` noise levels; an image's depends on its number alone."""
        draws = min(32, max(4, _MEASURED_ROWS // len(x_0)))
        eps, chosen = [], []
        for number in range(len(x_0)):
            generator = torch.Generator().manual_seed(derive_seed(rng_seed, "held-out", number))
            eps.append(torch.randn(draws, *x_0.shape[1:], generator=generator))
            chosen.append(spread_levels(draws, levels, generator))
        return cls(x_0, labels, torch.stack(eps), torch.stack(chosen))

    @torch.no_grad()
    def losses(
        self, denoise: Callable[[Tensor, Tensor, Tensor], Tensor], schedule: NoiseSchedule,
        device: torch.device, batch_size: int = _MEASURED_AT_ONCE,
    ) -> Tensor:
        """The loss of each image, (N,) float64, on the CPU; ``denoise`` maps x_t, t and labels to
        the denoiser's output."""
        draws = self.levels.shape[1]
        rows = torch.arange(len(self.x_0)).repeat_interleave(draws)
        eps, levels = self.eps.flatten(0, 1), self.levels.flatten()
        found = []
        for start in range(0, len(rows), batch_size):
            part = slice(start, start + batch_size)
            noised = add_noise(schedule, self.x_0[rows[part]].to(device), eps[part].to(device),
                               levels[part].to(device))
            output = denoise(noised.x_t, noised.t, self.labels[rows[part]])
            found.append((output - noised.target).square().flatten(1).mean(1).double().cpu())
        return torch.cat(found).view(-1, draws).mean(1)
