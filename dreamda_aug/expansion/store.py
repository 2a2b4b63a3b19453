"""A dataset's folder while it is made: batches committed one by one, merged when all are there."""

import heapq
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.card import (
    Stats,
    are_exported,
    dataset_card,
    read_stats,
    write_exports,
)
from dreamda_aug.expansion.layouts import WORK, layout_of
from dreamda_aug.expansion.manifest import MANIFEST, SKIPPED, ManifestLine, Record, Skipped
from dreamda_aug.expansion.metadata import CARD, PLAN, differences, read_metadata
from dreamda_aug.expansion.seeds import Plan
from dreamda_aug.expansion.storage import OutputFolder

# Digests of the merged records, as ``sha256sum -c`` reads them; written last, so that a dataset is
# complete once it is there.
SUMS = "SHA256SUMS"
_SUMMED = (PLAN, SKIPPED, MANIFEST)


class _Incomplete(Exception):
    """The record of a batch is missing, or damaged."""


@dataclass
class State:
    """What of a dataset is there already.

    Attributes:
        done: batches of this process's share that are as they were written.
        again: batches that were made before and have to be made again.
        damaged: files that are missing or differ from what was written.
        records: those of them that hold the merged records.
    """

    done: set[int] = field(default_factory=set)
    again: set[int] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)
    records: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether nothing that was made has to be made or written again."""
        return not (self.again or self.records)


class Store:
    """A dataset's folder, shared by any number of processes.

    Files are written in one order: the images of a batch, its record, merged records once those of
    all batches are there, and the digests of these last. So what a killed process did not write is
    at the end, and is made again with the same bytes. A batch that is made again has a record of
    its own, which counts before the merged ones, until they are merged anew. No two processes
    write the same file, except that merging twice gives the same bytes.
    """

    def __init__(self, folder: OutputFolder, metadata: dict[str, Any], plan: Plan):
        self.folder, self.metadata, self.plan = folder, metadata, plan
        self.layout = layout_of(folder, metadata)

    def join(self) -> list[str]:
        """Begin the dataset, or return how its metadata differ from those it was begun with."""
        text = json.dumps(self.metadata, indent=2) + "\n"
        if not self.folder.exists(PLAN):
            self.folder.write(PLAN, [text.encode()])
        return differences(read_metadata(self.folder), json.loads(text))

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
        wrong, seen, read = self._wrong_records(), set(), 0
        state = State(damaged=[*wrong], records=wrong)
        # of left-out samples nothing else could tell whether a line was changed
        for batch, records in self._records(skipped=SKIPPED not in wrong):
            seen.add(batch)
            if batch not in batches:  # the process with that share reads its files
                state.again |= set() if records else {batch}
                continue
            damaged = self.layout.damaged(
                batch, [record for record in records if isinstance(record, ManifestLine)])
            if not damaged or MANIFEST not in wrong:
                for record in records:
                    look(record)
            state.damaged += damaged if records else [f"the record of batch {batch}"]
            (state.done if records and not damaged else state.again).add(batch)
            read += self.plan.batch_length(batch)
            progress(read)
        if self.folder.exists(MANIFEST):
            state.again |= set(range(self.plan.batches)) - seen
        state.again = {batch for batch in self.layout.beside(state.again)
                       if batch < self.plan.batches}
        state.done -= state.again
        return state

    def reopen(self, state: State) -> None:
        """Make a complete dataset incomplete, so that records are merged anew."""
        if SKIPPED in state.records:
            self.folder.remove(SKIPPED)
        self.folder.remove(SUMS)

    def commit(
        self,
        batch: int,
        samples: Sequence[tuple[ManifestLine, bytes]],
        skipped: Sequence[Skipped],
    ) -> None:
        """Write the images of a batch, and then its record."""
        self.layout.write(batch, samples)
        records = [*(line.with_file(png) for line, png in samples), *skipped]
        self.folder.write(_file_of(batch), (f"{each.to_json()}\n".encode() for each in records))

    def finish(self) -> Stats | None:
        """Merge the records of all batches and describe the dataset; None if some are missing."""
        folder = self.folder
        is_new = not folder.exists(SUMS)
        if is_new:
            try:
                folder.write(SKIPPED, self._lines(Skipped))
                self.layout.finish(self.plan.batches)
                folder.write(MANIFEST, self._lines(ManifestLine))
            except (_Incomplete, FileNotFoundError):
                # made again when the command is run again, unless another process has just merged
                if not folder.exists(SUMS):
                    return None
        stats = read_stats(folder)
        if not folder.exists(CARD):  # a user may have edited one that is there
            folder.write(CARD, [dataset_card(self.metadata, stats).encode()])
        if is_new or not are_exported(folder, self.metadata):
            write_exports(folder, self.metadata)
        if is_new:
            folder.write(SUMS, [f"{self._sum_of(name)}\n".encode() for name in _SUMMED])
        if folder.exists(WORK):
            folder.tidy()
            folder.remove_folder(WORK)
        return stats

    def _records(self, skipped: bool = True) -> Iterator[tuple[int, list[Record]]]:
        """Records of batches in the plan's order; empty if they are not those of the plan."""
        own = self._recorded()
        merged = [MANIFEST, *[SKIPPED] * skipped]
        pairs = heapq.merge(
            ((batch, record) for batch in sorted(own)
             for record in list(self._parsed(_file_of(batch))) or [None]),
            *(((record.batch, record) for record in self._parsed(name)
               if record is not None and record.batch not in own) for name in merged),
            key=itemgetter(0))
        last = -1
        for batch, group in groupby(pairs, itemgetter(0)):
            if last < batch < self.plan.batches:  # else it is out of order: damaged
                last = batch
                yield batch, self._in_order(batch, [record for _, record in group])

    def _recorded(self) -> set[int]:
        """Batches that have a record of their own."""
        names = [name.removesuffix(".jsonl") for name in self.folder.names(WORK)]
        return {int(name) for name in names if name.isdecimal()}

    def _parsed(self, name: str) -> Iterator[Record | None]:
        """The record in each line of a file, or None for a line that holds none."""
        try:
            file = self.folder.open(name)
        except FileNotFoundError:
            return
        with file:
            yield from map(_parse, file)

    def _in_order(self, batch: int, records: Collection[Record | None]) -> list[Record]:
        """Records in the plan's order; empty if they are not those of the plan, each once."""
        found = {(record.id, record.seed_index): record for record in records if record}
        planned = [(sample.id, sample.seed_index) for sample in self.plan.batch(batch)]
        if len(records) != len(planned) or found.keys() != set(planned):
            return []
        return [found[sample] for sample in planned]

    def _lines(self, kind: type[Record]) -> Iterator[bytes]:
        """Lines of one kind in the records of all batches."""
        following, index, digest = 0, -1, ""
        for batch, records in self._records():
            if batch != following or not records:
                raise _Incomplete
            following += 1
            for record in records:
                if record.seed_index == index and record.seed_digest != digest:
                    raise ExpansionError(
                        f"{self.folder}: seed image {record.seed_path} was changed while images "
                        "were made from it. Begin anew with --new (new=True)."
                    )
                index, digest = record.seed_index, record.seed_digest
                if isinstance(record, kind):
                    yield f"{record.to_json()}\n".encode()
        if following < self.plan.batches:
            raise _Incomplete

    def _wrong_records(self) -> list[str]:
        """Merged files of a complete dataset that are not as they were written."""
        if not self.folder.exists(SUMS):
            return []
        expected = self.folder.read(SUMS).decode("ascii", errors="replace").splitlines()
        return [name for name in _SUMMED if self._sum_of(name) not in expected]

    def _sum_of(self, name: str) -> str:
        try:
            return f"{self.folder.digest(name)}  {name}"
        except FileNotFoundError:
            return f"missing  {name}"


def _file_of(batch: int) -> str:
    return f"{WORK}/{batch:08d}.jsonl"


def _parse(line: bytes) -> Record | None:
    # lines of the manifest begin with their id
    kind: type[Record] = Skipped if line.startswith(b'{"batch":') else ManifestLine
    with suppress(ExpansionError):
        return kind.from_json(line)
    return None
