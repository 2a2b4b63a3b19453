"""The record of a synthetic dataset: one JSON line per image, and how such lines are read."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.metadata import local_dataset
from dreamda_aug.files import parse_json, read_lines, shorten
from dreamda_aug.method.inversion import CycleDiffusion, DDIMInversion
from dreamda_aug.method.perturbation import BottleneckNoise
from dreamda_aug.method.settings import Settings
from dreamda_aug.models import Condition
from dreamda_aug.version import __version__

MANIFEST = "manifest.jsonl"
# The largest batch that a dataset may be made in.
MAX_BATCH = 65_536

# What settings may hold beside numbers and text; another class is written down, not read back.
_PARTS: dict[str, Callable[..., Any]] = {
    cls.__name__: cls for cls in (CycleDiffusion, DDIMInversion, BottleneckNoise)
}

_T = TypeVar("_T")


@dataclass(frozen=True)
class ManifestLine:
    """One synthetic image: where it lies, what it was made from, and how to make it again.

    Attributes:
        id: number of the seed image and of the replica, such as ``"00000012_0003"``.
        file: the image's path in the dataset's folder, with "/"; for shards ``SHARD.tar/ID.png``.
        class_name: the class, as the source spells it.
        label: its number in the source's order.
        seed_index: number of the seed image in the source.
        seed_path: its path in the source, or ``"#12"`` where the source has no files.
        seed_digest: SHA-256 of its pixels, as `image_digest` gives it.
        replica: number of the replica; with ``rng_seed``, ``epoch`` and ``seed_digest`` it decides
            all randomness of the image.
        epoch: 0; `AugmentedDataset` counts on from there.
        rng_seed: as given to the generator.
        condition: what the model was conditioned on: a prompt, a class index, or null.
        unit: number of the batch that it was made in.
        row: its row in that batch.
        layout: first replica and number of replicas of each seed image in that batch. The last
            bits of a result depend on the shape of its batch, so this belongs to the recipe.
        settings: the generator's settings.
        model: the model's fingerprint.
        versions: of the libraries that took part.
        pixels: SHA-256 of the image's mode, size and pixels.
        distance: root mean square pixel distance from the seed image at the model's size, in
            [0, 1].
        scores: what each filter measured.
        flags: names of the filters that object.
        events: what the generator's guards did, such as ``"retried"``; empty: nothing.
        seed_file_digest: SHA-256 of the seed image's file; empty where the source has no files.
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
    unit: int
    row: int
    layout: list[list[int]]
    settings: dict[str, Any]
    model: str
    versions: dict[str, str]
    pixels: str
    distance: float
    scores: dict[str, float] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    seed_file_digest: str = ""
    file_digest: str = field(default="", compare=False)

    def to_json(self) -> str:
        """One line of JSON, without the line break."""
        data = dict(vars(self))
        if not self.file_digest:
            del data["file_digest"]
        return json.dumps(data, separators=(",", ":"))

    def in_image(self) -> str:
        """The same as the image itself carries it."""
        return replace(self, file_digest="").to_json()

    def with_file(self, content: bytes) -> "ManifestLine":
        """The same with the digest of the image's file."""
        return replace(self, file_digest=hashlib.sha256(content).hexdigest())

    @classmethod
    def from_json(cls, text: str, where: str = "manifest line") -> "ManifestLine":
        """Read what `to_json` wrote.

        Raises:
            ExpansionError: it is something else; the message begins with ``where``.
        """
        data = parse_json(text, where)
        known = {f.name for f in fields(cls)}
        # records of before 0.2 have no digests of files
        if not known - _DIGESTS_OF_FILES <= set(data) <= known:
            raise ExpansionError(
                f"{where}: expected the fields of a manifest line; missing: "
                f"{sorted(known - set(data))}, unknown: {shorten(sorted(set(data) - known))}."
            )
        for name, kinds in _KINDS.items():
            if not isinstance(data[name], kinds) or isinstance(data[name], bool):
                expected = " or ".join(kind.__name__ for kind in kinds)
                raise ExpansionError(
                    f"{where}: {name} must be {expected}, got {shorten(data[name])}."
                )
        for name in ("label", "seed_index", "replica", "epoch", "unit", "row"):
            if data[name] < 0:
                raise ExpansionError(f"{where}: {name} must be >= 0, got {data[name]}.")
        for name in ("seed_digest", "pixels", *sorted(_DIGESTS_OF_FILES)):
            digest = data.get(name, "")
            if not (isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)) and not (
                digest == "" and name in _DIGESTS_OF_FILES
            ):
                raise ExpansionError(
                    f"{where}: {name} must be 64 hexadecimal digits, got {shorten(digest)}."
                )
        parts = data["file"].replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in data["file"]:
            raise ExpansionError(
                f"{where}: file must lie in the dataset's folder, got {shorten(data['file'])}."
            )
        if not all(isinstance(text, str) for text in data["flags"] + data["events"]):
            raise ExpansionError(f"{where}: flags and events must be lists of text.")
        if not all(_is_number(score) for score in data["scores"].values()):
            raise ExpansionError(f"{where}: scores must be numbers.")
        if not _is_layout(data["layout"], data["row"]):
            raise ExpansionError(
                f"{where}: layout must list [first replica, count] and reach row {data['row']}, "
                f"with {MAX_BATCH} rows at most, got {shorten(data['layout'])}."
            )
        return cls(**data)


