"""Planning and resuming an expansion of many images: how long it takes, and how much memory.

The images are tiny and the pixel model is tiny and random: what is measured is the book-keeping.
"""

import contextlib
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import PIL.Image
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from torchvision.datasets import ImageFolder

from benchmarks.common.memory import resident_peak
from dreamda_aug import AugmentedDataset, Synthesizer, load_model
from dreamda_aug.expansion import Expansion
from dreamda_aug.expansion.engines import Progress
from dreamda_aug.models import DiffusionModel
from dreamda_aug.report import write_report

_T = TypeVar("_T")


class Interrupted(Exception):
    """Stops a run as an interruption would."""


class Stopwatch:
    """Times named stages, and notes the process's peak memory after each.

    Attributes:
        seconds: stage -> time.
        peak_mb: stage -> peak so far.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_mb: dict[str, int] = {}

    def timed(self, stage: str, function: Callable[[], _T]) -> _T:
        """Call a function as one stage."""
        started = time.perf_counter()
        result = function()
        self.seconds[stage] = round(time.perf_counter() - started, 2)
        self.peak_mb[stage] = resident_peak() // 2**20
        print(f"{stage}: {self.seconds[stage]} s, peak {self.peak_mb[stage]} MB", flush=True)
        return result


def measure_expansion(
    images: int, classes: int, ratio: int, batch_size: int, image_format: str
) -> dict[str, Any]:
    """Expand a folder, stop half-way, go on, and read the result.

    Args:
        images: seed images.
        classes: class folders that they lie in.
        ratio: synthetic images of each.
        batch_size: of the expansion.
        image_format: as in `Expansion`.

    Returns:
        The arguments, time and peak memory of each stage, and the machine.
    """
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "train", Path(folder) / "out"
        write_images(root, images, classes)
        synthesizer = Synthesizer(tiny_model(), "paper", steps=2, noise_scale=1.0, cache=None,
                                  batch_size=batch_size)

        def plan() -> Expansion:
            return Expansion(root, synthesizer, ratio, image_format=image_format)

        # one batch in advance: what the model itself needs is not what is measured
        Expansion(root, synthesizer, 1, limit=batch_size).run(Path(folder) / "warm")
        model_mb = resident_peak() // 2**20
        expansion = watch.timed("plan", plan)
        watch.timed("first half", lambda: run_until(expansion, out, share=0.5))
        watch.timed("plan and resume half-way, to the first batch",
                    lambda: run_until(plan(), out, share=0.0))
        summary = watch.timed("second half, and merging", lambda: plan().run(out))
        assert summary.whole and summary.stats.made == images * ratio
        watch.timed("the same command on the finished dataset", lambda: plan().run(out))
        watch.timed("report", lambda: write_report(out))
        data = watch.timed("from_folder",
                           lambda: AugmentedDataset.from_folder(ImageFolder(root), out))
        assert len(data) == images * (ratio + 1)
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {
        "images": images, "ratio": ratio, "batch_size": batch_size, "format": image_format,
        "seconds": watch.seconds, "peak_mb": {"model": model_mb, **watch.peak_mb},
        "peak_over_model_mb": max(watch.peak_mb.values()) - model_mb,
        "output_mb": round(size / 1e6), "torch": torch.__version__,
        "machine": platform.machine(), "threads": torch.get_num_threads(),
    }  # fmt: skip


def run_until(expansion: Expansion, out: Path, share: float) -> None:
    """Run an expansion, and interrupt it once this share of its samples is on disk."""

    def stop(progress: Progress) -> None:
        if progress.stage == "making" and progress.done >= share * progress.total:
            raise Interrupted

    with contextlib.suppress(Interrupted):
        expansion.run(out, progress=stop)


def write_images(root: Path, images: int, classes: int) -> None:
    """Random grey images of 16×16 pixels, in class folders."""
    rng = np.random.default_rng(0)
    for number in range(images):
        folder = root / f"class{number % classes:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(16, 16), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")


def tiny_model() -> DiffusionModel:
    """A random pixel U-Net of 16×16 pixels."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).eval()
    return load_model(DDPMPipeline(unet, DDPMScheduler(clip_sample=False)))
