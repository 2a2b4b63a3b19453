"""The demo: the whole job on bundled images with the bundled model."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Subset
from torchvision.transforms.v2 import functional as F

from dreamda_aug.bundled import FashionMNISTSample, fashion_mnist_judge
from dreamda_aug.datasets import AugmentedDataset
from dreamda_aug.expansion import expand
from dreamda_aug.generation.cache import LatentCache
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.metrics.distances import distance_and_diversity
from dreamda_aug.report.pictures import labeled_grid

SEEDS_PER_CLASS = 2
EXPANSION_RATIO = 8


@dataclass(frozen=True)
class DemoFigures:
    """What the demo measured.

    Attributes:
        images: synthetic images.
        agreement: share of them in which the bundled judge sees the seed's class, in [0, 1].
        distance: root mean square pixel distance from the seed image, in [0, 1].
        diversity: the same between replicas of one seed image.
        encoder_rows: U-Net rows through the down path per image, the inversion's share included.
        decoder_rows: U-Net rows through the up path per image.
        seconds: per image.
    """

    images: int
    agreement: float
    distance: float
    diversity: float
    encoder_rows: float
    decoder_rows: float
    seconds: float

    def __str__(self) -> str:
        """For a terminal."""
        return (f"{self.images} synthetic images: {self.agreement:.0%} show the class of their "
                f"seed image; distance from it {self.distance:.2f}, between replicas "
                f"{self.diversity:.2f} (RMS over pixels, 0 to 1)\n{self.seconds:.2f} s an image: "
                f"{self.encoder_rows:.0f} U-Net rows down, {self.decoder_rows:.0f} up")

    def save(self, path: Path) -> None:
        """Write the figures as JSON."""
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def run_demo(out: Path, say: Callable[[str], None] = lambda line: None) -> DemoFigures:
    """Write class folders of PNG files with a manifest to ``dataset``, and a picture of them.

    Args:
        out: folder to write to; made if it does not exist.
        say: called with a line for each stage.

    Returns:
        How far the images went, whether they kept their class, and what they cost.
    """
    sample = FashionMNISTSample("test")
    of_class = [torch.tensor(sample.targets).eq(label).nonzero()[:SEEDS_PER_CLASS, 0].tolist()
                for label in range(len(sample.classes))]
    rows = [row for members in of_class for row in members]
    seeds = Subset(sample, rows)
    out.mkdir(parents=True, exist_ok=True)
    cache = LatentCache(out / "cache")
    synthesizer = Synthesizer("bundled", "recommended", cache=cache)
    hook = synthesizer.model.hook
    say(f"settings: {synthesizer.settings.summary()}")
    say(f"{EXPANSION_RATIO} synthetic images of each of {len(rows)} seed images ...")
    before, started = (hook.encoder_rows, hook.decoder_rows), time.perf_counter()
    # these images are the model's own kind: it comes with their calibration
    expand(seeds, out / "dataset", synthesizer, EXPANSION_RATIO, new=True, calibrate=False)
    seconds = time.perf_counter() - started
    say(f"wrote {out / 'dataset'}; inversions: {cache}")

    stored = AugmentedDataset.from_folder(seeds, out / "dataset")
    real, made = _stack(stored.real), _stack(stored.synthetic)
    grid = labeled_grid(
        [[real[i], *made[i * EXPANSION_RATIO : (i + 1) * EXPANSION_RATIO]]
         for i in range(0, len(rows), SEEDS_PER_CLASS)],
        sample.classes, ["seed", *["synthetic"] * EXPANSION_RATIO])
    grid.save(out / "grid.png")
    say(f"wrote {out / 'grid.png'}")
    labels = torch.tensor([sample.targets[row] for row in rows])
    same = fashion_mnist_judge()(made).argmax(1) == labels.repeat_interleave(EXPANSION_RATIO)
    return DemoFigures(
        len(made), same.float().mean().item(), *distance_and_diversity(real, made),
        (hook.encoder_rows - before[0]) / len(made), (hook.decoder_rows - before[1]) / len(made),
        seconds / len(made))


def _stack(samples: Subset[Any]) -> Tensor:
    """PIL images as (N, C, H, W) in [0, 1]."""
    images = (samples[row][0] for row in range(len(samples)))
    return torch.stack([F.to_dtype(F.pil_to_tensor(image), scale=True) for image in images])
