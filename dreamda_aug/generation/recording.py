"""From seed images to the trajectories that lead back to them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dreamda_aug.generation.cache import cache_key
from dreamda_aug.method.inversion import Trajectory, record
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.settings import ResolvedSettings
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition


def record_trajectories(
    model: DiffusionModel,
    settings: ResolvedSettings,
    schedule: NoiseSchedule,
    images: Tensor,
    conditions: Sequence[Condition],
    path_seeds: Sequence[int],
    dtype: torch.dtype,
) -> list[Trajectory]:
    """Encode one batch of seed images and invert them.

    Args:
        model: the diffusion model.
        settings: how to invert.
        schedule: the model's, for these settings.
        images: (B, C, H, W) in [0, 1].
        conditions: what the inversion of each image is conditioned on.
        path_seeds: one per image, >= 0: the noise of its source path.
        dtype: what trajectories are rounded to.

    Returns:
        One trajectory per image, on the CPU; with replay 0, the encoded image alone.
    """
    x_0 = model.encode(images)
    if settings.replay == 0:
        return [Trajectory(None, None, latent) for latent in x_0.to(dtype).cpu()]
    condition = model.embed(conditions)
    model.hook.clear()

    def predict(x: Tensor, level: int) -> Tensor:
        return model.predict(schedule.model_input(x, level), schedule.timesteps[level],
                                condition)

    seeds = torch.tensor(path_seeds, device=model.device)
    inversion, eta = settings.inversion, settings.eta
    path = inversion.source_path(x_0, predict, schedule, eta, seeds)
    if not inversion.records_residuals:
        return [Trajectory(x_T) for x_T in path[0].to(dtype).cpu()]
    x_T, residuals = record(path, predict, schedule, eta, dtype, settings.solver)
    return [Trajectory(*pair) for pair in zip(x_T.cpu(), residuals.cpu(), strict=True)]


def source_condition(
    model: DiffusionModel, settings: ResolvedSettings, condition: Condition
) -> Condition:
    """What an inversion is conditioned on: nothing, where the model has such a branch."""
    if model.condition_kind == "class" and not model.guidable:
        return condition
    return settings.source_prompt if model.condition_kind == "text" else None


def inversion_keys(
    model: DiffusionModel,
    settings: ResolvedSettings,
    schedule: NoiseSchedule,
    rng_seed: int,
    digests: Sequence[str],
    paths: Sequence[int],
    sources: Sequence[Condition],
    dtype: torch.dtype,
) -> list[str]:
    """The cache key of each inversion: everything that it depends on.

    Args:
        model: the diffusion model.
        settings: how inversions are made.
        schedule: the model's, for these settings.
        rng_seed: as in `Synthesizer`.
        digests: of the seed images' pixels.
        paths: numbers of the source paths.
        sources: what the inversions are conditioned on.
        dtype: what trajectories are rounded to.
    """
    common: dict[str, Any] = {
        "model": model.fingerprint, "image_size": list(model.image_size),
        "in_tiles": model.in_tiles, "rng_seed": rng_seed, "dtype": str(dtype),
    }
    if settings.replay == 0:  # nothing is recorded
        return [cache_key(**common, image=digest, path=path)
                for digest, path in zip(digests, paths, strict=True)]
    common |= {"inversion": repr(settings.inversion), "schedule": schedule.digest(),
               "solver": settings.solver, "eta": settings.eta}
    of_source = {each: model.condition_digest(each) for each in set(sources)}
    return [cache_key(**common, image=digest, path=path, source=of_source[source])
            for digest, path, source in zip(digests, paths, sources, strict=True)]
