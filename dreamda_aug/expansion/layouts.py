"""How synthetic images lie on disk: class folders or tar shards."""

import hashlib
import io
import re
import tarfile
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import PIL.Image

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.manifest import ManifestLine
from dreamda_aug.expansion.output import OutputFolder, read_bytes
from dreamda_aug.inputs.images import UNREADABLE
from dreamda_aug.inputs.opening import open_image

# Unfinished work lies here; the folder is gone once the dataset is whole.
WORK = ".dreamda"
# What else lies in a dataset's folder, or may be put there.
_TAKEN = {"manifest.jsonl", "skipped.jsonl", "plan.json", "dataset_card.md", "report.html",
          "metrics.json", "sha256sums", "readme.md", "metadata.jsonl", "croissant.json"}
# What Windows takes for a device, also with an ending.
_DEVICES = {"con", "prn", "aux", "nul",
            *(f"{port}{number}" for port in ("com", "lpt") for number in range(10))}


class Layout(Protocol):
    """How images lie on disk: `FolderLayout` or `ShardLayout`."""

    def file(self, unit: int, class_name: str, sample_id: str) -> str:
        """Path of a sample's image in the dataset, with "/"."""
        ...

    def write(self, unit: int, samples: Sequence[tuple[ManifestLine, bytes]]) -> None:
        """Write the images of a unit; may be repeated with the same bytes."""
        ...

    def damaged(self, unit: int, lines: Sequence[ManifestLine]) -> list[str]:
        """Files of a unit that are not there, or not what their lines say."""
        ...

    def beside(self, units: Collection[int]) -> set[int]:
        """These units, and those that can only be made again together with one of them."""
        ...

    def finish(self, units: int) -> None:
        """Put the units together, once all are there; may be repeated."""
        ...


class FolderLayout:
    """PNG files in class folders, as torchvision's ``ImageFolder`` reads them.

    Args:
        folder: the dataset's folder.
        classes: names of the classes; a folder has the same name where file systems allow it.
    """

    def __init__(self, folder: OutputFolder, classes: Sequence[str]):
        self.folder = folder
        self.folders = in_label_order(folder_names(classes))

    def file(self, unit: int, class_name: str, sample_id: str) -> str:
        return f"{self.folders[class_name]}/{sample_id}.png"

    def write(self, unit: int, samples: Sequence[tuple[ManifestLine, bytes]]) -> None:
        for line, png in samples:
            self.folder.write(line.file, [png])

    def damaged(self, unit: int, lines: Sequence[ManifestLine]) -> list[str]:
        return [line.file for line in lines if not self._holds(line)]

    def beside(self, units: Collection[int]) -> set[int]:
        return set(units)

    def finish(self, units: int) -> None:
        for name in self.folders.values():
            self.folder.tidy(name)

    def _holds(self, line: ManifestLine) -> bool:
        if line.file != f"{self.folders.get(line.class_name)}/{line.id}.png":
            return False
        try:
            return _is_image_of(read_bytes(self.folder, line.file), line)
        except FileNotFoundError:
            return False


