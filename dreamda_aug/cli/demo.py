"""The demo: the whole job on bundled images with the bundled backbone."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.utils.data import Subset

from dreamda_aug.bundled import FashionMNISTSample, fashion_mnist_judge
from dreamda_aug.expansion import expand
from dreamda_aug.generation.cache import LatentCache
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.images import read_pixels
from dreamda_aug.report.pictures import labelled_grid

SEEDS_PER_CLASS = 2
EXPANSION_RATIO = 4
NOISE_SCALES = (0.0, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class DemoRow:
    """One line of the demo's table.

    Attributes:
        noise_scale: as in `Settings`.
        agreement: share of replicas in which the bundled judge sees the seed's class, in [0, 1].
        distance: root mean square pixel distance from the seed image, in [0, 1].
        encoder_rows: U-Net rows through the down path per sample.
        decoder_rows: U-Net rows through the up path per sample.
        seconds: per sample.
    """

    noise_scale: float
    agreement: float
    distance: float
    encoder_rows: float
    decoder_rows: float
    seconds: float


def run_demo(out: Path, say: Callable[[str], None] = lambda line: None) -> list[DemoRow]:
    """Write ``grid.png`` and, in ``dataset``, class folders of PNG files with a manifest.

    Args:
        out: folder to write to; made if it does not exist.
        say: called with a line for each stage.

    Returns:
        One row per noise scale.
    """
    sample = FashionMNISTSample("test")
    chosen = [[i for i, label in enumerate(sample.targets) if label == c][:SEEDS_PER_CLASS]
              for c in range(len(sample.classes))]
    rows = [i for per_class in chosen for i in per_class]
    pixels = [read_pixels(sample[row][0]) for row in rows]
    images, digests = torch.cat([p.values for p in pixels]), [p.digests[0] for p in pixels]
    labels = torch.tensor(sample.targets)[rows]
    out.mkdir(parents=True, exist_ok=True)
    cache = LatentCache(out / "cache")
    synthesizer = Synthesizer("bundled", "recommended", cache=cache)
    core = synthesizer.core
    tap = core.backbone.tap
    say(f"settings: {core.settings.summary()}")

    say(f"inverting {len(images)} seed images ...")
    started, rows_before = time.perf_counter(), tap.encoder_rows
    trajectories = core.invert(images, digests)
    say(f"  {(time.perf_counter() - started) / len(images):.2f} s and "
        f"{(tap.encoder_rows - rows_before) / len(images):.0f} U-Net rows per image, once; cached: "
        f"{cache.info()}")

    judge = fashion_mnist_judge()
    table, columns = [], []
    for scale in NOISE_SCALES:
        started, before = time.perf_counter(), (tap.encoder_rows, tap.decoder_rows)
        made = core.generate([t for t in trajectories for _ in range(2)],
                                  noise_scales=[scale] * (2 * len(images)))
        seconds = time.perf_counter() - started
        seeds = images.repeat_interleave(2, 0)
        agree = judge(made).argmax(1) == labels.repeat_interleave(2)
        table.append(DemoRow(
            scale, agree.float().mean().item(),
            (made - seeds).flatten(1).square().mean(1).sqrt().mean().item(),
            (tap.encoder_rows - before[0]) / len(made), (tap.decoder_rows - before[1]) / len(made),
            seconds / len(made),
        ))
        columns.append(made.unflatten(0, (len(images), 2)))
        say(f"noise scale {scale:g}: {len(made)} images in {seconds:.0f} s")
    first = range(0, len(images), SEEDS_PER_CLASS)
    grid = labelled_grid(
        [[images[i], *(image for column in columns for image in column[i])] for i in first],
        sample.classes,
        ["seed", *(f"noise {scale:g}" for scale in NOISE_SCALES for _ in range(2))],
    )
    grid.save(out / "grid.png")
    say(f"wrote {out / 'grid.png'}")

    say(f"writing {EXPANSION_RATIO} replicas of each seed image ...")
    expand(Subset(sample, rows), out / "dataset", synthesizer, EXPANSION_RATIO, new=True,
           calibrate=False)  # these images are the model's own kind
    say(f"wrote {out / 'dataset'}")
    return table


def format_table(table: list[DemoRow]) -> str:
    """The demo's table for a terminal."""
    lines = ["noise scale  label agreement  distance  U-Net rows down/up  seconds per sample"]
    lines += [
        f"{row.noise_scale:11g}  {row.agreement:15.2f}  {row.distance:8.3f}  "
        f"{row.encoder_rows:12.1f} /{row.decoder_rows:5.1f}  {row.seconds:18.3f}"
        for row in table
    ]
    return "\n".join(lines)


def table_as_json(table: list[DemoRow]) -> str:
    """The demo's table as JSON."""
    return json.dumps([asdict(row) for row in table], indent=2) + "\n"
