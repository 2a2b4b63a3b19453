"""How synthetic images lie on disk: class folders or tar shards."""

import io
import os
import re
import tarfile
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol

import PIL.Image

from dreamda_aug.files import atomic_file, remove_temporaries, write_atomically
from dreamda_aug.records.manifest import ManifestLine

# Unfinished work lies here; the folder is gone once the dataset is whole.
WORK = ".dreamda"


class Layout(Protocol):
    """How images lie on disk: `FolderLayout` or `ShardLayout`."""

    def file(self, unit: int, class_name: str, sample_id: str) -> str:
        """Path of a sample's image in the dataset, with "/"."""
        ...

    def write(self, unit: int, samples: Sequence[tuple[ManifestLine, bytes]]) -> None:
        """Write the images of a unit; may be repeated with the same bytes."""
        ...

    def holds(self, line: ManifestLine) -> bool:
        """Whether the image of a line is there."""
        ...

    def finish(self, units: int) -> None:
        """Put the units together, once all are there; may be repeated."""
        ...


class FolderLayout:
    """PNG files in class folders, as torchvision's ``ImageFolder`` reads them.

    Args:
        root: the dataset's folder.
        classes: names of the classes; a folder has the same name where file systems allow it.
    """

    def __init__(self, root: Path, classes: Sequence[str]):
        self.root = root
        self.folders = folder_names(classes)

    def file(self, unit: int, class_name: str, sample_id: str) -> str:
        return f"{self.folders[class_name]}/{sample_id}.png"

    def write(self, unit: int, samples: Sequence[tuple[ManifestLine, bytes]]) -> None:
        for line, png in samples:
            path = self.root / line.file
            path.parent.mkdir(exist_ok=True)
            write_atomically(path, png)

    def holds(self, line: ManifestLine) -> bool:
        return os.path.isfile(self.root / line.file)

    def finish(self, units: int) -> None:
        for folder in self.folders.values():
            remove_temporaries(self.root / folder)


class ShardLayout:
    """Tar files of ``ID.png``, ``ID.cls`` and ``ID.json``, as WebDataset reads them.

    Args:
        root: the dataset's folder.
        units_per_shard: how many units go into a shard.
    """

    def __init__(self, root: Path, units_per_shard: int):
        self.root, self.units_per_shard = root, units_per_shard

    def file(self, unit: int, class_name: str, sample_id: str) -> str:
        return f"{self._shard(unit // self.units_per_shard).name}/{sample_id}.png"

    def write(self, unit: int, samples: Sequence[tuple[ManifestLine, bytes]]) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for line, png in samples:
                for suffix, data in (("png", png), ("cls", str(line.label).encode()),
                                     ("json", line.to_json().encode())):
                    member = tarfile.TarInfo(f"{line.id}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
            end = tar.offset
        write_atomically(self._part(unit), buffer.getvalue()[:end])

    def holds(self, line: ManifestLine) -> bool:
        return self._part(line.unit).is_file() or (self.root / line.file).parent.is_file()

    def finish(self, units: int) -> None:
        for shard in range(-(-units // self.units_per_shard)):
            path, first = self._shard(shard), shard * self.units_per_shard
            parts = [self._part(u) for u in range(first, min(first + self.units_per_shard, units))]
            if path.exists():
                continue
            try:
                with atomic_file(path) as file:
                    for part in parts:
                        file.write(part.read_bytes())
                    # a tar file ends with two blocks of zeros
                    file.write(bytes(2 * tarfile.BLOCKSIZE))
            except FileNotFoundError:
                if not path.exists():  # if it does, another process was quicker
                    raise
            for part in parts:
                part.unlink(missing_ok=True)

    def _shard(self, number: int) -> Path:
        return self.root / f"shard-{number:06d}.tar"

    def _part(self, unit: int) -> Path:
        return self.root / WORK / f"{unit:08d}.tar"


class StoredImages:
    """Reads single images of a dataset in any layout; may be pickled to workers.

    Args:
        root: the dataset's folder.
        files: the files of the manifest lines that will be read; only the headers of their shards
            are looked at now.
    """

    def __init__(self, root: Path, files: Iterable[str]):
        self.root = root
        self._places: dict[str, tuple[int, int]] = {}
        for name in sorted({file.split("/")[0] for file in files if ".tar/" in file}):
            with tarfile.open(root / name, "r:") as tar:
                for member in tar:
                    if member.name.endswith(".png"):
                        self._places[f"{name}/{member.name}"] = (member.offset_data, member.size)

    def in_shard(self, file: str) -> bool:
        """Whether a file lies in a shard."""
        return file in self._places

    def open(self, file: str) -> PIL.Image.Image:
        """The image, decoded."""
        if self.in_shard(file):
            offset, size = self._places[file]
            with open((self.root / file).parent, "rb") as shard:
                shard.seek(offset)
                data = io.BytesIO(shard.read(size))
            with PIL.Image.open(data) as image:
                image.load()
                return image
        with PIL.Image.open(self.root / file) as image:
            image.load()
            return image


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """A folder name for each class: the class's name where every file system allows it."""
    names: dict[str, str] = {}
    taken = set()
    for class_name in classes:
        clean = re.sub(r"[^\w .+-]", "_", unicodedata.normalize("NFC", class_name))
        clean = clean.strip(" .")[:60] or "class"
        name, number = clean, 2
        while name.casefold() in taken:
            name, number = f"{clean}_{number}", number + 1
        taken.add(name.casefold())
        names[class_name] = name
    return names
