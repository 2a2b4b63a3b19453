"""What the fast paths are compared with: one sample at a time, and no row saved."""

import torch
from torch import Tensor

from dreamda_aug import Generator
from dreamda_aug.backbones import Condition
from dreamda_aug.seeding import BOTTLENECK, POSTERIOR, SOURCE, seeded_normal


def plain_loop(
    generator: Generator,
    image: Tensor,
    rows: int,
    condition: Condition = None,
    path_seed: int = 0,
    sample_seed: int = 0,
) -> Tensor:
    """One sample with the cost structure of the authors' released generator.

    Written without the library's inversion, sampling and tap: from the same seeds the two give the
    same image. Symmetric rule, noise relative and shared by the guidance rows.

    Args:
        generator: for its backbone, schedule and settings.
        image: the seed image, (1, C, H, W) in [0, 1].
        rows: U-Net rows a step: 4 with guidance (source and target, unconditional and conditional),
            2 without. The source branch is recomputed for every sample.
        condition: what the target is told.
        path_seed: of the source path.
        sample_seed: of the bottleneck noise.

    Returns:
        The synthetic image, (1, C, H, W) in [0, 1].
    """
    backbone, schedule, settings = generator.backbone, generator.schedule, generator.settings
    path, seeds = (torch.tensor([seed], device=backbone.device)
                   for seed in (path_seed, sample_seed))
    x_0 = backbone.encode(image)
    shape = tuple(x_0.shape[1:])
    source = schedule.add_noise(x_0, seeded_normal(path, 0, SOURCE, shape), 0)
    target = source
    told = backbone.embed([None] * (rows - 1) + [condition])
    targets = rows // 2
    step_now = 0

    def perturb(module, inputs, h):
        h = h.clone()
        noise = seeded_normal(seeds, step_now, BOTTLENECK, tuple(h.shape[1:]))
        rms = h[-targets:].float().square().mean((1, 2, 3), keepdim=True).sqrt()
        h[-targets:] += (settings.noise_scale * rms * noise).to(h.dtype)
        return h

    handle = backbone.unet.mid_block.register_forward_hook(perturb)
    try:
        for step in range(len(schedule)):
            step_now = step
            x = torch.cat([source] * (rows - targets) + [target] * targets)
            output = backbone.predict(x, schedule.timesteps[step], told)
            halves = output[: rows - targets], output[-targets:]
            source_out, target_out = (
                half if len(half) == 1
                else half[:1] + settings.guidance_scale * (half[1:] - half[:1]) for half in halves
            )
            last = step == len(schedule) - 1
            alpha_bar = schedule.alpha_bars[step]
            eps = (source - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
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
    return backbone.decode(target)


class PlainRows:
    """A backbone that never branches: every decoder row has an encoder row of its own.

    Args:
        backbone: what it wraps; everything else passes through.
    """

    def __init__(self, backbone):
        self._backbone = backbone
        self.tap = _PlainTap(backbone.tap)

    def __getattr__(self, name: str):
        return getattr(self._backbone, name)

    def predict(self, x_t: Tensor, t: Tensor, condition: dict[str, Tensor]) -> Tensor:
        rows = self.tap.branches
        if rows is not None:
            x_t, condition = x_t[rows], {name: value[rows] for name, value in condition.items()}
        return self._backbone.predict(x_t, t, condition)


class _PlainTap:
    def __init__(self, tap):
        self._tap = tap
        self.branches: Tensor | None = None

    def __getattr__(self, name: str):
        return getattr(self._tap, name)

    def set(self, perturbation, rows, clean_rows: int, input_rows: int, **arguments) -> None:
        self.branches = rows
        count = input_rows if rows is None else len(rows)
        self._tap.set(perturbation, None, clean_rows, count, **arguments)

    def clear(self) -> None:
        self.branches = None
        self._tap.clear()
