"""Priors that were adapted to the images of a run."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.accuracy.tasks import Images, Split
from dreamda_aug import ModelSpec, adapt, adaptation, load_model
from dreamda_aug.inputs.pixels import fit_to
from dreamda_aug.models import DiffusionModel

ADAPTATION_CODE = sorted(Path(adaptation.__file__).parent.glob("*.py"))


def labeled(images: Split) -> tuple[Images, bool]:
    """The labeled images of a run: what a user has."""
    return images.shots, True


def unlabeled(images: Split) -> tuple[Images, bool]:
    """All training images, without their labels."""
    return images.rest, False


def few_unlabeled(images: Split) -> tuple[Images, bool]:
    """50 training images, without their labels."""
    return images.rest[torch.arange(50)], False


# What a pool's prior is adapted to: from a split to images, and whether their labels are used.
ADAPTED_TO: dict[str, Callable[[Split], tuple[Images, bool]]] = {
    "adapted": labeled, "adapted to 50 without labels": few_unlabeled,
    "adapted without labels": unlabeled}  # fmt: skip


def adapted_model(
    kind: str, images: Split, model: DiffusionModel, source: str, state: Path, rng_seed: int
) -> DiffusionModel:
    """A model with LoRA weights that `dreamda_aug.adapt` trained with its own defaults.

    Args:
        kind: a key of `ADAPTED_TO`.
        images: the split of a run.
        model: the prior.
        source: what the prior was loaded from.
        state: folder; the weights are kept in it, and trained once.
        rng_seed: of the adaptation.
    """
    found, with_labels = ADAPTED_TO[kind](images)
    key = hashlib.sha256(found.pixels.numpy().tobytes())
    key.update(repr([kind, rng_seed, model.fingerprint]).encode())
    for path in ADAPTATION_CODE:
        key.update(path.read_bytes())
    folder = state / "adaptations" / key.hexdigest()[:16]
    adapt(fit_to(found.pixels.float() / 255, model), ModelSpec(source, model.device), folder,
          labels=found.labels if with_labels else None,
          class_names=model.class_names if with_labels else None, rng_seed=rng_seed)  # fmt: skip
    return load_model(source, device=model.device, lora=folder)
