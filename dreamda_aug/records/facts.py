"""The settings that a synthetic dataset was begun with, and what was left out, read from disk."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamda_aug.errors import ExpansionError
from dreamda_aug.files import parse_json, read_lines

FORMAT = "dreamda-expansion"
FORMAT_VERSION = 1
PLAN = "plan.json"
SKIPPED = "skipped.jsonl"
# Facts for finding things again, which may differ from one machine to the next.
WHERE = "where"


def read_plan(root: str | Path) -> dict[str, Any]:
    """The facts that a dataset was begun with.

    Raises:
        FileNotFoundError: the folder holds no expansion.
        ExpansionError: the file is damaged.
    """
    path = Path(root) / PLAN
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected an expanded dataset, found none.")
    facts = parse_json(path.read_bytes(), str(path))
    parts: dict[str, Any] = {
        name: facts.get(name) for name in ("source", "settings", "expansion", WHERE)
    }
    source, where = parts["source"], parts[WHERE]
    if (
        facts.get("format") != FORMAT
        or not all(isinstance(part, dict) for part in parts.values())
        or not isinstance(source.get("classes"), dict)
        or not isinstance(source.get("images"), int)
        or not isinstance(facts.get("samples"), int)
        or not isinstance(where.get("backbone"), str)
        or not isinstance(where.get("source"), dict | None)
        or not isinstance(facts.get("filters"), list)
        or not (facts.get("threads") is None or facts["threads"] in range(1, 4096))
    ):
        raise ExpansionError(f"{path}: expected the facts of an expansion, found other JSON.")
    return facts


def read_skipped(root: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of ``skipped.jsonl``: the text and its content; nothing if there is none."""
    path = Path(root) / SKIPPED
    if path.exists():
        for where, text in read_lines(path):
            entry = parse_json(text, where)
            if not isinstance(entry.get("unit"), int) or not isinstance(entry.get("skipped"), str):
                raise ExpansionError(f"{where}: expected the fields unit and skipped.")
            yield text, entry