class ShardLayout:
    """Tar files of ``ID.png``, ``ID.cls`` and ``ID.json``, as WebDataset reads them.

    Args:
        folder: the dataset's folder.
        batches_per_shard: how many units go into a shard.
    """

    def __init__(self, folder: OutputFolder, batches_per_shard: int):
        self.folder, self.batches_per_shard = folder, batches_per_shard
        # one shard holds many units, which are looked at one after the other
        self._looked_at: tuple[str, dict[str, str]] = ("", {})

    def file(self, unit: int, class_name: str, sample_id: str) -> str:
        return f"{self._shard(unit)}/{sample_id}.png"

    def write(self, unit: int, samples: Sequence[tuple[ManifestLine, bytes]]) -> None:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for line, png in samples:
                for suffix, data in _members(line, png):
                    member = tarfile.TarInfo(f"{line.id}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
            end = tar.offset
        self.folder.write(self._part(unit), [buffer.getvalue()[:end]])

    def damaged(self, unit: int, lines: Sequence[ManifestLine]) -> list[str]:
        part, shard = self._part(unit), self._shard(unit)
        found = self._digests(part if self.folder.exists(part) else shard)
        return [line.file for line in lines
                if line.file != f"{shard}/{line.id}.png" or not _is_recorded(found, line)]

    def beside(self, units: Collection[int]) -> set[int]:
        of_shards = {unit // self.batches_per_shard for unit in units
                     if not self.folder.exists(self._part(unit))
                     and self.folder.exists(self._shard(unit))}
        return set(units).union(*(
            range(shard * self.batches_per_shard, (shard + 1) * self.batches_per_shard)
            for shard in of_shards))

    def finish(self, units: int) -> None:
        present = set(self.folder.names(WORK))
        for first in range(0, units, self.batches_per_shard):
            shard = self._shard(first)
            last = min(first + self.batches_per_shard, units)
            parts = [self._part(unit) for unit in range(first, last)]
            if not all(part.partition("/")[2] in present for part in parts):
                if not self.folder.exists(shard):  # if it does, it was put together before
                    raise FileNotFoundError(f"{self.folder}: a part of {shard} is missing.")
            else:
                try:
                    self.folder.write(shard, self._contents(parts))
                except FileNotFoundError:
                    if not self.folder.exists(shard):  # if it does, another process was quicker
                        raise
            for part in parts:
                self.folder.remove(part)

    def _contents(self, parts: Sequence[str]) -> Iterator[bytes]:
        for part in parts:
            yield read_bytes(self.folder, part)
        yield bytes(2 * tarfile.BLOCKSIZE)  # a tar file ends with two blocks of zeros

    def _digests(self, name: str) -> dict[str, str]:
        """SHA-256 of each member of a tar file; of those before it, where one is damaged."""
        if self._looked_at[0] != name:
            found: dict[str, str] = {}
            self._looked_at = (name, found)
            try:
                with self.folder.open(name) as file, tarfile.open(fileobj=file, mode="r|") as tar:
                    for member in tar:
                        content = tar.extractfile(member)
                        data = content.read() if content else b""
                        if len(data) == member.size:
                            found[member.name] = hashlib.sha256(data).hexdigest()
            except (tarfile.TarError, FileNotFoundError, EOFError, ValueError):
                pass
        return self._looked_at[1]

    def _shard(self, unit: int) -> str:
        return f"shard-{unit // self.batches_per_shard:06d}.tar"

    def _part(self, unit: int) -> str:
        return f"{WORK}/{unit:08d}.tar"


def _members(line: ManifestLine, png: bytes) -> list[tuple[str, bytes]]:
    return [("png", png), ("cls", str(line.label).encode()), ("json", line.in_image().encode())]


def _is_image_of(png: bytes, line: ManifestLine) -> bool:
    """Whether file and line belong together, and neither was changed."""
    return (hashlib.sha256(png).hexdigest() == line.file_digest
            and line.in_image().encode() in png)


def _is_recorded(digests: dict[str, str], line: ManifestLine) -> bool:
    expected = {suffix: hashlib.sha256(data).hexdigest() for suffix, data in _members(line, b"")}
    expected["png"] = line.file_digest
    return all(digests.get(f"{line.id}.{suffix}") == digest for suffix, digest in expected.items())


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
            if (root / name).is_dir():
                continue  # a class of this name
            try:
                with tarfile.open(root / name, "r:") as tar:
                    for member in tar:
                        if member.name.endswith(".png"):
                            place = member.offset_data, member.size
                            self._places[f"{name}/{member.name}"] = place
            except (OSError, EOFError, ValueError, tarfile.TarError) as error:
                raise ExpansionError(
                    f"{root / name}: expected a shard, could not read it: {error}. Run the same "
                    "expansion again: it makes what is damaged anew."
                ) from error

    def in_shard(self, file: str) -> bool:
        """Whether a file lies in a shard."""
        return file in self._places

    def open(self, file: str) -> PIL.Image.Image:
        """The image, decoded.

        Raises:
            ExpansionError: it is damaged or not there; the message names it.
        """
        try:
            if not self.in_shard(file):
                return open_image(self.root / file)
            offset, size = self._places[file]
            with open((self.root / file).parent, "rb") as shard:
                shard.seek(offset)
                data = io.BytesIO(shard.read(size))
            with PIL.Image.open(data) as image:
                image.load()
                return image
        except UNREADABLE as error:
            raise ExpansionError(
                f"{self.root / file}: expected an image, could not read it: {error}. Run the same "
                "expansion again: it makes what is damaged anew."
            ) from error


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """A folder name for each class: the class's name where every file system allows it."""
    names: dict[str, str] = {}
    taken = set(_TAKEN)
    for class_name in classes:
        clean = re.sub(r"[^\w .+-]", "_", unicodedata.normalize("NFC", class_name))
        clean = clean.strip(" .")[:60].rstrip(" .") or "class"
        if clean.partition(".")[0].strip().casefold() in _DEVICES:
            clean = f"_{clean}"
        name, number = clean, 2
        while name.casefold() in taken:
            name, number = f"{clean}_{number}", number + 1
        taken.add(name.casefold())
        names[class_name] = name
    return names


def in_label_order(names: dict[str, str]) -> dict[str, str]:
    """Folder names with a number in front, where they would not be sorted in label order.

    ``ImageFolder`` and Hugging Face's ``imagefolder`` number classes as their folders are sorted.
    """
    if list(names.values()) == sorted(names.values()):
        return names
    digits = len(str(len(names) - 1))
    return {class_name: f"{label:0{digits}d}_{name}"
            for label, (class_name, name) in enumerate(names.items())}
