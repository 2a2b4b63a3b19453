"""Inversion: from a clean image to a noisy start and the residuals that lead back to it.

Both inversions lay a *source path* x_T ... x_0 through the noise levels. `record` then walks the
path downwards and stores, for each step, what the model's own step would have missed. Replaying
those residuals leads back to the image; perturbing the model on the way gives a variant of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamda_aug.arguments import check_fields
from dreamda_aug.method.schedule import NoiseSchedule, Prediction
from dreamda_aug.method.seeding import POSTERIOR, SOURCE, seeded_normal, seeded_normals
from dreamda_aug.method.solvers import Solver, SolverName

# The denoiser with its condition filled in: (x, noise level) -> output, all (B, C, H, W).
Predict = Callable[[Tensor, int], Tensor]


@dataclass(frozen=True)
class Trajectory:
    """What inversion keeps of one image: enough to generate from it any number of times.

    Attributes:
        x_T: the noisy start, (C, H, W).
        residuals: what each step adds to the model's own mean, and a last one that corrects the
            rounding of the last step, (S + 1, C, H, W); or None where nothing was recorded and
            the model's steps are taken as they are.
        x_0: the clean latents, (C, H, W), only where nothing is replayed (replay 0).
    """

    x_T: Tensor | None = None
    residuals: Tensor | None = None
    x_0: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are there, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class CycleDiffusion:
    """Source path sampled from the true posterior; one denoiser row per step and image.

    Source: Wu & De la Torre 2022, arXiv:2210.05559, algorithm 1; DreamDA, arXiv:2403.12803.
    """

    records_residuals = True

    def source_path(
        self, x_0: Tensor, predict: Predict, schedule: NoiseSchedule, eta: float, path_seeds: Tensor
    ) -> list[Tensor]:
        """x_T ... x_0, (S + 1) tensors of (B, C, H, W); makes no denoiser call.

        Args:
            x_0: clean latents, (B, C, H, W).
            predict: the denoiser, not used here.
            schedule: the steps of the run.
            eta: 0 keeps one noise for the whole path, 1 redraws it as DDPM does.
            path_seeds: one per image, (B,) int64.
        """
        shape = tuple(x_0.shape[1:])
        noise = seeded_normal(path_seeds, 0, SOURCE, shape).to(x_0.dtype)
        path = [schedule.add_noise(x_0, noise, 0)]
        fresh = seeded_normals(path_seeds, range(len(schedule) - 1), POSTERIOR, shape)
        for step, noise in enumerate(fresh):
            eps = schedule.noise_of(x_0, path[-1], step)
            mean, std = schedule.posterior(x_0, eps, step, eta)
            path.append(mean + std * noise.to(x_0.dtype))
        # the last step aims at x_0 itself, also where the schedule leaves some noise
        return [*path, x_0]


@dataclass(frozen=True)
class DDIMInversion:
    """Source path that follows the model's own deterministic flow upwards.

    Attributes:
        exact: record residuals on the way down, so that the image comes back to float rounding:
            2 denoiser rows per step and image. False keeps x_T alone: 1 row per step and a cache
            file as small as one latent, but the image comes back only approximately, and only
            at eta 0.

    Source: Song et al. 2021, arXiv:2010.02502, section 4.3.
    """

    exact: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def records_residuals(self) -> bool:
        return self.exact

    def source_path(
        self, x_0: Tensor, predict: Predict, schedule: NoiseSchedule, eta: float, path_seeds: Tensor
    ) -> list[Tensor]:
        """x_T ... x_0, (S + 1) tensors of (B, C, H, W); arguments as in `CycleDiffusion`."""
        path = [x_0]
        for step in reversed(range(len(schedule))):
            # x_prev stands in for the x_t that is not known yet, with the timestep of x_t
            x_prev = path[0]
            # not clipped: clipping is a projection, and a flow that clips cannot be walked back
            clean, eps = schedule.predictions(predict(x_prev, step), x_prev, step + 1, clip=False)
            path.insert(0, schedule.add_noise(clean, eps, step))
        return path


def record(
    path: list[Tensor], predict: Predict, schedule: NoiseSchedule, eta: float, dtype: torch.dtype,
    solver: SolverName = "ddim",
) -> tuple[Tensor, Tensor]:
    """Walk a source path down and note what the model's own steps miss.

    The walk continues from what will be replayed, residuals already rounded to ``dtype``, so that
    each rounding is corrected one step later and never adds up; one more residual corrects the
    last. So float16 records lead back to the image as exactly as float32 ones.

    Args:
        path: x_T ... x_0, (S + 1) tensors of (B, C, H, W).
        predict: the denoiser.
        schedule: the steps of the run.
        eta: as in generation.
        dtype: how the records are stored.
        solver: as in generation; its history is made of the same recorded points.

    Returns:
        x_T, (B, C, H, W), and the residuals, (B, S + 1, C, H, W), both in ``dtype``.

    Source: residual_t = x_prev - mean_t, DreamDA's figure in the form that is defined at eta 0
        too; the rounding feedback is ours.
    """
    x_T = path[0].to(dtype)
    x_t, residuals = x_T.to(path[0].dtype), []
    run = Solver(solver, schedule, eta)

    def evaluate(x: Tensor, level: int, call: int) -> tuple[Prediction, Prediction]:
        prediction = schedule.predictions(predict(x, level), x, level)
        return prediction, prediction

    for step in range(len(schedule)):
        mean, _ = run.step(x_t, step, evaluate)
        residuals.append((path[step + 1] - mean).to(dtype))
        x_t = mean + residuals[-1].to(mean.dtype)
    residuals.append((path[-1] - x_t).to(dtype))
    return x_T, torch.stack(residuals, dim=1)
