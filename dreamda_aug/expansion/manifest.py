"""What is on record: a dataset's metadata, and a line for each planned sample."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from dreamda_aug.arguments import shown
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.files import local_path, parse_json, read_lines
from dreamda_aug.method.inversion import CycleDiffusion, DDIMInversion
from dreamda_aug.method.perturbation import BottleneckNoise
from dreamda_aug.method.settings import Settings
from dreamda_aug.models.conditioning import Condition
from dreamda_aug.version import __version__

FORMAT = {"format": "dreamda-expansion", "format_version": 2}
PLAN, CARD, MANIFEST, SKIPPED = "plan.json", "README.md", "manifest.jsonl", "skipped.jsonl"
# Prefix of the reason of a sample that was made, and left out because a filter objected.
FLAGGED = "flagged: "

# What settings may hold beside numbers and text; another class is written down, not read back.
_PARTS: dict[str, Callable[..., Any]] = {
    cls.__name__: cls for cls in (CycleDiffusion, DDIMInversion, BottleneckNoise)
}

class _Line:
    """A dataclass as a line of JSON."""

    def to_json(self) -> str:
        """One line of JSON, without the line break."""
        data = dict(vars(self))
        if not data.get("file_digest", True):
            del data["file_digest"]
        return json.dumps(data, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "line") -> Self:
        """Read what `to_json` wrote; ExpansionError, which begins with ``where``, for others."""
        try:
            line = cls(**parse_json(text, where))
        except TypeError as error:
            raise ExpansionError(f"{where}: expected another record ({error}).") from error
        for each in fields(cls):  # type: ignore[arg-type]  # a dataclass
            value = getattr(line, each.name)
            kind: Any = getattr(each.type, "__origin__", each.type)
            if not isinstance(value, kind) or each.name == "file" and not _lies_inside(value):
                rule = ("a path in the dataset's folder" if each.name == "file"
                        else f"of type {getattr(kind, '__name__', kind)}")
                raise ExpansionError(f"{where}: {each.name} must be {rule}, got {shown(value)}.")
        return line

    @classmethod
    def read(cls, folder: OutputFolder, name: str) -> Iterator[Self]:
        """Read a file of such lines; raises as `from_json` does."""
        with folder.open(name) as file:
            for where, text in read_lines(file, f"{folder}/{name}"):
                yield cls.from_json(text, where)


@dataclass(frozen=True)
class ManifestLine(_Line):
    """One synthetic image: its file, its seed image, and the recipe to make it again.

    Attributes:
        id: number of the seed image and of the replica, such as ``"00000012_0003"``.
        file: path of the image in the dataset's folder, with "/"; for shards ``SHARD.tar/ID.png``.
        class_name: the class, as the source spells it.
        label: its number in the source's order.
        seed_index: number of the seed image in the source.
        seed_path: its path in the source, or ``"#12"`` if the source has no files.
        seed_digest: SHA-256 of its pixels, as `image_digest` gives it.
        replica: number of the replica; with ``rng_seed``, ``epoch`` and ``seed_digest`` it
            determines all randomness of the image.
        epoch: 0; `AugmentedDataset` continues from there.
        rng_seed: as given to the synthesizer.
        condition: what the model was conditioned on: a prompt, a class index, or null.
        batch: number of its batch.
        row: its row in that batch.
        layout: first replica and number of replicas of each seed image in that batch. The last
            bits of a result depend on the shape of its batch, so this belongs to the recipe.
        batch_size: rows that passed the denoiser together; fewer than the batch has if memory ran
            out.
        settings: the synthesizer's settings.
        model: the model's fingerprint.
        versions: of the libraries that matter.
        pixels: SHA-256 of the image's mode, size and pixels.
        distance: root mean square pixel distance from the seed image at the model's size, in
            [0, 1].
        scores: score of each filter.
        flags: names of the filters that flagged it.
        events: what the guards did, such as ``"retried"``; empty if nothing.
        loss: what the PNG file cannot keep of the seed image's type; empty if nothing.
        seed_file_digest: SHA-256 of the seed image's file; empty if the source has no files.
        file_digest: SHA-256 of the image's own file. Stands in the manifest alone: no file holds
            its own digest.
    """

    id: str
    file: str
    class_name: str
    label: int
    seed_index: int
    seed_path: str
    seed_digest: str
    replica: int
    epoch: int
    rng_seed: int
    condition: Condition
    batch: int
    row: int
    layout: list[list[int]]
    batch_size: int
    settings: dict[str, Any]
    model: str
    versions: dict[str, str]
    pixels: str
    distance: float
    scores: dict[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    loss: str = ""
    seed_file_digest: str = ""
    file_digest: str = field(default="", compare=False)

    def in_image(self) -> str:
        """The line as the image itself carries it."""
        return replace(self, file_digest="").to_json()

    def with_file(self, content: bytes) -> "ManifestLine":
        """The line with the digest of the image's file."""
        return replace(self, file_digest=hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class Skipped(_Line):
    """A planned sample that is not in the dataset: a line of ``skipped.jsonl``.

    Attributes:
        batch: number of the batch that it was planned for.
        id: as in `ManifestLine`, and so are the others.
        skipped: why it is not there.
        seed_digest: empty if the seed image is unreadable.
    """

    batch: int
    id: str
    seed_index: int
    seed_path: str
    skipped: str
    seed_digest: str = ""
    seed_file_digest: str = ""


# What a planned sample has become.
Record = ManifestLine | Skipped


def read_metadata(out: str | Path | OutputFolder) -> dict[str, Any]:
    """Read what a dataset was begun with.

    Raises:
        FileNotFoundError: the folder holds no expansion.
        ExpansionError: the file is damaged, or of another version.
        ValueError: it is the text of a URL.
    """
    folder = local_dataset(out)
    where = f"{folder}/{PLAN}"
    if not folder.exists(PLAN):
        raise FileNotFoundError(f"{where}: expected an expanded dataset, found none.")
    found = parse_json(folder.read(PLAN), where)
    if found.get("format") != FORMAT["format"]:
        raise ExpansionError(f"{where}: expected the metadata of an expansion, found other JSON.")
    if (before := found.get("format_version")) != (now := FORMAT["format_version"]):
        raise ExpansionError(
            f"{where}: expected format version {now}, found {before!r}: the dataset was made by "
            "another version of dreamda_aug. Make it anew with --new (new=True).")
    return found


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Everything in a nested dict but None, by the names of its keys, joined by dots."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{name}.{key}" if name else key)
    elif value is not None:
        yield name, value


