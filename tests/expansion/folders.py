"""Folders of seed images, what an expansion wrote, and processes that work on it."""

import multiprocessing
from dataclasses import dataclass
from pathlib import Path

import PIL.Image
import torch

from dreamda_aug.expansion import Filter


@dataclass
class ObjectsToSecond(Filter):
    """A filter that objects to images whose ``labels`` or ``seed_index`` is 1."""

    attribute: str
    name = "second"

    def measure(self, batch):
        objections = [value == 1 for value in getattr(batch, self.attribute)]
        return [float(each) for each in objections], objections


def write_images(root: Path, counts: dict[str, int], size: int = 16) -> Path:
    """Class folders of random grey PNG files; ``counts`` is images by class name."""
    generator = torch.Generator().manual_seed(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = torch.randint(256, (size, size), generator=generator, dtype=torch.uint8)
            PIL.Image.fromarray(pixels.numpy()).save(root / name / f"{i}.png")
    return root


def content(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(root)): path.read_bytes()
            for path in root.rglob("*") if path.is_file()}


def once_per_batch(make):
    """``BatchMaker.make`` that makes each batch once, and gives the same again."""
    made = {}

    def call(batch, planned, file_of):
        if batch not in made:
            made[batch] = make(batch, planned, file_of)
        return made[batch]

    return call


def in_child(function):
    """A forked process that runs a function."""
    process = multiprocessing.get_context("fork").Process(target=function)
    process.start()
    return process
