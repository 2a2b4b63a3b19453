"""A picture of what each recipe makes, to be looked at."""

from pathlib import Path

import torch
from torch import Tensor
from torchvision.utils import save_image

from benchmarks.accuracy.runs import Run, Setup, images_of, judge_of, pool_of
from dreamda_aug.evaluation.training import predict

COLUMNS = 10
_ENLARGED, _FRAME = 3, 1  # times, pixels
_WRONG, _RIGHT = (1.0, 0.2, 0.2), (0.15, 0.15, 0.15)


def draw(setup: Setup, run: Run, path: Path) -> None:
    """One row per class: a seed image, and images made of it, or for its class.

    Images that the judge takes for another class have a red frame.
    """
    images, pool, judge = images_of(setup, run), pool_of(setup, run), judge_of(setup)
    right = torch.ones(len(pool.pixels), dtype=torch.bool)
    if judge is not None:
        right = predict(judge, pool.pixels, setup.device) == pool.seed_labels
    cells = []
    for label in images.shots.labels.unique():
        seed = int((images.shots.labels == label).nonzero()[0])
        start = seed * run.spec.replicas
        made = range(start, start + min(COLUMNS, run.spec.replicas))
        cells.append(_framed(images.shots.pixels[seed], True))
        cells += [_framed(pool.pixels[i], bool(right[i])) for i in made]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(torch.stack(cells), path, nrow=1 + min(COLUMNS, run.spec.replicas), padding=2)


def _framed(pixels: Tensor, right: bool) -> Tensor:
    """(C, H, W) uint8 -> (3, H', W') in [0, 1], enlarged and framed."""
    image = pixels.float().expand(3, -1, -1) / 255
    image = image.repeat_interleave(_ENLARGED, 1).repeat_interleave(_ENLARGED, 2)
    colour = torch.tensor(_RIGHT if right else _WRONG).view(3, 1, 1)
    frame = colour.expand(-1, *(side + 2 * _FRAME for side in image.shape[1:])).clone()
    frame[:, _FRAME:-_FRAME, _FRAME:-_FRAME] = image
    return frame
