"""Ablations of the accuracy study: which runs each of them compares."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from benchmarks.accuracy.arms import ARMS, Arm
from benchmarks.accuracy.pools import PoolSpec
from benchmarks.common.amst_parts import AMST_PARTS, AMSTOptions
from dreamda_aug import DDIMInversion

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
    """Images ever further from their seed image, labelled in four ways.

    Oracle labels show what the images are worth, the others how much of that they bring.
    """
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
    rounds = {"label every round": AMSTOptions(relabel_every=1),
              "label every round, restart": AMSTOptions(relabel_every=1, restart=True)}
    return [Variant(name, replace(AMST, amst=options), base)
            for name, options in (AMST_PARTS | rounds).items()
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
