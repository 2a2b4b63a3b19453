"""The folder that an expansion writes: units committed one by one, merged when all are there."""

import json
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.plan import Plan, differences
from dreamda_aug.files import (
    TEMPORARY,
    atomic_file,
    read_lines,
    remove_temporaries,
    write_atomically,
)
from dreamda_aug.records.facts import PLAN, SKIPPED, WHERE, read_plan, read_skipped
from dreamda_aug.records.layouts import WORK, Layout
from dreamda_aug.records.manifest import MANIFEST, ManifestLine, read_manifest

logger = logging.getLogger(__name__)



class Store:
    """A dataset's folder, shared by any number of processes without locks.

    Each process writes the files of its units, and after them the unit's record, which says that
    the unit is whole. Every file takes its place in one step, and no two processes write the same
    one. Whoever finds all records present merges them; doing so twice gives the same bytes.

    Args:
        root: the dataset's folder.
        plan: what is to be made.
        layout: how images lie on disk.
    """

    def __init__(self, root: Path, plan: Plan, layout: Layout):
        self.root, self.plan, self.layout = root, plan, layout
        self._work = root / WORK

    def join(self, facts: dict[str, Any]) -> None:
        """Begin the dataset, or go on with one that was begun with the same facts.

        Raises:
            ExpansionError: the folder holds something else, or was begun with other settings.
        """
        check_free(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / PLAN
        if not path.exists():
            data = json.dumps(facts, indent=2) + "\n"
            draft = self.root / f"{PLAN}.{secrets.token_hex(4)}{TEMPORARY}"
            write_atomically(draft, data.encode())
            try:
                os.link(draft, path)  # unlike replace, fails where another process was quicker
            except FileExistsError:
                pass
            except OSError:
                os.replace(draft, path)  # a file system without hard links
            finally:
                draft.unlink(missing_ok=True)
        found = read_plan(self.root)
        changed = differences(_comparable(found), _comparable(json.loads(json.dumps(facts))))
        if changed:
            raise ExpansionError(
                f"{self.root} was begun with other settings: {'; '.join(changed)}. Use the old "
                "ones, another --out, or --new, which sets the old result aside."
            )
        if not self.is_whole():
            self._work.mkdir(exist_ok=True)

    @contextmanager
    def claim(self, number: int, count: int) -> Iterator[None]:
        """Keep other processes from doing the same share of the work at the same time.

        Held by the operating system, so that a killed process leaves no claim behind.

        Args:
            number: of this process.
            count: of all processes.

        Raises:
            ExpansionError: another process is at it.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        if self.is_whole():
            yield
            return
        self._work.mkdir(exist_ok=True)
        path = self._work / f"claim-{number}-of-{count}"
        with open(path, "wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ExpansionError(
                    f"{self.root}: another process is at work here as number {number} of {count}; "
                    "wait for it, or give each process its own --shard."
                ) from None
            except OSError:
                logger.debug("%s: this file system keeps no locks", path)
            yield

    def is_whole(self) -> bool:
        """Whether everything was merged; says nothing about files that were deleted since."""
        return (self.root / MANIFEST).exists() and not self._work.exists()

    def done_units(self) -> set[int]:
        """Numbers of the units whose record and files are all there."""
        counts: dict[int, int] = {}
        for unit, whole in self._records():
            counts[unit] = counts.get(unit, 0) + whole
        done = {unit for unit, count in counts.items() if count == self.plan.unit_length(unit)}
        if (self.root / MANIFEST).exists() and len(done) < self.plan.units:
            self._reopen(done)
        return done

    def commit(
        self,
        unit: int,
        samples: Sequence[tuple[ManifestLine, bytes]],
        skipped: Sequence[dict[str, str]],
    ) -> None:
        """Write the files of a unit, and then its record.

        Args:
            unit: number of the unit.
            samples: manifest lines with their PNG files.
            skipped: one entry for each planned sample that was not made or not kept.
        """
        self.layout.write(unit, samples)
        self._write_record(unit, [line.to_json() for line, _ in samples]
                           + [_skip_to_json(unit, entry) for entry in skipped])

    def finish(self, card: "CardWriter") -> bool:
        """Merge the units' records into the manifest, if all are there.

        Args:
            card: writes the dataset card from the finished folder.

        Returns:
            Whether the dataset is whole now.
        """
        try:
            if not (self.root / MANIFEST).exists():
                present = set(os.listdir(self._work))
                if any(f"{u:08d}.jsonl" not in present for u in range(self.plan.units)):
                    return False
                self.layout.finish(self.plan.units)
                self._merge(SKIPPED, skipped=True)
                self._merge(MANIFEST, skipped=False)
            write_atomically(self.root / "dataset_card.md", card(self.root).encode())
            for path in self._work.glob("*"):
                path.unlink(missing_ok=True)
            self._work.rmdir()
            remove_temporaries(self.root)
        except FileNotFoundError:
            # another process merged at the same time, and was ahead with tidying up
            if not (self.root / MANIFEST).exists():
                raise
        return True

    def _records(self) -> Iterator[tuple[int, bool]]:
        """Unit of each planned sample that is on record, and whether its file is there."""
        if (self.root / MANIFEST).exists():
            for line in read_manifest(self.root):
                yield line.unit, self.layout.holds(line)
            for _, entry in read_skipped(self.root):
                yield entry["unit"], True
            return
        for path in sorted(self._work.glob("*.jsonl")):
            for where, text in read_lines(path):
                if _is_skip(text):
                    yield int(path.stem), True
                else:
                    yield int(path.stem), self.layout.holds(ManifestLine.from_json(text, where))

    def _reopen(self, done: set[int]) -> None:
        """Turn a merged manifest back into records of the units that are whole."""
        records: dict[int, list[str]] = {unit: [] for unit in done}
        for line in read_manifest(self.root):
            if line.unit in records:
                records[line.unit].append(line.to_json())
        for text, entry in read_skipped(self.root):
            if entry["unit"] in records:
                records[entry["unit"]].append(text.strip())
        self._work.mkdir(exist_ok=True)
        for unit, lines in records.items():
            self._write_record(unit, lines)
        (self.root / MANIFEST).unlink(missing_ok=True)

    def _write_record(self, unit: int, lines: Sequence[str]) -> None:
        text = "".join(line + "\n" for line in lines)
        write_atomically(self._work / f"{unit:08d}.jsonl", text.encode())

    def _merge(self, name: str, skipped: bool) -> None:
        with atomic_file(self.root / name) as file:
            for unit in range(self.plan.units):
                record = (self._work / f"{unit:08d}.jsonl").read_bytes()
                for line in record.splitlines(keepends=True):
                    if _is_skip(line.decode()) == skipped:
                        file.write(line)


class CardWriter(Protocol):
    """Makes the text of the dataset card from a finished folder."""

    def __call__(self, root: Path) -> str: ...


def check_free(root: Path) -> None:
    """Refuse a folder that holds something else than an expansion.

    Raises:
        ExpansionError: it does; the message names some of it.
    """
    if root.exists() and not root.is_dir():
        raise ExpansionError(f"{root}: expected a folder, found a file.")
    if not root.is_dir():
        return
    foreign = sorted(name for name in os.listdir(root) if not name.endswith(TEMPORARY))
    if foreign and not (root / PLAN).exists():
        raise ExpansionError(
            f"{root}: expected an empty folder or an expansion to go on with, found "
            f"{len(foreign)} other files ({', '.join(foreign[:3])}); choose another one."
        )


def set_aside(root: Path) -> Path | None:
    """Rename a dataset's folder to ``NAME.old1``, or the next free number; None: there is none."""
    if not (root / PLAN).exists():
        return None
    number = 1
    while (target := root.with_name(f"{root.name}.old{number}")).exists():
        number += 1
    root.rename(target)
    return target


def _comparable(facts: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name != WHERE}


def _skip_to_json(unit: int, entry: dict[str, str]) -> str:
    return json.dumps({"unit": unit, **entry}, separators=(",", ":"))


def _is_skip(text: str) -> bool:
    # written by `_skip_to_json`; manifest lines begin with their id
    return text.startswith('{"unit":')
