"""The command `demo`: the whole job on bundled images with the bundled model."""

import json
import time
from argparse import Namespace
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.functional import to_tensor

from dreamda_aug.bundled import FashionMNISTSample, fashion_mnist_judge
from dreamda_aug.cli.options import command, say
from dreamda_aug.datasets import AugmentedDataset
from dreamda_aug.expansion import expand
from dreamda_aug.generation.cache import LatentCache
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.metrics.distances import distance_and_diversity
from dreamda_aug.report.pictures import labeled_grid

SEEDS_PER_CLASS = 2
EXPANSION_RATIO = 8


@command()
def demo(args: Namespace, *, out: str | Path = "demo") -> None:
    """Write a dataset, a picture of it, and figures about it.

    Args:
        out: folder to write to.
    """
    began, folder = time.perf_counter(), Path(out)
    sample = FashionMNISTSample("test")
    of_class = [torch.tensor(sample.targets).eq(label).nonzero()[:SEEDS_PER_CLASS, 0].tolist()
                for label in range(len(sample.classes))]
    rows = [row for members in of_class for row in members]
    seeds = Subset(sample, rows)
    folder.mkdir(parents=True, exist_ok=True)
    cache = LatentCache(folder / "cache")
    synthesizer = Synthesizer("bundled", "recommended", cache=cache)
    hook = synthesizer.model.hook
    say(f"settings: {synthesizer.settings.summary()}")
    say(f"{EXPANSION_RATIO} synthetic images of each of {len(rows)} seed images ...")
    started = time.perf_counter()
    # these images are the model's own kind: it comes with their calibration
    expand(seeds, folder / "dataset", synthesizer, EXPANSION_RATIO, new=True, calibrate=False)
    seconds = time.perf_counter() - started
    say(f"wrote {folder / 'dataset'}; inversions: {cache}")

    stored = AugmentedDataset.from_folder(seeds, folder / "dataset", transform=to_tensor)
    real, made = (next(iter(DataLoader(part, len(part))))[0]
                  for part in (stored.real, stored.synthetic))
    grid = labeled_grid(
        [[real[i], *made[i * EXPANSION_RATIO : (i + 1) * EXPANSION_RATIO]]
         for i in range(0, len(rows), SEEDS_PER_CLASS)],
        sample.classes, ["seed", *["synthetic"] * EXPANSION_RATIO])
    grid.save(folder / "grid.png")
    say(f"wrote {folder / 'grid.png'}")
    same = fashion_mnist_judge()(made).argmax(1) == torch.tensor(stored.targets[len(rows):])
    agreement, count = same.float().mean().item(), len(made)
    distance, diversity = distance_and_diversity(real, made)
    # U-Net rows per image through the down and the up path, the inversion's share included
    encoder_rows, decoder_rows = hook.encoder_rows / count, hook.decoder_rows / count
    (folder / "figures.json").write_text(json.dumps({
        "images": count, "agreement": agreement, "distance": distance, "diversity": diversity,
        "encoder_rows": encoder_rows, "decoder_rows": decoder_rows, "seconds": seconds / count,
    }, indent=2) + "\n")
    say(f"\n{count} synthetic images: {agreement:.0%} show the class of their seed image; distance "
        f"from it {distance:.2f}, between replicas {diversity:.2f} (RMS over pixels, 0 to 1)\n"
        f"{seconds / count:.2f} s an image: {encoder_rows:.0f} U-Net rows down, "
        f"{decoder_rows:.0f} up\n\n{time.perf_counter() - began:.0f} s in all")
