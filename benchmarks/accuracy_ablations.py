"""Ablations of the accuracy study: which runs each compares, and noise in other places."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from accuracy_arms import AMST_PARTS, ARMS, Arm
from accuracy_pools import Make, PoolSpec
from torch import Tensor

from dreamda_aug import DDIMInversion, Generator
from dreamda_aug.generator import Request
from dreamda_aug.inversion import Trajectory
from dreamda_aug.seeding import BOTTLENECK, derive_seed, seeded_normal

SEED, AMST, PROBE, ORACLE = (
    next(arm for arm in ARMS if arm.name == name)
    for name in ("DreamDA, seed labels", "DreamDA + AMST", "DreamDA, probe labels",
                 "DreamDA, oracle labels"))  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One row of an ablation.

    Attributes:
        name: as the table shows it.
        arm: how the classifier is trained.
        spec: the synthetic images.
    """

    name: str
    arm: Arm
    spec: PoolSpec

    def named_arm(self) -> Arm:
        """The arm under the variant's name, which results are kept by."""
        return replace(self.arm, name=self.name)


def _grid(base: PoolSpec, dials: Sequence[tuple[str, dict]], arms: Sequence[Arm]) -> list[Variant]:
    return [Variant(f"{name}, {arm.labels} labels", arm,
                    replace(base, settings=replace(base.settings, **changes)))
            for name, changes in dials for arm in arms]  # fmt: skip


def dials(base: PoolSpec) -> list[Variant]:
    """Noise scale × adherence, with four ways to label."""
    pairs = [(a, n) for a in (1.0, 0.6, 0.0) for n in (0.0, 1.0, 3.0) if (a, n) != (1, 0)]
    return _grid(base, [(f"adherence {a:g}, noise {n:g}", {"adherence": a, "noise_scale": n})
                        for a, n in pairs], [SEED, AMST, PROBE, ORACLE])  # fmt: skip


def strength(base: PoolSpec) -> list[Variant]:
    """Images ever further from their seed image: what they are worth if their labels are right,
    and how much of that each way to label brings."""
    return _grid(base, [(f"strength {s:g}", {"strength": s}) for s in (0.5, 0.7, 0.9)],
                 [SEED, AMST, PROBE, ORACLE])  # fmt: skip


def inversion(base: PoolSpec) -> list[Variant]:
    """CycleDiffusion against DDIM inversion, at the same dials."""
    kinds = [("CycleDiffusion", {}), ("DDIM inversion", {"inversion": DDIMInversion()}),
             ("DDIM inversion, eta 0", {"inversion": DDIMInversion(), "eta": 0.0})]  # fmt: skip
    return _grid(base, kinds, [SEED, AMST])


def rule(base: PoolSpec) -> list[Variant]:
    """Asymmetric against symmetric rule over noise scales, to be read at equal distance."""
    kinds = [(f"{name}, noise {scale:g}", {"update_rule": name, "noise_scale": scale})
             for name, scales in (("asymmetric", (1.0, 3.0)), ("symmetric", (4.0, 12.0)))
             for scale in scales]  # fmt: skip
    return _grid(base, kinds, [SEED])


def paths(base: PoolSpec) -> list[Variant]:
    """One source path per image, or one per replica."""
    kinds = [("1 path", {"paths": 1}), ("a path per replica", {"paths": base.replicas})]
    return _grid(base, kinds, [SEED, AMST])


def amst(base: PoolSpec) -> list[Variant]:
    """The parts of AMST, one at a time, on the same images."""
    rounds = {"label every round": ({}, {"relabel_every": 1}),
              "label every round, restart": ({}, {"relabel_every": 1, "restart": True})}
    return [Variant(name, replace(AMST, wrapper=wrapper, training=AMST.training | training), base)
            for name, (wrapper, training) in (AMST_PARTS | rounds).items()
            if name != "no restart"]  # what these arms do anyway


def place(base: PoolSpec) -> list[Variant]:
    """Where noise enters, with nothing else that moves an image: adherence 1 but where stated.

    Two strengths of each; to be read at equal distance from the seed image.
    """
    exact = replace(base.settings, adherence=1.0, noise_scale=0.0)
    specs = [(f"bottleneck, noise {n:g}", replace(base, settings=replace(exact, noise_scale=n)))
             for n in (1.0, 3.0)]  # fmt: skip
    specs += [(f"latent noise per step, adherence {a:g}",
               replace(base, settings=replace(exact, adherence=a)))
              for a in (0.8, 0.4)]  # fmt: skip
    for where, scales in (("x_T", (0.3, 0.6)), ("up block", (0.25, 1.0))):
        specs += [(f"{where}, noise {n:g}", replace(base, settings=exact, place=f"{where} {n}"))
                  for n in scales]  # fmt: skip
    return [Variant(name, SEED, spec) for name, spec in specs]


ABLATIONS: dict[str, Callable[[PoolSpec], list[Variant]]] = {
    function.__name__: function
    for function in (dials, strength, place, inversion, rule, paths, amst)
}


def make_at(where: str, generator: Generator) -> Make:
    """Something like `Generator.augment` whose noise enters elsewhere, from outside the library.

    Args:
        where: ``"x_T SCALE"`` mixes the noisy start with fresh noise, keeping its power:
            sqrt(1 - scale²)·x_T + scale·noise; ``"up block SCALE"`` adds noise to the output of
            the first up block, relative to its RMS.
        generator: with adherence 1 and noise scale 0.
    """
    name, scale = where.rsplit(" ", 1)
    inject = {"x_T": _in_start, "up block": _in_up_block}[name]

    def make(images: Tensor, requests: Sequence[Request]) -> Tensor:
        first = min(request.image for request in requests)
        last = max(request.image for request in requests)
        found = generator.invert(images[first : last + 1])
        trajectories = [found[request.image - first] for request in requests]
        seeds = [derive_seed(generator.rng_seed, request.image, request.replica)
                 for request in requests]  # fmt: skip
        return inject(generator, trajectories, seeds, float(scale))

    return make


def _in_start(generator: Generator, trajectories: list[Trajectory], seeds: list[int],
              scale: float) -> Tensor:  # fmt: skip
    shape = tuple(trajectories[0].x_T.shape)
    noise = seeded_normal(torch.tensor(seeds), 0, BOTTLENECK, shape)
    moved = [Trajectory(((1 - scale**2) ** 0.5 * t.x_T.float() + scale * n).to(t.x_T.dtype),
                        t.residuals)
             for t, n in zip(trajectories, noise, strict=True)]  # fmt: skip
    return generator.generate(moved, seeds=seeds)


def _in_up_block(generator: Generator, trajectories: list[Trajectory], seeds: list[int],
                 scale: float) -> Tensor:  # fmt: skip
    made = []
    for start in range(0, len(seeds), generator.batch_size):
        part = slice(start, start + generator.batch_size)
        # a copy each: replicas that share a start would pass the first step as one row
        starts = [replace(t) for t in trajectories[part]]
        keys, calls = torch.tensor(seeds[part], device=generator.backbone.device), [0]

        def perturb(module, inputs, h: Tensor, keys=keys, calls=calls) -> Tensor:
            noise = seeded_normal(keys, calls[0], BOTTLENECK, tuple(h.shape[1:]))
            calls[0] += 1
            return h + scale * h.square().mean((1, 2, 3), keepdim=True).sqrt() * noise

        hook = generator.backbone.unet.up_blocks[0].register_forward_hook(perturb)
        try:
            made.append(generator.generate(starts, seeds=seeds[part]))
        finally:
            hook.remove()
    return torch.cat(made)

