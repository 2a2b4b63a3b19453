"""Noise that enters elsewhere than at the bottleneck, added from outside the library."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from dreamda_aug.generation.tensors import Request, TensorSynthesizer
from dreamda_aug.method.inversion import Trajectory
from dreamda_aug.method.seeding import BOTTLENECK, derive_seed, seeded_normal

# Seed images (N, C, H, W) in [0, 1] and requests -> synthetic images.
Make = Callable[[Tensor, Sequence[Request]], Tensor]


def make_at(where: str, synthesizer: TensorSynthesizer) -> Make:
    """Makes images as `TensorSynthesizer.synthesize` does, with noise in another place.

    Args:
        where: ``"x_T SCALE"`` mixes the noisy start with fresh noise, keeping its power:
            sqrt(1 - scale²)·x_T + scale·noise; ``"up block SCALE"`` adds noise to the output of
            the first up block, relative to its RMS.
        synthesizer: with adherence 1 and noise scale 0.
    """
    name, scale = where.rsplit(" ", 1)
    inject = {"x_T": _in_start, "up block": _in_up_block}[name]

    def make(images: Tensor, requests: Sequence[Request]) -> Tensor:
        first = min(request.image for request in requests)
        last = max(request.image for request in requests)
        found = synthesizer.invert(images[first : last + 1])
        trajectories = [found[request.image - first] for request in requests]
        sample_seeds = [derive_seed(synthesizer.rng_seed, request.image, request.replica)
                        for request in requests]  # fmt: skip
        return inject(synthesizer, trajectories, sample_seeds, float(scale))

    return make


def _in_start(
    synthesizer: TensorSynthesizer, trajectories: list[Trajectory], sample_seeds: list[int],
    scale: float,
) -> Tensor:  # fmt: skip
    shape = tuple(trajectories[0].x_T.shape)
    noise = seeded_normal(torch.tensor(sample_seeds), 0, BOTTLENECK, shape)
    moved = [Trajectory(((1 - scale**2) ** 0.5 * t.x_T.float() + scale * n).to(t.x_T.dtype),
                        t.residuals)
             for t, n in zip(trajectories, noise, strict=True)]  # fmt: skip
    return synthesizer.generate(moved, None, sample_seeds)


def _in_up_block(
    synthesizer: TensorSynthesizer, trajectories: list[Trajectory], sample_seeds: list[int],
    scale: float,
) -> Tensor:  # fmt: skip
    backbone, made = synthesizer.backbone, []
    for start in range(0, len(sample_seeds), synthesizer.batch_size):
        part = slice(start, start + synthesizer.batch_size)
        # a copy each: replicas that share a start would pass the first step as one row
        starts = [replace(t) for t in trajectories[part]]
        keys, calls = torch.tensor(sample_seeds[part], device=backbone.device), [0]

        def perturb(module, inputs, h: Tensor, keys=keys, calls=calls) -> Tensor:
            noise = seeded_normal(keys, calls[0], BOTTLENECK, tuple(h.shape[1:]))
            calls[0] += 1
            return h + scale * h.square().mean((1, 2, 3), keepdim=True).sqrt() * noise

        hook = backbone.unet.up_blocks[0].register_forward_hook(perturb)
        try:
            made.append(synthesizer.generate(starts, None, sample_seeds[part]))
        finally:
            hook.remove()
    return torch.cat(made)
