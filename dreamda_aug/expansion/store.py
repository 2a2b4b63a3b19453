"""The folder that an expansion writes: units committed one by one, merged when all are there."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.batch_records import SUMS, BatchRecords, DamagedRecord
from dreamda_aug.expansion.layouts import WORK, Layout
from dreamda_aug.expansion.manifest import MANIFEST, ManifestLine
from dreamda_aug.expansion.metadata import PLAN, WHERE, Skipped, parse_metadata
from dreamda_aug.expansion.output import OutputFolder, as_folder, read_bytes
from dreamda_aug.expansion.records import Record, by_order
from dreamda_aug.expansion.replicas import Plan, differences
from dreamda_aug.expansion.stats import Stats


@dataclass
class State:
    """What of a dataset is there already.

    Attributes:
        done: units of the asked share that are on record and as they were written.
        again: units that were made before and have to be made again.
        damaged: files that are missing or are not as they were written.
        sound: whether a merged dataset's records are as they should be.
    """

    done: set[int] = field(default_factory=set)
    again: set[int] = field(default_factory=set)
    damaged: list[str] = field(default_factory=list)
    sound: bool = True

    def warnings(self) -> list[str]:
        """What a user should know, in words."""
        if not self.damaged:
            return []
        return [f"{len(self.damaged)} files were missing or were not as they had been written "
                f"(such as {self.damaged[0]}); they are made again."]


class Store:
    """A dataset's folder, shared by any number of processes without locks.

    Each process writes the files of its units, and after them the unit's record, which says that
    the unit is whole and holds digests of everything in it. Every file takes its place in one
    step, and no two processes write the same one. Whoever finds all records present merges them;
    doing so twice gives the same bytes.

    Args:
        folder: the dataset's folder, or its path.
        plan: what is to be made.
        layout: how images lie on disk.
    """

    def __init__(self, folder: OutputFolder | str | Path, plan: Plan, layout: Layout):
        self.folder, self.plan, self.layout = as_folder(folder), plan, layout
        self._records = BatchRecords(self.folder, plan.units)

    def begun(self) -> dict[str, Any] | None:
        """The facts that the dataset was begun with; None where there is none yet.

        Raises:
            ExpansionError: the folder holds something else.
        """
        check_free(self.folder)
        if not self.folder.exists(PLAN):
            return None
        return parse_metadata(read_bytes(self.folder, PLAN), f"{self.folder}/{PLAN}")

    def join(self, facts: dict[str, Any]) -> list[str]:
        """Begin the dataset, or go on with one that was begun before.

        Returns:
            How the facts differ from those that it was begun with; empty: they do not.

        Raises:
            ExpansionError: the folder holds something else.
        """
        check_free(self.folder)
        self.folder.create(PLAN, (json.dumps(facts, indent=2) + "\n").encode())
        return differences(_comparable(self.begun() or {}),
                           _comparable(json.loads(json.dumps(facts))))

    @contextmanager
    def claim(self, number: int, count: int) -> Iterator[None]:
        """Keep other processes from doing the same share of the work at the same time.

        Args:
            number: of this process.
            count: of all processes.

        Raises:
            ExpansionError: another process is at it.
        """
        with self.folder.claim(f"{WORK}/claim-{number}-of-{count}") as mine:
            if not mine:
                raise ExpansionError(
                    f"{self.folder}: another process is at work here as number {number} of "
                    f"{count}; wait for it, or give each process its own --shard."
                )
            yield

    def is_whole(self) -> bool:
        """Whether everything was merged; says nothing about what was changed since."""
        return (self.folder.exists(MANIFEST) and self.folder.exists(SUMS)
                and not self.folder.exists(WORK))

    def check(
        self,
        units: Collection[int],
        look: Callable[[Record], None] = lambda entry: None,
        progress: Callable[[int], None] = lambda samples: None,
    ) -> State:
        """See what is there, by the digests of files; changes nothing.

        Args:
            units: those whose files are read.
            look: called with each entry that can be relied on; may raise.
            progress: called with the number of samples that were read since the last call.
        """
        mine, state, seen = set(units), State(), set()
        merged = self._records.are_merged()
        sums = self._records.sums() if merged else {}
        state.sound = all(sums.values())
        state.damaged += [name for name, is_sound in sums.items() if not is_sound]
        for unit, entries in self._records.entries(sums, mine):
            seen.add(unit)
            entries = by_order(entries, self.plan.unit(unit))
            if unit not in mine:  # whoever does that share looks at its files
                state.again |= set() if entries else {unit}
                continue
            damaged = self.layout.damaged(unit, _lines(entries))
            if entries and (not damaged or not sums or sums[MANIFEST]):
                for entry in entries:
                    look(entry)
            state.damaged += damaged if entries else [f"the record of batch {unit}"]
            (state.done if entries and not damaged else state.again).add(unit)
            progress(self.plan.batch_length(unit))
        if merged:
            state.again |= set(range(self.plan.units)) - seen
        state.again = {unit for unit in self.layout.beside(state.again) if unit < self.plan.units}
        state.done -= state.again
        return state

    def reopen(self, state: State) -> None:
        """Forget the units that have to be made again; a merged dataset becomes records again."""
        records = self._records
        if not records.are_merged():
            for unit in state.again:
                records.forget(unit)
            return
        records.begin_splitting()
        for unit, entries in records.entries(records.sums(), range(self.plan.units)):
            entries = by_order(entries, self.plan.unit(unit))
            if entries and unit not in state.again:
                records.write(unit, entries)
        records.end_splitting()

    def commit(
        self,
        unit: int,
        samples: Sequence[tuple[ManifestLine, bytes]],
        skipped: Sequence[Skipped],
    ) -> None:
        """Write the files of a unit, and then its record.

        Args:
            unit: number of the unit.
            samples: manifest lines with their PNG files.
            skipped: the planned samples that were not made or not kept.
        """
        self.layout.write(unit, samples)
        lines = [line.with_file(png) for line, png in samples]
        entries = by_order([*lines, *skipped], self.plan.unit(unit))
        assert entries
        self._records.write(unit, entries)

    def finish(self, describe: Callable[[Stats, bool], None]) -> Stats | None:
        """Merge the units' records into the manifest, if all are there.

        Args:
            describe: writes what else belongs to a whole dataset, from its counts; also called for
                one that was whole before, where the second argument is False.

        Returns:
            The dataset's counts; None where it is not whole.

        Raises:
            ExpansionError: a seed image changed while the dataset was made.
        """
        records, merged = self._records, False
        try:
            if not records.are_merged():
                if not records.are_complete():
                    # unless another process has merged them just now
                    return self.stats() if self.folder.exists(SUMS) else None
                self.layout.finish(self.plan.units)
                records.merge()
                merged = True
            stats = records.stats()
            describe(stats, merged)
            if not self.folder.exists(SUMS):
                records.write_sums()
            if self.folder.exists(WORK):
                self.folder.tidy()
                self.folder.remove_folder(WORK)
        except FileNotFoundError:
            # another process merged at the same time, and was ahead with tidying up
            if not self.folder.exists(SUMS):
                raise
            stats = records.stats()
        except DamagedRecord:
            return None  # made again when the command is run again
        return stats

    def stats(self) -> Stats:
        """Counts of a merged dataset."""
        return self._records.stats()


def check_free(place: OutputFolder | str | Path) -> None:
    """Refuse a folder that holds something else than an expansion.

    Raises:
        ExpansionError: it does; the message names some of it.
    """
    folder = as_folder(place)
    folder.check()
    foreign = folder.names()
    if foreign and PLAN not in foreign:
        raise ExpansionError(
            f"{folder}: expected an empty folder or an expansion to go on with, found "
            f"{len(foreign)} other files ({', '.join(foreign[:3])}); choose another one."
        )


def _lines(entries: Iterable[Record]) -> list[ManifestLine]:
    return [entry for entry in entries if isinstance(entry, ManifestLine)]


def _comparable(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != WHERE}
