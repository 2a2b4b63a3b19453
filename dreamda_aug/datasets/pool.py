"""Synthetic images on disk, a few seed images to a file, of the latest epochs that are made."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dreamda_aug.errors import StorageError
from dreamda_aug.files import remove_temporaries, write_atomically

_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class ImagePool:
    """A folder that one process writes and any number of processes read.

    A shard is all replicas of a few neighbouring seed images in one epoch: one safetensors file,
    which appears as a whole or not at all.

    Attributes:
        folder: where it lies.
        images: number of seed images, N.
        replicas: of each, K.
        images_per_shard: seed images to a shard, >= 1.
    """

    folder: Path
    images: int
    replicas: int
    images_per_shard: int

    @property
    def shards(self) -> int:
        """Shards of an epoch."""
        return math.ceil(self.images / self.images_per_shard)

    def images_of(self, shard: int) -> range:
        """The seed images of a shard."""
        start = shard * self.images_per_shard
        return range(start, min(start + self.images_per_shard, self.images))

    def epochs(self, shard: int) -> list[int]:
        """The epochs of which a shard is there, rising."""
        try:
            names = [path.name for path in self._place(shard).iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(name.removesuffix(_SUFFIX)) for name in names
                      if name.removesuffix(_SUFFIX).isdigit())

    def write(self, shard: int, epoch: int, values: Mapping[tuple[int, int], Tensor]) -> None:
        """Write a shard.

        Args:
            shard: its number.
            epoch: whose perturbation the images carry.
            values: by number of the seed image and of the replica: pixels (1, C, H, W), uint8 in
                [0, 255] where the seed image has 8 bits, else float32 in [0, 1].

        Raises:
            StorageError: the disk is full or refuses.
        """
        place = self._place(shard)
        place.mkdir(parents=True, exist_ok=True)
        data = safetensors.torch.save(
            {_name(*key): value.contiguous() for key, value in values.items()})
        write_atomically(place / f"{epoch}{_SUFFIX}", data)

    def read(self, image: int, replica: int, epoch: int) -> tuple[int, Tensor] | None:
        """The newest image of a replica that is no newer than an epoch.

        Args:
            image: number of the seed image.
            replica: number of the replica.
            epoch: the newest that may be taken.

        Returns:
            Its epoch, and its pixels, (1, C, H, W) float32 in [0, 1]; None: there is none.

        Raises:
            StorageError: a file is damaged.
        """
        shard = image // self.images_per_shard
        while ready := [each for each in self.epochs(shard) if each <= epoch]:
            path = self._place(shard) / f"{ready[-1]}{_SUFFIX}"
            try:
                with safetensors.safe_open(path, "pt") as file:
                    values = file.get_tensor(_name(image, replica))
            except FileNotFoundError:
                continue  # a newer one has taken its place meanwhile
            except safetensors.SafetensorError as error:
                raise StorageError(
                    f"{path}: expected a safetensors file with synthetic images, found something "
                    f"else ({error}). Start training again: the pool is made anew."
                ) from error
            return ready[-1], values.float() / 255 if values.dtype == torch.uint8 else values
        return None

    def drop_older(self, shard: int, epoch: int) -> None:
        """Delete what nobody asks for in this epoch or later: all but the newest up to it."""
        for old in [each for each in self.epochs(shard) if each <= epoch][:-1]:
            (self._place(shard) / f"{old}{_SUFFIX}").unlink(missing_ok=True)

    def remove_temporaries(self) -> None:
        """Delete what a killed writer left half-written."""
        for place in self._places():
            remove_temporaries(place)

    def _place(self, shard: int) -> Path:
        # two levels: no folder holds more than a thousand others
        return self.folder / f"{shard // 1000:04d}" / f"{shard % 1000:03d}"

    def _places(self) -> Iterator[Path]:
        with contextlib.suppress(FileNotFoundError):
            yield from self.folder.glob("[0-9]*/[0-9]*")


def _name(image: int, replica: int) -> str:
    return f"{image}/{replica}"