_DIGESTS_OF_FILES = {"seed_file_digest", "file_digest"}
_KINDS = {
    **dict.fromkeys(("id", "file", "class_name", "seed_path", "seed_digest", "model",
                     "pixels"), (str,)),
    **dict.fromkeys(("label", "seed_index", "replica", "epoch", "rng_seed", "unit", "row"), (int,)),
    **dict.fromkeys(("settings", "versions", "scores"), (dict,)),
    **dict.fromkeys(("layout", "flags", "events"), (list,)),
    "condition": (str, int, type(None)),
    "distance": (int, float),
}


def read_manifest(path: str | Path) -> Iterator[ManifestLine]:
    """The lines of a manifest, one at a time.

    Args:
        path: the file, or the folder that holds ``manifest.jsonl``.

    Raises:
        FileNotFoundError: there is none.
        ExpansionError: a line is damaged; the message names file, line, expected and found.
        ValueError: it is a URL.
    """
    path = local_dataset(path)
    path = path / MANIFEST if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a manifest, found none; an expansion that was interrupted writes it "
            "when the same command is run again."
        )
    for where, text in read_lines(path):
        yield ManifestLine.from_json(text, where)


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
    """What `settings_to_json` was given.

    Raises:
        ExpansionError: a value is of a class that is not ours, or breaks a rule.
    """
    # records of before 0.2 say nothing of these, and were made so
    values: dict[str, Any] = {"solver": "ddim", "timestep_spacing": "scheduler"}
    for name, value in data.items():
        if isinstance(value, dict):
            kind = value.get("type")
            if not isinstance(kind, str) or kind not in _PARTS:
                raise ExpansionError(
                    f"settings: {name} is a {kind!r}, which cannot be made from its description; "
                    "pass the synthesizer that the dataset was made with."
                )
            arguments = {k: v for k, v in value.items() if k != "type"}
            value = _build(_PARTS[kind], arguments)
        values[name] = tuple(value) if isinstance(value, list) else value
    return _build(Settings, values)


def library_versions() -> dict[str, str]:
    """Versions of the libraries that decide an image's bits."""
    found = {"dreamda_aug": __version__}
    for name in ("torch", "torchvision", "diffusers", "transformers", "pillow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass  # transformers is optional
    return found


def _build(cls: Callable[..., _T], values: dict[str, Any]) -> _T:
    try:
        return cls(**values)
    except (TypeError, ValueError, AttributeError) as error:
        raise ExpansionError(f"settings: cannot make {cls.__name__} from it: {error}") from error


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_layout(layout: list[Any], row: int) -> bool:
    pairs = all(
        isinstance(pair, list) and len(pair) == 2
        and all(isinstance(n, int) and not isinstance(n, bool) for n in pair)
        and pair[0] >= 0 and pair[1] >= 1
        for pair in layout
    )
    # a batch is made as a whole: what is larger than any is damage
    return pairs and row < sum(count for _, count in layout) <= MAX_BATCH
