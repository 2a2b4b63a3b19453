"""Image files of a folder as tensors, and PIL images as tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


class FolderImages:
    """Image files of a folder, flat or with one sub-folder per class, read as RGB when asked for.

    A dataset of (tensor (3, H, W) float in [0, 1], label or None), in name order. Hidden files and
    folders are left out.

    Attributes:
        root: the folder.
        paths: its image files.
        class_names: names of the sub-folders that hold images; empty if flat.
        labels: number of each file's class; None if flat.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise NotADirectoryError(
                f"{self.root}: expected a folder of images, found "
                f"{'a file' if self.root.exists() else 'nothing'}."
            )
        inside = sorted(path for path in self.root.iterdir() if not path.name.startswith("."))
        flat = [path for path in inside if _is_image(path)]
        of_class = {path.name: _image_files(path) for path in inside if path.is_dir()}
        of_class = {name: files for name, files in of_class.items() if files}
        if flat and of_class:
            raise ValueError(
                f"{self.root}: expected images or class folders, found both ({flat[0].name} beside "
                f"{next(iter(of_class))}/); move one of them elsewhere."
            )
        if not flat and not of_class:
            raise ValueError(
                f"{self.root}: expected image files ({' '.join(IMAGE_SUFFIXES)}) or class folders "
                f"of them, found none."
            )
        self.class_names = tuple(of_class)
        self.paths = flat or [path for files in of_class.values() for path in files]
        self.labels = None
        if of_class:
            self.labels = [
                label for label, files in enumerate(of_class.values()) for _ in range(len(files))
            ]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        from PIL import Image

        path = self.paths[index]
        try:
            with Image.open(path) as image:
                pixels = pil_to_tensor(image)
        except (OSError, SyntaxError, ValueError) as error:  # a broken PNG is a SyntaxError
            raise OSError(
                f"{path}: expected a readable image, found: {error}; remove or replace it."
            ) from error
        return as_colour(pixels), None if self.labels is None else self.labels[index]


def pil_to_tensor(image: Image) -> Tensor:
    """(1, H, W) for grey, (3, H, W) otherwise, float in [0, 1]; transparency is dropped."""
    import numpy as np

    mode = getattr(image, "mode", None)
    if mode is None or mode == "F":
        raise ValueError(
            f"images must be tensors or PIL images of bytes or 16-bit grey, got "
            f"{'a float PIL image' if mode else type(image).__name__}."
        )
    if mode.startswith("I"):
        # Pillow's own conversion to bytes clips at 255, which turns 16-bit X-rays white.
        pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / 65535
        return in_range(pixels[None])
    array = np.array(image.convert("L" if mode in ("1", "L", "LA") else "RGB"))
    pixels = torch.from_numpy(array)
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)).float() / 255


def in_range(image: Tensor) -> Tensor:
    if image.dtype == torch.uint8:
        return image.float() / 255
    if not image.is_floating_point():
        raise ValueError(f"images must be uint8 or float in [0, 1], got {image.dtype}.")
    # Written so that NaN fails too.
    if not (image.min() >= 0 and image.max() <= 1):
        raise ValueError(
            f"images must lie in [0, 1], got {image.min():.3g} to {image.max():.3g}; undo any "
            "normalisation first (a classifier's goes to classifier_features(mean=, std=))."
        )
    return image


def as_colour(images: Tensor) -> Tensor:
    return images.expand(*images.shape[:-3], 3, -1, -1) if images.shape[-3] == 1 else images


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _image_files(folder: Path) -> list[Path]:
    """Image files at any depth below ``folder``, hidden ones left out."""
    return sorted(
        path
        for path in folder.rglob("*")
        if _is_image(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
