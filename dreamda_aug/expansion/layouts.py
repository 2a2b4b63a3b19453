"""How synthetic images lie on disk: class folders or tar shards."""

import hashlib
import io
import re
import tarfile
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain
from pathlib import Path

import PIL.Image

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.manifest import ManifestLine
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.files import open_file, regular_file
from dreamda_aug.inputs.listing import UNREADABLE, open_image

# Unfinished work lies here; the folder is gone once the dataset is complete.
WORK = ".dreamda"
# An empty file in the folder of a class that has no images: object stores have no empty folders.
_NO_IMAGES = ".keep"
# What else lies in a dataset's folder, or may be put there; and what names a device on Windows.
_TAKEN = {"manifest.jsonl", "skipped.jsonl", "plan.json", "report.html", "metrics.json",
          "sha256sums", "readme.md", "metadata.jsonl", "metadata.parquet", "croissant.json",
          "con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))}


class FolderLayout:
    """PNG files in class folders, as torchvision's ``ImageFolder`` reads them.

    A class without images has a folder too, or readers would give its number to the next one.
    """

    def __init__(self, folder: OutputFolder, classes: Sequence[str]):
        self.folder = folder
        self.folders = folder_names(classes)

    def file(self, batch: int, class_name: str, sample_id: str) -> str:
        """Path of a sample's image in the dataset, with "/"."""
        return f"{self.folders[class_name]}/{sample_id}.png"

    def write(self, batch: int, samples: Sequence[tuple[ManifestLine, bytes]]) -> None:
        """Write the images of a batch; may be repeated with the same bytes."""
        for line, png in samples:
            self.folder.write(line.file, [png])

    def damaged(self, batch: int, lines: Sequence[ManifestLine]) -> list[str]:
        """Files of a batch that are missing, or differ from their lines."""
        return [line.file for line in lines if not self._holds(line)]

    def beside(self, batches: Collection[int]) -> set[int]:
        """These batches, and those that can only be made again together with one of them."""
        return set(batches)

    def finish(self, batches: int) -> None:
        """Put the batches together, once all are there; may be repeated."""
        for name in self.folders.values():
            self.folder.tidy(name)
            if not self.folder.names(name):
                self.folder.write(f"{name}/{_NO_IMAGES}", [])

    def _holds(self, line: ManifestLine) -> bool:
        try:
            png = self.folder.read(line.file)
        except FileNotFoundError:
            return False
        return (line.file == f"{self.folders.get(line.class_name)}/{line.id}.png"
                and _sha256(png) == line.file_digest and line.in_image().encode() in png)


class ShardLayout:
    """Tar files of ``ID.png``, ``ID.cls`` and ``ID.json``, as WebDataset reads them.

    A batch is a file of its own, a part, until all parts of its shard are there. Methods are those
    of `FolderLayout`.
    """

    def __init__(self, folder: OutputFolder, batches_per_shard: int):
        self.folder, self.batches_per_shard = folder, batches_per_shard

    def file(self, batch: int, class_name: str, sample_id: str) -> str:
        return f"{self._shard(batch)}/{sample_id}.png"

    def write(self, batch: int, samples: Sequence[tuple[ManifestLine, bytes]]) -> None:
        self.folder.write(self._part(batch), (
            _member(name, data) for line, png in samples
            for name, data in _members(line, png).items()))

    def damaged(self, batch: int, lines: Sequence[ManifestLine]) -> list[str]:
        part, shard = self._part(batch), self._shard(batch)
        found = _digests(self.folder, part if self.folder.exists(part) else shard)

        def holds(line: ManifestLine) -> bool:
            expected = {name: _sha256(data) for name, data in _members(line, b"").items()}
            expected[f"{line.id}.png"] = line.file_digest
            return line.file == f"{shard}/{line.id}.png" and expected.items() <= found.items()

        return [line.file for line in lines if not holds(line)]

    def beside(self, batches: Collection[int]) -> set[int]:
        size, found, shards = self.batches_per_shard, set(batches), self.folder.names()
        for first in {batch // size * size for batch in batches}:
            several = {*range(first, first + size)}
            parts = map(self._part, several.intersection(batches))
            if self._shard(first) in shards and not all(map(self.folder.exists, parts)):
                found |= several
        return found

    def finish(self, batches: int) -> None:
        for first in range(0, batches, self.batches_per_shard):
            last = min(first + self.batches_per_shard, batches)
            parts = list(map(self._part, range(first, last)))
            # a tar file ends with two blocks of zeros
            content = chain(map(self.folder.read, parts), [bytes(2 * tarfile.BLOCKSIZE)])
            try:
                self.folder.write(self._shard(first), content)
            except FileNotFoundError:
                if not self.folder.exists(self._shard(first)):  # else it was put together before
                    raise
            for part in parts:
                self.folder.remove(part)

    def _shard(self, batch: int) -> str:
        return f"shard-{batch // self.batches_per_shard:06d}.tar"

    def _part(self, batch: int) -> str:
        return f"{WORK}/{batch:08d}.tar"


Layout = FolderLayout | ShardLayout


class StoredImages:
    """Reads single images of a dataset in any layout; may be pickled to workers.

    Of the ``files`` that will be read, the headers of their shards are read now; ExpansionError if
    one is damaged or missing.
    """

    def __init__(self, out: Path, files: Iterable[str]):
        self.out = out
        self._found: dict[str, tuple[int, int]] = {}
        for name in sorted({file.split("/")[0] for file in files if ".tar/" in file}):
            if (out / name).is_dir():
                continue  # a class of this name
            with _named(out / name, "a shard"), tarfile.open(
                    regular_file(out / name), "r:") as tar:
                self._found |= {f"{name}/{member.name}": (member.offset_data, member.size)
                                for member in tar if member.name.endswith(".png")}

    def in_shard(self, file: str) -> bool:
        """Whether a file lies in a shard."""
        return file in self._found

    def open(self, file: str) -> PIL.Image.Image:
        """The image, decoded; ExpansionError if it is damaged or missing."""
        with _named(self.out / file, "an image"):
            if file not in self._found:
                return open_image(self.out / file)
            offset, size = self._found[file]
            with open_file((self.out / file).parent) as shard:
                shard.seek(offset)
                with PIL.Image.open(io.BytesIO(shard.read(size))) as image:
                    image.load()
            return image


def folder_names(classes: Sequence[str]) -> dict[str, str]:
    """A folder for each class: its name, as far as every file system allows it.

    ``ImageFolder`` and Hugging Face's ``imagefolder`` number classes as their folders sort; where
    that is not the order of labels, names have the label in front.
    """
    names: dict[str, str] = {}
    taken = set(_TAKEN)
    for class_name in classes:
        clean = re.sub(r"[^\w .+-]", "_", unicodedata.normalize("NFC", class_name))
        clean = clean.strip(" .")[:60].rstrip(" .") or "class"
        name, number = clean, 2
        while name.casefold() in taken:
            name, number = f"{clean}_{number}", number + 1
        taken.add(name.casefold())
        names[class_name] = name
    if list(names.values()) != sorted(names.values()):
        digits = len(str(len(names) - 1))
        names = {each: f"{label:0{digits}d}_{name}"
                 for label, (each, name) in enumerate(names.items())}
    return names


@lru_cache(maxsize=1)  # a shard holds many batches, which are looked at one after the other
def _digests(folder: OutputFolder, name: str) -> dict[str, str]:
    """SHA-256 of each member of a tar file; of those before it, if one is damaged."""
    found: dict[str, str] = {}
    with suppress(tarfile.TarError, FileNotFoundError, EOFError, ValueError):
        with folder.open(name) as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member)
                found[member.name] = _sha256(content.read() if content else b"")
    return found


def _members(line: ManifestLine, png: bytes) -> dict[str, bytes]:
    return {f"{line.id}.png": png, f"{line.id}.cls": str(line.label).encode(),
            f"{line.id}.json": line.in_image().encode()}


def _member(name: str, data: bytes) -> bytes:
    """A file as it lies in a tar file: header, content, and zeros to the end of its last block."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    return info.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _named(path: Path, expected: str) -> Iterator[None]:
    try:
        yield
    except (*UNREADABLE, tarfile.TarError) as error:
        raise ExpansionError(
            f"{path}: expected {expected}, could not read it: {error}. Run the same expansion "
            "again: it makes what is damaged anew.") from error
