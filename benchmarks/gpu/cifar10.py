"""A prior of CIFAR-10: its packed images, and its training.

    python -m benchmarks.gpu.cifar10 FOLDER build/cifar10      # packs them; FOLDER as for the study

The prior is trained on the first 25,000 training images; a study draws its images from the others.
They are packed as five atlases of JPEG at quality 95, which takes about 30 MB.
"""

import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from benchmarks.accuracy.tasks import TASKS
from dreamda_aug import load_model, train

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
IMAGES, _ATLASES, _COLUMNS, _SIDE = 25_000, 5, 50, 32


def pack(pixels: Tensor, labels: Tensor, folder: Path) -> None:
    """Write images (N, 3, 32, 32) uint8 and labels; N is a multiple of 250."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(pixels.chunk(_ATLASES)):
        tiles = part.unflatten(0, (-1, _COLUMNS)).permute(0, 3, 1, 4, 2)
        atlas = tiles.reshape(-1, _COLUMNS * _SIDE, 3).numpy()
        # without subsampling, whose blocks would reach into the next image
        PIL.Image.fromarray(atlas).save(folder / f"{number}.jpg", quality=95, subsampling=0)
    np.save(folder / "labels.npy", labels.numpy().astype(np.uint8))


def unpack(folder: Path) -> tuple[Tensor, list[int]]:
    """What `pack` wrote."""
    parts = []
    for number in range(_ATLASES):
        atlas = torch.from_numpy(np.array(PIL.Image.open(folder / f"{number}.jpg")))
        tiles = atlas.unflatten(0, (-1, _SIDE)).unflatten(2, (_COLUMNS, _SIDE))
        parts.append(tiles.permute(0, 2, 4, 1, 3).flatten(0, 1))
    return torch.cat(parts), np.load(folder / "labels.npy").tolist()


def train_prior(
    data: Path | None, work: Path, out: Path, device: str, minutes: float, tiny: bool
) -> dict[str, Any]:
    """Train, or resume; the weights go into ``out/cifar10.zip`` in half precision."""
    if tiny:
        pixels = torch.randint(0, 256, (250, 3, _SIDE, _SIDE), dtype=torch.uint8)
        labels = torch.arange(250) % 10
        pack(pixels, labels, work / "images")
        data = work / "images"
    if data is None:
        raise SystemExit("--data must name the packed images for this part.")
    images, numbers = unpack(data)
    options: dict[str, Any] = (
        dict(width="small", batch_size=4, train_steps=3) if tiny
        else dict(width="medium", batch_size=256, train_steps=100_000, minutes=minutes, flip=0.5))
    found = train(images, work / "cifar10", labels=numbers, class_names=CLASSES, image_size=_SIDE,
                  device=device, progress=True, **options)
    model = load_model(found.out, device="cpu", dtype="float16")
    half = work / "cifar10_half"
    model.pipeline.save_pretrained(half)
    path = out / "cifar10.zip"
    with zipfile.ZipFile(path, "w") as file:
        for each in sorted(path for path in half.rglob("*") if path.is_file()):
            file.write(each, each.relative_to(half))
        for name in ("training.json", "samples.png"):
            file.write(found.out / name, name)
    return {"steps": found.steps, "best_step": found.best_step, "held_out_loss": found.loss,
            "history": found.history, "bytes": path.stat().st_size, **options}


if __name__ == "__main__":
    read, _ = TASKS["cifar10"].read(Path(sys.argv[1]))
    pack(read.pixels[:IMAGES], read.labels[:IMAGES], Path(sys.argv[2]))
