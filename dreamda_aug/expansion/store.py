"""A dataset's folder while it is made: batches committed one by one, merged when all are there."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.card import dataset_card
from dreamda_aug.expansion.exports import are_exported, write_exports
from dreamda_aug.expansion.layouts import WORK, layout_of
from dreamda_aug.expansion.manifest import MANIFEST, SKIPPED, ManifestLine, Record, Skipped
from dreamda_aug.expansion.metadata import CARD, PLAN, differences, parse_metadata
from dreamda_aug.expansion.replicas import Plan
from dreamda_aug.expansion.stats import Stats, count
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.files import read_numbered

# Digests of the merged records, as ``sha256sum -c`` reads them; written last, so that a dataset is
# complete once it is there.
SUMS = "SHA256SUMS"
_SUMMED = (PLAN, SKIPPED, MANIFEST)


class DamagedRecord(Exception):
    """The record of a batch differs from what was written."""


class Records:
    """Reads and writes the records of a dataset."""

    def __init__(self, folder: OutputFolder, plan: Plan):
        self.folder, self.plan = folder, plan

    def are_merged(self) -> bool:
        """Whether the merged files count, rather than the records of batches."""
        return self.folder.exists(SUMS) or self.folder.exists(MANIFEST) and not any(
            name.endswith(".jsonl") for name in self.folder.names(WORK))

    def are_complete(self) -> bool:
        """Whether every batch has a record, of whatever content."""
        return set(map(_file_of, range(self.plan.batches))) <= {
            f"{WORK}/{name}" for name in self.folder.names(WORK)}

    def sums(self) -> dict[str, bool]:
        """For each merged file, whether it is as it was written."""
        try:
            text = self.folder.read(SUMS).decode("ascii", errors="replace")
        except FileNotFoundError:
            text = ""
        expected = set(text.splitlines())
        return {name: self._sum_of(name) in expected for name in _SUMMED}

    def write_sums(self) -> None:
        """Write the digests of the merged files as they are now."""
        self.folder.write(SUMS, [f"{self._sum_of(name)}\n".encode() for name in _SUMMED])

    def write(self, batch: int, records: Iterable[Record]) -> None:
        """Write the record of a batch, sealed with its digest."""
        ordered = self._in_order(batch, records)
        assert ordered
        text = "".join(f"{record.to_json()}\n" for record in ordered).encode()
        self.folder.write(_file_of(batch), [text, _seal(text)])

    def forget(self, batch: int) -> None:
        """Delete the record of a batch, if there is one."""
        self.folder.remove(_file_of(batch))

    def read(
        self, sums: dict[str, bool], batches: Collection[int]
    ) -> Iterator[tuple[int, list[Record]]]:
        """Records of each batch in the plan's order; empty if they are not as they were written.

        Of merged records those of all batches come. ``sums`` is what `sums` returned for them.
        """
        if not self.are_merged():
            for name in self.folder.names(WORK):
                stem, _, suffix = name.partition(".")
                if suffix == "jsonl" and stem.isdecimal() and int(stem) in batches:
                    lines = _unsealed(self.folder.read(f"{WORK}/{name}")) or ()
                    yield int(stem), self._in_order(int(stem), map(_parse, lines))
            return
        left_out: dict[int, list[Record]] = {}
        if sums[SKIPPED]:  # nothing else could tell whether a line was changed
            for record in self._merged(SKIPPED):
                left_out.setdefault(record.batch, []).append(record)
        seen: set[int] = set()
        for batch, group in groupby(self._merged(MANIFEST), attrgetter("batch")):
            if batch not in seen and batch < self.plan.batches:
                seen.add(batch)
                yield batch, self._in_order(batch, [*group, *left_out.pop(batch, [])])
        for batch, records in left_out.items():
            if batch < self.plan.batches:
                yield batch, self._in_order(batch, records)

    def split(self, again: Collection[int]) -> None:
        """Turn merged records into those of batches, without the batches ``again``."""
        # until the end the merged files count, whatever records of batches appear
        sums = self.sums()
        if not self.folder.exists(SUMS):
            self.folder.write(SUMS, [b""])
        for batch, records in self.read(sums, ()):
            if records and batch not in again:
                self.write(batch, records)
        self.folder.remove(SUMS)
        self.folder.remove(MANIFEST)

    def merge(self) -> None:
        """Write ``skipped.jsonl`` and the manifest; DamagedRecord if one differs from its seal."""
        self.folder.write(SKIPPED, self._lines(Skipped))
        self.folder.write(MANIFEST, self._lines(ManifestLine))

    def stats(self) -> Stats:
        """Counts of a merged dataset."""
        return count((ManifestLine.from_json(text, where) for where, text in self._texts(MANIFEST)),
                     (Skipped.from_json(text, where) for where, text in self._texts(SKIPPED)))

    def _in_order(self, batch: int, records: Iterable[Record | None]) -> list[Record]:
        """Records in the plan's order, each once; empty if they are not those of the plan."""
        found: dict[str, Record] = {}
        for record in records:
            if record is None:
                return []
            before = found.setdefault(record.id, record)
            if before is not record and before.to_json() != record.to_json():
                return []
        planned = {sample.id: sample for sample in self.plan.batch(batch)}
        if found.keys() != planned.keys() or any(
            record.seed_index != planned[record.id].seed_index for record in found.values()
        ):
            return []
        return [found[sample_id] for sample_id in planned]

    def _lines(self, kind: type[Record]) -> Iterator[bytes]:
        """Lines of one kind in the records of all batches."""
        index, digest = -1, ""
        for batch in range(self.plan.batches):
            lines = _unsealed(self.folder.read(_file_of(batch)))
            if lines is None:
                raise DamagedRecord
            for line in lines:
                record = _parse(line)
                assert record is not None  # its digest is right
                if record.seed_index == index and record.seed_digest != digest:
                    raise ExpansionError(
                        f"{self.folder}: seed image {record.seed_path} was changed while images "
                        "were made from it. Begin anew with --new (new=True)."
                    )
                index, digest = record.seed_index, record.seed_digest
                if isinstance(record, kind):
                    yield line + b"\n"

    def _merged(self, name: str) -> Iterator[Record]:
        """Records in a merged file that can be read."""
        try:
            file = self.folder.open(name)
        except FileNotFoundError:
            return
        with file:
            for record in map(_parse, file):
                if isinstance(record, Skipped if name == SKIPPED else ManifestLine):
                    yield record

    def _texts(self, name: str) -> Iterator[tuple[str, str]]:
        with self.folder.open(name) as file:
            yield from read_numbered(file, f"{self.folder}/{name}")

    def _sum_of(self, name: str) -> str:
        try:
            return f"{self.folder.digest(name)}  {name}"
        except FileNotFoundError:
            return f"missing  {name}"


