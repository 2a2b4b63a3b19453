"""Images between two inversions of one class, made from outside the library."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dreamda_aug.generation.sampler import Request, Sampler
from dreamda_aug.method.inversion import Trajectory
from dreamda_aug.method.seeding import derive_seed


def interpolate(
    synthesizer: Sampler, images: Tensor, labels: Tensor, requests: Sequence[Request]
) -> Tensor:
    """For each request, an image between its own and another one of the same class.

    The starts are mixed on the sphere, which keeps their power, the residuals likewise; how far
    towards the other image is drawn evenly from [0.2, 0.8].

    Args:
        synthesizer: with replay 1 and noise scale 0.
        images: seed images (N, C, H, W) in [0, 1], of the model's size.
        labels: classes of the seed images, (N,).
        requests: what to make; a class with one image stays as it is.

    Source: Wang and Chen 2024, arXiv:2408.16266 (spherical interpolation of inversions).
    """
    rows = sorted({request.image for request in requests})
    found = dict(zip(rows, synthesizer.invert(images[rows]), strict=True))
    mixed, seeds = [], []
    for request in requests:
        seed = derive_seed(synthesizer.rng_seed, "interpolation", request.image, request.replica)
        generator = torch.Generator().manual_seed(seed)
        others = [row for row in rows
                  if labels[row] == labels[request.image] and row != request.image]
        share = 0.2 + 0.6 * torch.rand((), generator=generator).item()
        first = found[request.image]
        if others:
            row = others[int(torch.randint(len(others), (), generator=generator))]
            first = _between(first, found[row], share)
        mixed.append(first)
        seeds.append(seed)
    return synthesizer.generate(mixed, [request.condition for request in requests], seeds)


def _between(first: Trajectory, second: Trajectory, share: float) -> Trajectory:
    mixed = {name: _slerp(value, second.tensors()[name], share)
             for name, value in first.tensors().items()}  # fmt: skip
    return Trajectory(**mixed)


def _slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation of two tensors, taken as single vectors."""
    u, v = a.float(), b.float()
    cosine = (u * v).sum() / (u.norm() * v.norm()).clamp(min=1e-12)
    angle = cosine.clamp(-1, 1).arccos()
    if angle < 1e-4:
        return (u.lerp(v, share)).to(a.dtype)
    mixed = ((1 - share) * angle).sin() * u + (share * angle).sin() * v
    return (mixed / angle.sin()).to(a.dtype)