def read_manifest(out: str | Path | OutputFolder) -> Iterator[ManifestLine]:
    """Read the lines of a manifest, one at a time.

    Args:
        out: the dataset's folder, on this machine.

    Raises:
        FileNotFoundError: there is none.
        ExpansionError: a line is damaged; the message names file, line, expected and found.
    """
    folder = local_dataset(out)
    if not folder.exists(MANIFEST):
        raise FileNotFoundError(
            f"{folder}/{MANIFEST}: expected a manifest, found none; an expansion that was "
            "interrupted writes it when the same command is run again.")
    return ManifestLine.read(folder, MANIFEST)


def read_skipped(out: str | Path | OutputFolder) -> Iterator[Skipped]:
    """Read what was left out of a dataset; nothing if there is no such file."""
    folder = local_dataset(out)
    return Skipped.read(folder, SKIPPED) if folder.exists(SKIPPED) else iter(())


def local_dataset(out: str | Path | OutputFolder) -> OutputFolder:
    """The folder of a dataset that is read; ValueError for the text of a URL."""
    if isinstance(out, OutputFolder):
        return out
    fix = "copy the dataset to this machine first"
    return OutputFolder(local_path(out, "the dataset's folder", fix))


def settings_to_json(settings: Settings) -> dict[str, Any]:
    """Settings as JSON values; objects become dicts with their class name under ``type``."""
    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {"type": type(value).__name__,
                    **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}
        if isinstance(value, tuple):
            return list(value)
        return value if isinstance(value, str | int | float | None) else repr(value)

    return {f.name: plain(getattr(settings, f.name)) for f in fields(settings)}


def settings_from_json(data: dict[str, Any]) -> Settings:
    """What `settings_to_json` was given; ExpansionError if that cannot be made again."""
    values: dict[str, Any] = {}
    try:
        for name, value in data.items():
            if isinstance(value, dict):
                parts = dict(value)
                value = _PARTS[parts.pop("type")](**parts)
            values[name] = tuple(value) if isinstance(value, list) else value
        return Settings(**values)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ExpansionError(
            f"settings: cannot be made from their description ({type(error).__name__}: {error}); "
            "pass the synthesizer that the dataset was made with.") from error


@cache
def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide an image's bits."""
    found = {"dreamda_aug": __version__}
    for name in ("torch", "torchvision", "diffusers", "transformers", "pillow"):
        with suppress(PackageNotFoundError):  # transformers is optional
            found[name] = version(name)
    return found


def _lies_inside(file: str) -> bool:
    parts = file.replace("\\", "/").split("/")
    return ".." not in parts and parts[0] != "" and ":" not in parts[0] and "\0" not in file
