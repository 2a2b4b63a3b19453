"""Priors that were adapted to the images of a run."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.accuracy.tasks import Images, Split
from dreamda_aug import adapt, adaptation, load_backbone
from dreamda_aug.backbones import Backbone
from dreamda_aug.inputs.images import fit_to

ADAPTATION_CODE = sorted(Path(adaptation.__file__).parent.glob("*.py"))


def labelled(images: Split) -> tuple[Images, bool]:
    """The labelled images of a run: what a user has."""
    return images.shots, True


def unlabelled(images: Split) -> tuple[Images, bool]:
    """All training images, without their labels."""
    return images.rest, False


def few_unlabelled(images: Split) -> tuple[Images, bool]:
    """50 training images, without their labels."""
    return images.rest[torch.arange(50)], False


# What a pool's prior is adapted to: from a split to images, and whether their labels are used.
ADAPTED_TO: dict[str, Callable[[Split], tuple[Images, bool]]] = {
    "adapted": labelled, "adapted to 50 without labels": few_unlabelled,
    "adapted without labels": unlabelled}  # fmt: skip


def adapted_backbone(
    kind: str, images: Split, backbone: Backbone, source: str, state: Path, rng_seed: int
) -> Backbone:
    """A backbone with LoRA weights that `dreamda_aug.adapt` trained with its own defaults.

    Args:
        kind: a key of `ADAPTED_TO`.
        images: the split of a run.
        backbone: the prior.
        source: what the prior was loaded from.
        state: folder; the weights are kept in it, and trained once.
        rng_seed: of the adaptation.
    """
    found, with_labels = ADAPTED_TO[kind](images)
    key = hashlib.sha256(found.pixels.numpy().tobytes())
    key.update(repr([kind, rng_seed, backbone.fingerprint]).encode())
    for path in ADAPTATION_CODE:
        key.update(path.read_bytes())
    folder = state / "adaptations" / key.hexdigest()[:16]
    adapt(fit_to(found.pixels.float() / 255, backbone), source, folder,
          labels=found.labels if with_labels else None,
          class_names=backbone.class_names if with_labels else None,
          device=backbone.device, rng_seed=rng_seed)  # fmt: skip
    return load_backbone(source, device=backbone.device, lora=folder)
