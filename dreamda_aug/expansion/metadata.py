"""The settings that a synthetic dataset was begun with, and what was left out, read from disk."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from dreamda_aug.errors import ExpansionError
from dreamda_aug.files import local_path, parse_json, read_lines

FORMAT = "dreamda-expansion"
FORMAT_VERSION = 1
PLAN = "plan.json"
SKIPPED = "skipped.jsonl"
CARD = "dataset_card.md"
# Facts for finding things again, which may differ from one machine to the next.
WHERE = "where"


def local_dataset(place: str | Path) -> Path:
    """The path of a dataset that is read; ValueError for a URL."""
    return local_path(place, "the dataset's folder", "copy the dataset to this machine first")


def read_metadata(root: str | Path) -> dict[str, Any]:
    """The facts that a dataset was begun with.

    Raises:
        FileNotFoundError: the folder holds no expansion.
        ExpansionError: the file is damaged.
        ValueError: it is a URL.
    """
    path = local_dataset(root) / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an expanded dataset, found none.")
    return parse_metadata(path.read_bytes(), str(path))


def parse_metadata(data: bytes, where: str) -> dict[str, Any]:
    """What `read_metadata` returns, from the file's content; errors begin with ``where``."""
    facts = parse_json(data, where)
    parts: dict[str, Any] = {
        name: facts.get(name) for name in ("source", "settings", "expansion", WHERE)
    }
    source, places = parts["source"], parts[WHERE]
    if (
        facts.get("format") != FORMAT
        or not all(isinstance(part, dict) for part in parts.values())
        or not isinstance(source.get("classes"), dict)
        or not isinstance(source.get("images"), int)
        or not isinstance(facts.get("samples"), int)
        or not isinstance(places.get("model"), str)
        or not isinstance(places.get("source"), dict | None)
        or not isinstance(places.get("ask", []), list)
        or not _are_counts(facts.get("repeats", {}))
        or not isinstance(facts.get("filters"), list)
        or not (facts.get("threads") is None or facts["threads"] in range(1, 4096))
    ):
        raise ExpansionError(f"{where}: expected the facts of an expansion, found other JSON.")
    return facts


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(
        key.isdecimal() and isinstance(count, int) and count >= 0 for key, count in value.items())


def find_path(root: str | Path, place: str) -> str:
    """A place on record, as seen from here: ``../train`` is relative to the dataset's folder."""
    if place.startswith(("./", "../")):
        return os.path.normpath(os.path.join(os.path.abspath(root), place))
    return place


def recorded_source(root: str | Path, facts: Mapping[str, Any]) -> dict[str, str | None] | None:
    """The arguments of `open_source` that open a dataset's seed images again.

    Args:
        root: the dataset's folder.
        facts: what `read_metadata` returns.

    Returns:
        ``spec``, ``split`` and ``data_root``; None: it was made from an object.

    Raises:
        ExpansionError: the record does not say where they lie.
    """
    source = facts[WHERE].get("source")
    if source is None:
        return None
    if "source" in facts[WHERE].get("ask", ()) or not isinstance(source.get("spec"), str):
        raise ExpansionError(
            f"{root}: the record does not say where the seed images {source.get('spec')!r} lie, "
            "since they share no folder with the dataset; give the source (--source)."
        )
    data_root = source.get("data_root")
    return {
        "spec": find_path(root, source["spec"]), "split": source.get("split"),
        "data_root": find_path(root, data_root) if isinstance(data_root, str) else None,
    }


def recorded_model(
    root: str | Path, facts: Mapping[str, Any], given: Mapping[str, str]
) -> tuple[str, str | None]:
    """What loads the model that a dataset was made with: its source, and its LoRA weights or None.

    Args:
        root: the dataset's folder.
        facts: what `read_metadata` returns.
        given: ``model`` and ``lora``, where they have moved.

    Raises:
        ExpansionError: the record does not say where they lie.
    """
    places = facts[WHERE]
    found: list[str | None] = []
    for name in ("model", "lora"):
        if name in given:
            found.append(given[name])
            continue
        place = places.get(name)
        if name in places.get("ask", ()):
            raise ExpansionError(
                f"{root}: the record does not say where {name} {place!r} lies, since it shares no "
                f"folder with the dataset; give {name} (--{name})."
            )
        found.append(find_path(root, place) if isinstance(place, str) else None)
    assert found[0] is not None  # `parse_metadata` has looked
    return found[0], found[1]


def read_skipped(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of ``skipped.jsonl``: the text and its content; nothing if there is none."""
    path = Path(root) / SKIPPED
    if path.exists():
        for where, text in read_lines(path):
            entry = parse_json(text, where)
            if not isinstance(entry.get("unit"), int) or not isinstance(entry.get("skipped"), str):
                raise ExpansionError(f"{where}: expected the fields unit and skipped.")
            yield text, entry


@dataclass(frozen=True)
class Skipped:
    """A planned sample that is not in the dataset: a line of ``skipped.jsonl``.

    Attributes:
        unit: number of the batch that it was planned for.
        id: as in `ManifestLine`.
        seed_index: number of the seed image in the source.
        seed_path: its path in the source.
        skipped: why it is not there.
        seed_digest: SHA-256 of its pixels; empty where it is unreadable.
        seed_file_digest: SHA-256 of its file; empty where there is none.
    """

    unit: int
    id: str
    seed_index: int
    seed_path: str
    skipped: str
    seed_digest: str = ""
    seed_file_digest: str = ""

    def to_json(self) -> str:
        """One line of JSON, without the line break."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, where: str = "skipped line") -> "Skipped":
        """Read what `to_json` wrote.

        Raises:
            ExpansionError: it is something else; the message begins with ``where``.
        """
        data = parse_json(text, where)
        kinds = {f.name: int if f.name in ("unit", "seed_index") else str for f in fields(cls)}
        if data.keys() != kinds.keys() or not all(
            isinstance(data[name], kind) and not isinstance(data[name], bool)
            for name, kind in kinds.items()
        ):
            raise ExpansionError(f"{where}: expected the fields {', '.join(kinds)}.")
        return cls(**data)
