"""The cost of an expansion, before it starts."""

import math
import time
from dataclasses import dataclass, replace

from dreamda_aug.arguments import checked
from dreamda_aug.expansion.engines import cpu_threads
from dreamda_aug.expansion.expansion import Expansion
from dreamda_aug.files import format_bytes


@dataclass(frozen=True)
class Estimate:
    """The cost of an expansion.

    Attributes:
        seed_images: how many are used.
        samples: images to make.
        batches: how many batches they are made in.
        steps: reverse steps per image.
        denoiser_rows: batch rows that pass the denoiser in all, inversions included; a second
            decoder pass counts as half a row.
        disk_bytes: size of the dataset, from the images that were made to measure; or None.
        seconds: time for one process, by a linear fit over short runs; None if not measured.
    """

    seed_images: int
    samples: int
    batches: int
    steps: int
    denoiser_rows: int
    disk_bytes: int | None
    seconds: float | None

    def lines(self) -> list[str]:
        """The estimate as text."""
        found = [
            f"{self.samples} images from {self.seed_images} seed images, in {self.batches} batches",
            f"{self.steps} steps per image, {self.denoiser_rows:,} denoiser rows in all",
        ]
        if self.disk_bytes is not None:
            found.append(f"disk: about {format_bytes(self.disk_bytes)}")
        if self.seconds is not None:
            found.append(f"time: about {self.seconds / 3600:.2g} hours ({self.seconds:.0f} s) "
                         "in one process")
        return found


@checked
def estimate(expansion: Expansion, *, measure: bool = True) -> Estimate:
    """Count the work, and time a batch with few steps; writes nothing.

    Args:
        expansion: the work.
        measure: whether to generate the first batch with 1 and with 3 steps, from which the time
            for all steps follows.
    """
    plan, sampler = expansion.plan, expansion.maker.sampler
    settings, steps = sampler.settings, len(sampler.schedule)
    rows = sampler.rows(inversions=plan.inversions(settings.paths), samples=len(plan))
    seconds = disk_bytes = None
    if measure:
        with cpu_threads(expansion.metadata["threads"]):
            _measure(expansion, 1)  # the first run also prepares
            few, short, _ = _measure(expansion, 1)
            more, longer, size = _measure(expansion, 3)
        per_step = (longer - short) / (more - few) if more > few else longer / more
        share = len(plan) / plan.batch_length(0)
        seconds = max(short + per_step * (steps - few), 0.0) * share
        disk_bytes = round(size * share)
    return Estimate(len(plan.replicas), len(plan), plan.batches, steps, rows, disk_bytes, seconds)


def _measure(expansion: Expansion, steps: int) -> tuple[int, float, int]:
    """Steps run, seconds and bytes of the first batch with about that number of steps."""
    maker = expansion.maker
    settings = maker.sampler.settings
    fewer = min(settings.steps, math.ceil(steps / settings.strength))
    short = replace(maker.sampler, settings=replace(settings, steps=fewer))
    trial = replace(maker, sampler=short, filters=())
    started = time.perf_counter()
    samples, _ = trial.make(0, expansion.plan.batch(0), "{0:08d}/{1}/{2}.png".format)
    seconds = time.perf_counter() - started
    # the manifest holds each line once more
    size = sum(len(png) + len(line.to_json()) + 1 for line, png in samples)
    return len(short.schedule), seconds, size
