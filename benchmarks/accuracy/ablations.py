"""Ablations of the accuracy study: which runs each of them compares."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.accuracy.adapted import ADAPTED_TO
from benchmarks.accuracy.arms import CHOSEN, METHODS, Arm
from benchmarks.accuracy.pools import PoolSpec
from benchmarks.common.amst_parts import AMST_PARTS, PLUS_PARTS, AMSTOptions


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


Specs = Mapping[str, PoolSpec]
SEED, ORACLE = Arm("", "tuned", view=CHOSEN), Arm("", "tuned", "oracle", view=CHOSEN)


def replicas(specs: Specs, count: int) -> list[Variant]:
    """More and more images of each labeled one."""
    recipes = [name for name in ("noise", "img2img", "tuned") if name in specs]
    return [Variant(f"{METHODS[recipe]}, K = {k}", replace(SEED, recipe=recipe),
                    replace(specs[recipe], replicas=k))
            for recipe in recipes for k in (5, 10, 30, 60)]  # fmt: skip


def strength(specs: Specs, count: int) -> list[Variant]:
    """img2img and DreamDA ever further from the seed image, with seed and with true labels."""
    rows = []
    for recipe in [name for name in ("img2img", "tuned") if name in specs]:
        for s in (0.5, 0.7, 0.8, 0.9, 1.0):
            spec = replace(specs[recipe], replicas=count,
                           settings=replace(specs[recipe].settings, strength=s))
            rows += [Variant(f"{METHODS[recipe]}, strength {s:g}, {arm.labels} labels",
                             replace(arm, recipe=recipe), spec) for arm in (SEED, ORACLE)]
    return rows


# Recipe -> what differs from its chosen settings.
_BETWEEN: dict[str, dict[str, dict[str, Any]]] = {
    "noise": {
        "": {},
        ", guidance 1": {"guidance_scale": 1.0},
        ", bottleneck noise 0.5": {"noise_scale": 0.5, "update_rule": "symmetric"},
        ", bottleneck noise 1": {"noise_scale": 1.0, "update_rule": "symmetric"},
    },
    "tuned": {
        "": {},
        ", guidance 1": {"guidance_scale": 1.0},
        ", strength 1": {"strength": 1.0},
        ", strength 1, guidance 1": {"strength": 1.0, "guidance_scale": 1.0},
    },
}


def samples(specs: Specs, count: int) -> list[Variant]:
    """What lies between samples from noise and DreamDA, tuned: noise, guidance, the seed image."""
    return [Variant(f"{METHODS[recipe]}{what}", replace(SEED, recipe=recipe),
                    replace(specs[recipe], replicas=count,
                            settings=replace(specs[recipe].settings, **changes)))
            for recipe, rows in _BETWEEN.items() if recipe in specs
            for what, changes in rows.items()]  # fmt: skip


def adaptation(specs: Specs, count: int) -> list[Variant]:
    """img2img by the prior as it is, and adapted to ever more images, with and without labels."""
    rows = []
    for strength in (0.5, specs["img2img"].settings.strength, 1.0):
        settings = replace(specs["img2img"].settings, strength=strength)
        rows += [Variant(f"{name}, strength {strength:g}", replace(SEED, recipe="img2img"),
                         PoolSpec(kind, count, settings))
                 for kind, name in (("replicas", "not adapted"), *((k, k) for k in ADAPTED_TO))]
    return rows


def replacement(specs: Specs, count: int) -> list[Variant]:
    """Labeled images that are replaced by a replica with a probability, or joined by all."""
    ways = {"a third real": SEED, "N(K + 1) samples": replace(SEED, together=True),
            **{f"replace {p:g}": replace(SEED, replace=p) for p in (0.3, 0.5, 0.7)}}
    return [Variant(f"{METHODS[recipe]}, {name}", replace(arm, recipe=recipe),
                    replace(specs[recipe], replicas=count))
            for recipe in ("tuned", "noise") if recipe in specs for name, arm in ways.items()]


def amst(specs: Specs, count: int) -> list[Variant]:
    """The parts of AMST, one at a time, on the same images."""
    spec = replace(specs["tuned"], replicas=count)
    rounds = {"label every round": AMSTOptions(changes=(("relabel_every", 1),))}
    return [Variant(name, Arm("", "tuned", "amst", view=CHOSEN, amst=options), spec)
            for name, options in (AMST_PARTS | rounds | PLUS_PARTS).items()]


ABLATIONS: dict[str, Callable[[Specs, int], list[Variant]]] = {
    function.__name__: function for function in (
        replicas, strength, samples, adaptation, replacement, amst)
}