@dataclass
class State:
    """What of a dataset is there already.

    Attributes:
        done: batches of this process's share that are as they were written.
        again: batches that were made before and have to be made again.
        damaged: files that are missing or differ from what was written.
        sound: whether a merged dataset's records are as they should be.
    """

    done: set[int] = field(default_factory=set)
    again: set[int] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)
    sound: bool = True


class Store:
    """A dataset's folder, shared by any number of processes.

    Files are written in one order: the images of a batch, the record of the batch with their
    digests, merged records once those of all batches are there, and the digests of these last. So
    what a killed process did not write is at the end, and is made again with the same bytes. No two
    processes write the same file, except that merging twice gives the same bytes.
    """

    def __init__(self, folder: OutputFolder, metadata: dict[str, Any], plan: Plan):
        self.folder, self.metadata, self.plan = folder, metadata, plan
        self.layout = layout_of(folder, metadata)
        self._records = Records(folder, plan)

    def join(self) -> list[str]:
        """Begin the dataset, or return how its metadata differ from those it was begun with."""
        text = json.dumps(self.metadata, indent=2) + "\n"
        self.folder.create(PLAN, text.encode())
        return differences(read_begun(self.folder) or {}, json.loads(text))

    def is_complete(self) -> bool:
        """Whether everything was merged, of whatever content by now."""
        return (self.folder.exists(MANIFEST) and self.folder.exists(SUMS)
                and not self.folder.exists(WORK))

    def check(
        self,
        batches: Collection[int],
        look: Callable[[Record], None] = lambda record: None,
        progress: Callable[[int], None] = lambda samples: None,
    ) -> State:
        """Compare what is there with its digests; changes nothing.

        Args:
            batches: those whose files are read.
            look: called with each record that can be relied on; may raise.
            progress: called with the number of samples read so far.
        """
        mine, state, seen, read = set(batches), State(), set(), 0
        sums = self._records.sums() if self._records.are_merged() else {}
        state.sound = all(sums.values())
        state.damaged += [name for name, is_sound in sums.items() if not is_sound]
        for batch, records in self._records.read(sums, mine):
            seen.add(batch)
            if batch not in mine:  # the process with that share reads its files
                state.again |= set() if records else {batch}
                continue
            damaged = self.layout.damaged(
                batch, [record for record in records if isinstance(record, ManifestLine)])
            if records and (not damaged or not sums or sums[MANIFEST]):
                for record in records:
                    look(record)
            state.damaged += damaged if records else [f"the record of batch {batch}"]
            (state.done if records and not damaged else state.again).add(batch)
            read += self.plan.batch_length(batch)
            progress(read)
        if sums:
            state.again |= set(range(self.plan.batches)) - seen
        state.again = {batch for batch in self.layout.beside(state.again)
                       if batch < self.plan.batches}
        state.done -= state.again
        return state

    def reopen(self, state: State) -> None:
        """Forget the batches that have to be made again; merged records are split."""
        if self._records.are_merged():
            self._records.split(state.again)
        else:
            for batch in state.again:
                self._records.forget(batch)

    def commit(
        self,
        batch: int,
        samples: Sequence[tuple[ManifestLine, bytes]],
        skipped: Sequence[Skipped],
    ) -> None:
        """Write the images of a batch, and then its record."""
        self.layout.write(batch, samples)
        self._records.write(batch, [*(line.with_file(png) for line, png in samples), *skipped])

    def finish(self) -> Stats | None:
        """Merge the records of all batches and describe the dataset; None if some are missing."""
        records, folder, merged = self._records, self.folder, False
        try:
            if not records.are_merged():
                if not records.are_complete():
                    # unless another process has merged them just now
                    return records.stats() if folder.exists(SUMS) else None
                self.layout.finish(self.plan.batches)
                records.merge()
                merged = True
            stats = records.stats()
            if not folder.exists(CARD):  # a user may have edited one that is there
                folder.write(CARD, [dataset_card(self.metadata, stats).encode()])
            if merged or not are_exported(folder, self.metadata):
                write_exports(folder, self.metadata)
            if not folder.exists(SUMS):
                records.write_sums()
            if folder.exists(WORK):
                folder.tidy()
                folder.remove_folder(WORK)
        except FileNotFoundError:
            # another process merged at the same time, and has tidied up already
            if not folder.exists(SUMS):
                raise
            stats = records.stats()
        except DamagedRecord:
            return None  # made again when the command is run again
        return stats


def read_begun(folder: OutputFolder) -> dict[str, Any] | None:
    """The metadata that a dataset was begun with, or None if there is none yet."""
    if not folder.exists(PLAN):
        return None
    return parse_metadata(folder.read(PLAN), f"{folder}/{PLAN}")


def _file_of(batch: int) -> str:
    return f"{WORK}/{batch:08d}.jsonl"


def _seal(text: bytes) -> bytes:
    return json.dumps({"sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n"


def _unsealed(record: bytes) -> Sequence[bytes] | None:
    """The lines of a batch's record without the last, or None if it is not as it was written."""
    text, newline, _ = record[:-1].rpartition(b"\n")
    text += newline
    return text.splitlines() if record == text + _seal(text) else None


def _parse(line: bytes) -> Record | None:
    """The record in a line, or None if there is none."""
    try:
        text = line.decode("utf-8-sig")
        # lines of the manifest begin with their id
        return (Skipped if text.startswith('{"batch":') else ManifestLine).from_json(text)
    except (UnicodeDecodeError, ExpansionError):
        return None
