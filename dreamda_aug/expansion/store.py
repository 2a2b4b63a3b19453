"""A dataset's folder while it is made: batches committed one by one, merged when all are there."""

import heapq
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import Any

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.card import EXPORTS, Stats, dataset_card, read_stats, write_exports
from dreamda_aug.expansion.layouts import WORK, FolderLayout, Layout, ShardLayout
from dreamda_aug.expansion.manifest import (
    CARD,
    MANIFEST,
    PLAN,
    SKIPPED,
    ManifestLine,
    Record,
    Skipped,
    flat,
    read_metadata,
)
from dreamda_aug.expansion.seeds import Plan
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.inputs.seed_images import SeedImages

# Digests of the merged records, as ``sha256sum -c`` reads them; written last, so that a dataset is
# complete once it is there.
SUMS = "SHA256SUMS"
_SUMMED = (PLAN, SKIPPED, MANIFEST)


def check_out(images: SeedImages, folder: OutputFolder) -> None:
    """Refuse to write between the seed images, or over other files."""
    if folder.path is not None and images.is_folder and images.root is not None:
        out, inside = folder.path.resolve(), images.root.resolve()
        if out.is_relative_to(inside):
            raise ValueError(
                f"out must lie outside the seed images' folder {inside}, got {out}: the next run "
                "would take synthetic images for seed images.")
    folder.check()
    names = folder.names()
    if names and PLAN not in names:
        raise ExpansionError(
            f"{folder}: expected an empty folder or an expansion to resume, found {len(names)} "
            f"other files ({', '.join(names[:3])}); choose another one.")


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
        self.layout: Layout = (
            FolderLayout(folder, list(metadata["source"]["classes"]))
            if metadata["image_format"] == "folder"
            else ShardLayout(folder, metadata["batches_per_shard"]))

    def join(self) -> list[str]:
        """Begin the dataset, or return how its metadata differ, as ``settings.steps: 5 -> 10``."""
        text = json.dumps(self.metadata, indent=2) + "\n"
        if not self.folder.exists(PLAN):
            self.folder.write(PLAN, [text.encode()])
        old, new = dict(flat(read_metadata(self.folder))), dict(flat(json.loads(text)))
        # what may differ from one machine to the next, since it does not decide the images
        return [f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
                for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)
                and name.partition(".")[0] not in ("paths", "license", "calibration")]

    def records(self) -> Iterator[tuple[int, list[Record]]]:
        """Records of each batch that has them all, in the plan's order."""
        names = (name.removesuffix(".jsonl") for name in self.folder.names(WORK))
        own = {int(name) for name in names if name.isdecimal()}
        streams = [(record for record in self._parsed(name) if record.batch not in own)
                   for name in (MANIFEST, SKIPPED)]
        streams.append(each for batch in sorted(own) for each in self._parsed(_file_of(batch)))
        last, by_batch = -1, attrgetter("batch")
        for batch, group in groupby(heapq.merge(*streams, key=by_batch), by_batch):
            if last < batch < self.plan.batches:  # else it is out of order: damaged
                last = batch
                found = {record.id: record for record in group}
                planned = [sample.id for sample in self.plan.batch(batch)]
                if found.keys() >= set(planned):
                    yield batch, [found[each] for each in planned]

    def pending(
        self, mine: Collection[int], look: Callable[[Record], None],
        progress: Callable[[int], None],
    ) -> tuple[list[int], list[str]]:
        """Compare the files of some batches with their records, and records with their digests.

        ``look`` is called with each record that can be relied on, and ``progress`` with the number
        of samples read so far.

        Returns:
            The batches to make, also those of other processes that were lost with one of these;
            and the files that are missing or differ from what was written.
        """
        wrong, read = self._wrong_records(), 0
        damaged = [*wrong]
        if SKIPPED in wrong:  # nothing else could tell whether a line was changed
            self.folder.remove(SKIPPED)
        batches = set(range(self.plan.batches) if self.folder.exists(MANIFEST) else mine)
        for batch, records in self.records():
            if batch not in mine:  # the process with that share reads its files
                batches.discard(batch)
                continue
            files = self.layout.damaged(
                batch, [record for record in records if isinstance(record, ManifestLine)])
            if not files or MANIFEST not in wrong:
                for record in records:
                    look(record)
            if not files:
                batches.discard(batch)
            damaged += files
            read += self.plan.batch_length(batch)
            progress(read)
        found = sorted(batch for batch in self.layout.beside(batches) if batch < self.plan.batches)
        if found or wrong:  # records are merged anew
            for name in (SUMS, *EXPORTS):
                self.folder.remove(name)
        return found, damaged

    def commit(
        self, batch: int, samples: Sequence[tuple[ManifestLine, bytes]],
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
            except FileNotFoundError:
                # made again when the command is run again, unless another process has just merged
                if not folder.exists(SUMS):
                    return None
        stats = read_stats(folder)
        if not folder.exists(CARD):  # a user may have edited one that is there
            folder.write(CARD, [dataset_card(self.metadata, stats).encode()])
        write_exports(folder, self.metadata)
        if is_new:
            folder.write(SUMS, [f"{self._sum_of(name)}\n".encode() for name in _SUMMED])
        if folder.exists(WORK):
            folder.tidy()
            folder.remove(WORK, recursive=True)
        return stats

    def _parsed(self, name: str) -> Iterator[Record]:
        """The records in a file, without damaged ones; none if there is no such file."""
        with suppress(FileNotFoundError), self.folder.open(name) as file:
            for line in file:
                # lines of the manifest begin with their id
                kind = Skipped if line.startswith(b'{"batch":') else ManifestLine
                with suppress(ExpansionError):
                    yield kind.from_json(line)

    def _lines(self, kind: type[Record]) -> Iterator[bytes]:
        """Lines of one kind, of all batches; FileNotFoundError if a record is missing."""
        following, index, digest = 0, -1, ""
        for batch, records in self.records():
            if batch != following:
                break
            following += 1
            for each in records:
                if each.seed_index == index and each.seed_digest != digest:
                    raise ExpansionError(
                        f"{self.folder}: seed image {each.seed_path} was changed while images were "
                        "made from it. Begin anew with --new (new=True).")
                index, digest = each.seed_index, each.seed_digest
                if isinstance(each, kind):
                    yield f"{each.to_json()}\n".encode()
        if following < self.plan.batches:
            raise FileNotFoundError(f"{self.folder}: batch {following} has no record.")

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
