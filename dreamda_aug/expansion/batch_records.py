"""The records of an expansion: one of each unit while it is made, merged once all are there."""

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from operator import attrgetter

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.layouts import WORK
from dreamda_aug.expansion.manifest import MANIFEST, ManifestLine
from dreamda_aug.expansion.metadata import PLAN, SKIPPED, Skipped
from dreamda_aug.expansion.output import OutputFolder, read_bytes, sha256_of
from dreamda_aug.expansion.records import (
    Record,
    parse_line,
    read_record,
    record_of,
    split_record,
)
from dreamda_aug.expansion.stats import Stats, count
from dreamda_aug.files import read_numbered

# Digests of the merged records, as ``sha256sum -c`` reads them; written last, so that a dataset is
# whole once it is there.
SUMS = "SHA256SUMS"
_SUMMED = (PLAN, SKIPPED, MANIFEST)


class DamagedRecord(Exception):
    """A unit's record is not what was written."""


class BatchRecords:
    """Reads and writes the records of a dataset.

    Args:
        folder: the dataset's.
        units: how many units there are.
    """

    def __init__(self, folder: OutputFolder, units: int):
        self.folder, self.units = folder, units

    def are_merged(self) -> bool:
        """Whether the merged files count, and not the records of units."""
        return self.folder.exists(SUMS) or self.folder.exists(MANIFEST) and not any(
            name.endswith(".jsonl") for name in self.folder.names(WORK))

    def are_complete(self) -> bool:
        """Whether every unit has a record; says nothing about what is in it."""
        present = set(self.folder.names(WORK))
        return all(f"{unit:08d}.jsonl" in present for unit in range(self.units))

    def sums(self) -> dict[str, bool]:
        """For each merged file, whether it is as it was written."""
        try:
            text = read_bytes(self.folder, SUMS).decode("ascii", errors="replace")
        except FileNotFoundError:
            text = ""
        expected = set(text.splitlines())
        return {name: self._sum_of(name) in expected for name in _SUMMED}

    def write_sums(self) -> None:
        """Write the digests of the merged files as they are now."""
        self.folder.write(SUMS, [f"{self._sum_of(name)}\n".encode() for name in _SUMMED])

    def write(self, unit: int, entries: Sequence[Record]) -> None:
        """Write the record of a unit."""
        self.folder.write(_record(unit), [record_of(entries)])

    def forget(self, unit: int) -> None:
        """Delete the record of a unit, if there is one."""
        self.folder.remove(_record(unit))

    def begin_splitting(self) -> None:
        """Let the merged files count until `end_splitting`, whatever records of units appear."""
        if not self.folder.exists(SUMS):
            self.folder.write(SUMS, [b""])

    def end_splitting(self) -> None:
        """Let the records of units count, and the merged files no more."""
        self.folder.remove(SUMS)
        self.folder.remove(MANIFEST)

    def entries(
        self, sums: dict[str, bool], units: Collection[int]
    ) -> Iterator[tuple[int, list[Record]]]:
        """What is on record for each unit; what cannot be read or relied on is left out.

        Args:
            sums: what `sums` returned, if the records are merged.
            units: those that are wanted, if they are not; else all come.
        """
        if not self.are_merged():
            for name in self.folder.names(WORK):
                stem, _, suffix = name.partition(".")
                if suffix == "jsonl" and stem.isdecimal() and int(stem) in units:
                    yield int(stem), read_record(read_bytes(self.folder, f"{WORK}/{name}"))
            return
        left_out: dict[int, list[Record]] = {}
        if sums[SKIPPED]:  # nothing else could tell whether an entry was changed
            for entry in self._merged(SKIPPED):
                left_out.setdefault(entry.unit, []).append(entry)
        seen: set[int] = set()
        for unit, group in groupby(self._merged(MANIFEST), attrgetter("unit")):
            if unit in seen or unit >= self.units:
                continue
            seen.add(unit)
            yield unit, [*group, *left_out.pop(unit, [])]
        for unit, entries in left_out.items():
            if unit < self.units:
                yield unit, entries

    def merge(self) -> None:
        """Write ``skipped.jsonl`` and the manifest from the records of all units.

        Raises:
            DamagedRecord: one is not as it was written.
            ExpansionError: a seed image changed while the dataset was made.
        """
        self.folder.write(SKIPPED, self._lines(skipped=True))
        self.folder.write(MANIFEST, self._lines(skipped=False))

    def stats(self) -> Stats:
        """Counts of a merged dataset."""
        return count(
            (ManifestLine.from_json(text, where) for where, text in self._numbered(MANIFEST)),
            (Skipped.from_json(text, where).skipped for where, text in self._numbered(SKIPPED)),
        )

    def _sum_of(self, name: str) -> str:
        try:
            return f"{sha256_of(self.folder, name)}  {name}"
        except FileNotFoundError:
            return f"missing  {name}"

    def _numbered(self, name: str) -> Iterator[tuple[str, str]]:
        with self.folder.open(name) as file:
            yield from read_numbered(file, f"{self.folder}/{name}")

    def _merged(self, name: str) -> Iterator[Record]:
        """The entries of a merged file that can be read."""
        try:
            file = self.folder.open(name)
        except FileNotFoundError:
            return
        with file:
            for line in file:
                entry = parse_line(line)
                if isinstance(entry, Skipped if name == SKIPPED else ManifestLine):
                    yield entry

    def _lines(self, skipped: bool) -> Iterator[bytes]:
        index, digest = -1, ""
        for unit in range(self.units):
            lines = split_record(read_bytes(self.folder, _record(unit)))
            if lines is None:
                raise DamagedRecord
            for line in lines:
                entry = parse_line(line)
                assert entry is not None  # the record's digest is right
                if entry.seed_index == index and entry.seed_digest != digest:
                    raise ExpansionError(
                        f"{self.folder}: seed image {entry.seed_path} was changed while images "
                        "were made from it. Begin anew with --new (new=True)."
                    )
                index, digest = entry.seed_index, entry.seed_digest
                if isinstance(entry, Skipped) == skipped:
                    yield line + b"\n"


def _record(unit: int) -> str:
    return f"{WORK}/{unit:08d}.jsonl"
