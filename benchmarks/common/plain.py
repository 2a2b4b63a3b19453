"""What the fast paths are compared with: one sample at a time, and no row saved."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dreamda_aug.generation.sampler import Sampler
from dreamda_aug.method.seeding import BOTTLENECK, POSTERIOR, SOURCE, seeded_normal
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition
from dreamda_aug.models.hook import BottleneckHook


def plain_loop(
    sampler: Sampler,
    image: Tensor,
    rows: int,
    condition: Condition = None,
    path_seed: int = 0,
    sample_seed: int = 0,
) -> Tensor:
    """One sample with the cost structure of the authors' released generator.

    Written without the library's inversion, sampling and hook: from the same seeds the two give the
    same image. Symmetric rule, noise relative and shared by the guidance rows.

    Args:
        sampler: for its model, schedule and settings.
        image: the seed image, (1, C, H, W) in [0, 1].
        rows: U-Net rows a step: 4 with guidance (source and target, unconditional and conditional),
            2 without. The source branch is recomputed for every sample.
        condition: what the target branch is conditioned on.
        path_seed: of the source path.
        sample_seed: of the bottleneck noise.

    Returns:
        The synthetic image, (1, C, H, W) in [0, 1].
    """
    model, schedule = sampler.model, sampler.schedule
    settings = sampler.settings
    path, samples = (torch.tensor([each], device=model.device)
                     for each in (path_seed, sample_seed))
    x_0 = model.encode(image)
    shape = tuple(x_0.shape[1:])
    source = schedule.add_noise(x_0, seeded_normal(path, 0, SOURCE, shape), 0)
    target = source
    embedded = model.embed([None] * (rows - 1) + [condition])
    targets = rows // 2
    step_now = 0

    def perturb(module, inputs, h):
        h = h.clone()
        noise = seeded_normal(samples, step_now, BOTTLENECK, tuple(h.shape[1:]))
        rms = h[-targets:].float().square().mean((1, 2, 3), keepdim=True).sqrt()
        h[-targets:] += (settings.noise_scale * rms * noise).to(h.dtype)
        return h

    handle = model.unet.mid_block.register_forward_hook(perturb)
    try:
        for step in range(len(schedule)):
            step_now = step
            x = torch.cat([source] * (rows - targets) + [target] * targets)
            output = model.predict(
                schedule.model_input(x, step), schedule.timesteps[step], embedded)
            halves = output[: rows - targets], output[-targets:]
            source_out, target_out = (
                half if len(half) == 1
                else half[:1] + settings.guidance_scale * (half[1:] - half[:1]) for half in halves
            )
            last = step == len(schedule) - 1
            eps = (source - schedule.signal[step] * x_0) / schedule.noise[step]
            mean, std = schedule.posterior(x_0, eps, step, settings.eta)
            noise = seeded_normal(path, step, POSTERIOR, shape)
            next_source = x_0 if last else mean + std * noise
            source_mean, _ = schedule.posterior(
                *schedule.predictions(source_out, source, step), step, settings.eta)
            target_mean, _ = schedule.posterior(
                *schedule.predictions(target_out, target, step), step, settings.eta)
            target = target_mean + next_source - source_mean
            source = next_source
    finally:
        handle.remove()
    return model.decode(target)


def plain_rows(model: DiffusionModel) -> DiffusionModel:
    """The same model without branching: every decoder row has an encoder row of its own."""
    hook = _PlainTap(model.hook)

    def predict(x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        rows = hook.branches
        if rows is not None:
            x_t, condition = x_t[rows], {name: value[rows] for name, value in condition.items()}
        return model.predict(x_t, t, condition)

    plain = copy.copy(model)
    plain.hook, plain.predict = hook, predict
    return plain


class _PlainTap:
    """A hook that keeps for itself which rows branch; everything else passes through."""

    def __init__(self, hook: BottleneckHook):
        self._hook = hook
        self.branches: Tensor | None = None

    def __getattr__(self, name: str):
        return getattr(self._hook, name)

    @contextmanager
    def perturbing(self, perturbation, rows, clean_rows: int, **arguments) -> Iterator[None]:
        self.branches = rows
        try:
            with self._hook.perturbing(perturbation, None, clean_rows, **arguments):
                yield
        finally:
            self.branches = None
