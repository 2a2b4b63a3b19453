"""What is on record for each sample of a unit, and the sealed file that holds it."""

import hashlib
import json
from collections.abc import Iterable, Sequence

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.manifest import ManifestLine
from dreamda_aug.expansion.metadata import Skipped
from dreamda_aug.expansion.replicas import PlannedSample

Record = ManifestLine | Skipped


def by_order(entries: Iterable[Record], planned: Sequence[PlannedSample]) -> list[Record]:
    """The entries of a unit in the plan's order, each once.

    Empty where they are not those of the planned samples, or contradict each other.
    """
    found: dict[str, Record] = {}
    for entry in entries:
        before = found.setdefault(entry.id, entry)
        if before is not entry and before.to_json() != entry.to_json():
            return []
    of_plan = {sample.id: sample for sample in planned}
    if found.keys() != of_plan.keys() or any(
        entry.seed_index != of_plan[entry.id].seed_index for entry in found.values()
    ):
        return []
    return [found[sample_id] for sample_id in of_plan]


def record_of(entries: Iterable[Record]) -> bytes:
    """A unit's record: a line for each entry, and one with the digest of these lines."""
    text = "".join(entry.to_json() + "\n" for entry in entries).encode()
    return text + _seal(text)


def split_record(record: bytes) -> list[bytes] | None:
    """The lines of a unit's record, without the last; None where it is not as it was written."""
    text, newline, _ = record[:-1].rpartition(b"\n")
    text += newline
    return text.splitlines() if record == text + _seal(text) else None


def read_record(record: bytes) -> list[Record]:
    """The entries of a unit's record; empty where it is not as it was written."""
    entries = [parse_line(line) for line in split_record(record) or ()]
    return [entry for entry in entries if entry is not None]


def parse_line(line: bytes) -> Record | None:
    """The entry in a line of a record or of a merged file; None where it holds none."""
    try:
        text = line.decode("utf-8-sig")
        # manifest lines begin with their id
        return (Skipped if text.startswith('{"unit":') else ManifestLine).from_json(text)
    except (UnicodeDecodeError, ExpansionError):
        return None


def _seal(text: bytes) -> bytes:
    return json.dumps({"sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n"
