"""What an expansion will cost, before it is begun."""

import math
import time
from dataclasses import dataclass, replace

import torch

from dreamda_aug.expansion.batches import BatchMaker
from dreamda_aug.expansion.expansion import Expansion
from dreamda_aug.expansion.layouts import FolderLayout
from dreamda_aug.expansion.output import LocalFolder
from dreamda_aug.expansion.sharding import cpu_threads
from dreamda_aug.files import format_bytes
from dreamda_aug.generation.cache import estimate_bytes
from dreamda_aug.generation.tensors import TensorSynthesizer


@dataclass(frozen=True)
class Estimate:
    """The cost of an expansion.

    Attributes:
        seed_images: how many are used.
        samples: images to make.
        units: batches that they are made in.
        steps: reverse steps per image.
        unet_rows: rows that pass the U-Net in all, inversions included.
        disk_bytes: size of the dataset, from the images that were made to measure; None if none.
        inversion_bytes: memory that a batch's inversions take; nothing is cached on disk.
        seconds: time for one process, by a linear fit over short runs; None if not measured.
    """

    seed_images: int
    samples: int
    units: int
    steps: int
    unet_rows: int
    disk_bytes: int | None
    inversion_bytes: int
    seconds: float | None

    def lines(self) -> list[str]:
        """The estimate in words."""
        found = [
            f"{self.samples} images from {self.seed_images} seed images, in {self.units} batches",
            f"{self.steps} steps per image, {self.unet_rows:,} U-Net rows in all",
            f"inversion cache: none on disk, {format_bytes(self.inversion_bytes)} of memory",
        ]
        if self.disk_bytes is not None:
            found.append(f"disk: about {format_bytes(self.disk_bytes)}")
        if self.seconds is not None:
            found.append(f"time: about {self.seconds / 3600:.2g} hours ({self.seconds:.0f} s) "
                         "in one process")
        return found


def estimate(expansion: Expansion, *, measure: bool = True) -> Estimate:
    """Count the work, and time a batch with few steps; writes nothing.

    Args:
        expansion: the work.
        measure: generate the first batch with 1 and with 3 steps; the time for all steps follows
            from the two.
    """
    plan, core = expansion.plan, expansion.core
    settings, steps = core.settings, len(core.schedule)
    inversions = plan.inversions(settings.paths)
    inverted_rows = inversions * steps if settings.replay != 0 else 0
    per_unit = math.ceil(inversions / plan.units)
    residual_steps = steps if settings.inversion.records_residuals else 0
    passes = steps + core.model.guidable * settings.guided_steps(steps)
    latent = core.model.encode(_blank(core))[0].shape
    seconds = disk_bytes = None
    if measure:
        with cpu_threads(expansion.threads):
            _measure(expansion, 1)  # the first run also prepares
            few, short, _ = _measure(expansion, 1)
            more, longer, size = _measure(expansion, 3)
        per_step = (longer - short) / (more - few) if more > few else longer / more
        one_unit = max(short + per_step * (steps - few), 0.0)
        seconds = one_unit * len(plan) / len(plan.unit(0))
        disk_bytes = round(size / len(plan.unit(0)) * len(plan))
    return Estimate(
        seed_images=plan.seed_images,
        samples=len(plan),
        units=plan.units,
        steps=steps,
        unet_rows=inverted_rows + len(plan) * passes,
        disk_bytes=disk_bytes,
        inversion_bytes=estimate_bytes(tuple(latent), residual_steps, per_unit),
        seconds=seconds,
    )


def _measure(expansion: Expansion, steps: int) -> tuple[int, float, int]:
    """Steps run, seconds and bytes of the first unit with about that number of steps."""
    core, maker = expansion.core, expansion.maker
    settings = core.settings
    assert settings.strength is not None
    fewer = min(settings.steps, math.ceil(steps / settings.strength))
    short = TensorSynthesizer(core.model, replace(settings, steps=fewer),
                      batch_size=core.batch_size, rng_seed=core.rng_seed)
    trial = BatchMaker(expansion.source, short, maker.condition_of)
    started = time.perf_counter()
    samples, _ = trial.make(0, expansion.plan.unit(0),
                            FolderLayout(LocalFolder(""), expansion.source.classes))
    seconds = time.perf_counter() - started
    # the manifest holds each line once more
    size = sum(len(png) + len(line.to_json()) + 1 for line, png in samples)
    return len(short.schedule), seconds, size


def _blank(core: TensorSynthesizer) -> torch.Tensor:
    model = core.model
    return torch.zeros(1, model.channels, *model.image_size)
