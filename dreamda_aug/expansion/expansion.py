"""Whole datasets: every seed image, K replicas each, resumable and on record."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from dreamda_aug.arguments import checked, whole
from dreamda_aug.calibration.automatic import calibrated
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.batches import BatchMaker
from dreamda_aug.expansion.card import dataset_card, license_of
from dreamda_aug.expansion.class_conditions import conditions
from dreamda_aug.expansion.engine import Engine, Job
from dreamda_aug.expansion.exports import exports_of, write_exports
from dreamda_aug.expansion.filters import Filter
from dreamda_aug.expansion.layouts import FolderLayout, Layout, ShardLayout
from dreamda_aug.expansion.manifest import MAX_BATCH
from dreamda_aug.expansion.metadata import CARD, PLAN, WHERE
from dreamda_aug.expansion.output import LocalFolder, OutputFolder
from dreamda_aug.expansion.paths import check_out, paths_from
from dreamda_aug.expansion.plan_metadata import plan_metadata
from dreamda_aug.expansion.progress import Progress, Report
from dreamda_aug.expansion.remote import open_folder
from dreamda_aug.expansion.repeats import first_replicas
from dreamda_aug.expansion.replicas import Plan, count_replicas, differences
from dreamda_aug.expansion.seed_check import SeedCheck
from dreamda_aug.expansion.sharding import (
    check_shard,
    cpu_threads,
    first_process_first,
    join_processes,
)
from dreamda_aug.expansion.stats import Stats
from dreamda_aug.expansion.store import State, Store
from dreamda_aug.generation.dials import Calibration, find_calibration, is_calibrated
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.generation.tensors import TensorSynthesizer
from dreamda_aug.inputs.sources import Source, open_source

ImageFormatName = Literal["folder", "webdataset"]


@dataclass(frozen=True)
class Summary:
    """The result of an expansion.

    Attributes:
        root: the dataset's folder: its path, or what ``out_dir`` calls itself where that is no
            folder of this machine, such as ``"s3://bucket/folder"``.
        whole: whether it is finished; False where other processes are still at work.
        made: samples that this process made.
        stats: counts of the whole dataset; None unless ``whole``.
        warnings: what a user should look into.
    """

    root: Path | str
    whole: bool
    made: int
    stats: Stats | None
    warnings: list[str]


class Expansion:
    """A synthetic dataset to be made; planning decodes only images to calibrate on.

    Seed image, replica number and ``rng_seed`` decide every sample, and every batch is part of the
    plan. So files are the same byte for byte on the same kind of machine, for any number of
    processes and however often the work was interrupted. Inversions are neither read from nor
    written to a cache: its entries may come from batches of another shape, and differ in their
    last bits. A seed image that equals an earlier one goes on with the numbers of its replicas, so
    that they differ.

    Args:
        source: what `open_source` takes, or returns.
        synthesizer: makes the images, or a `DreamDAugment`, for its synthesizer; its cache plays
            no role. None: the bundled model.
        expansion_ratio: synthetic images per seed image, >= 0; or one number per class name.
        balance: see `count_replicas`.
        only_classes: names of the classes to expand; None: all.
        limit: the largest number of seed images to use, taken in turn from each class.
        image_format: ``"folder"`` (torchvision's ``ImageFolder``) or ``"webdataset"``.
        shard_samples: about how many samples go into a WebDataset shard.
        filters: what may object to an image.
        keep_flagged: keep those images, and note the flag in the manifest; else they are left out
            and counted.
        strict: unreadable seed images, empty classes and repeated entries are errors; else they
            are left out and counted.
        threads: CPU threads per process, where the model runs on the CPU: the last bits depend
            on their number, so it is part of the plan. Several processes with one thread each are
            quicker than one with several.
        license: the model's licence, for the card; None: as its folder states it.
        calibrate: where dials are None, measure them on a sample of the source: once, since the
            result lies beside the synthesizer's cache. False: take what `calibrate` found, or mild
            defaults.

    Raises:
        ValueError: an argument breaks its rule.
        FileNotFoundError: the source is not there.
    """

    @checked
    def __init__(
        self,
        source: str | Path | Dataset[Any] | Source,
        synthesizer: Synthesizer | HasSynthesizer | None = None,
        expansion_ratio: int | Mapping[str, int] = 5,
        *,
        balance: bool = False,
        only_classes: Collection[str] | None = None,
        limit: int | None = None,
        image_format: ImageFormatName = "folder",
        shard_samples: int = 1000,
        filters: Sequence[Filter] = (),
        keep_flagged: bool = False,
        strict: bool = False,
        threads: int = 1,
        license: str | None = None,
        calibrate: bool = True,
    ):
        shard_samples = whole("shard_samples", shard_samples, 1)
        threads = whole("threads", threads, 1, 4095)
        self.source = source if isinstance(source, Source) else open_source(source)
        if strict and self.source.problems:
            raise ValueError(f"strict: {'; '.join(self.source.problems)}.")
        replicas = count_replicas(self.source, expansion_ratio, balance=balance,
                                  only_classes=only_classes, limit=limit)
        join_processes()  # before the model is loaded: it chooses this process's device
        synthesizer = as_synthesizer(
            Synthesizer() if synthesizer is None else synthesizer)
        self.plan = Plan(
            replicas, whole("batch_size", synthesizer.batch_size, 1, MAX_BATCH))
        self._batches_per_shard = max(1, shard_samples // self.plan.batch_size)
        model = synthesizer.model
        conditioned_on, condition_of = conditions(
            self.source, synthesizer.conditioner, model, replicas)
        calibration: Calibration | None = None
        if calibrate:
            # all of them, however few are used; captions are known for those alone
            usable = (range(len(self.source.labels))
                      if synthesizer.conditioner.captions is None else replicas)
            synthesizer, calibration = calibrated(synthesizer, self.source, usable, condition_of)
        elif not is_calibrated(synthesizer.requested_settings):
            calibration = find_calibration(
                synthesizer.requested_settings, model, synthesizer.cache)
        settings = synthesizer.settings
        self.core = TensorSynthesizer(model, settings, batch_size=synthesizer.batch_size,
                                      rng_seed=synthesizer.rng_seed)
        # a model that runs through torch.compile wants batches of one shape
        self.core.static_shapes = synthesizer.core.static_shapes
        if synthesizer.keep_text_encoder is False:
            prompts = {condition_of(index) for index in replicas}
            model.embed_only([None, settings.source_prompt, *prompts])
        self.maker = BatchMaker(self.source, self.core, condition_of, list(filters),
                               keep_flagged=keep_flagged, strict=strict)
        self.threads = threads if torch.device(model.device).type == "cpu" else None
        # opens the same expansion in another process, with the dials that were measured here
        self._again = partial(
            Expansion, self.source, synthesizer, expansion_ratio, balance=balance,
            only_classes=only_classes, limit=limit, image_format=image_format,
            shard_samples=shard_samples, filters=filters, keep_flagged=keep_flagged,
            strict=strict, threads=threads, license=license, calibrate=False)
        asked = {
            "expansion_ratio": (expansion_ratio if isinstance(expansion_ratio, int)
                                else dict(sorted(expansion_ratio.items()))),
            "balance": balance,
            "only_classes": sorted(only_classes) if only_classes is not None else None,
            "limit": limit,
            "keep_flagged": keep_flagged,
        }
        self.facts = plan_metadata(
            self.source, self.plan, self.core, asked, image_format=image_format,
            batches_per_shard=self._batches_per_shard if image_format == "webdataset" else None,
            filters=filters, calibration=calibration, conditioned_on=conditioned_on,
            threads=self.threads)
        self._license = license or license_of(self.core.model.name)

    def run(
        self,
        out_dir: str | Path | OutputFolder,
        *,
        new: bool = False,
        shard: tuple[int, int] | None = None,
        progress: Callable[[Progress], None] | None = None,
        engine: Engine | None = None,
    ) -> Summary:
        """Make what is missing in a folder.

        What an earlier run wrote is compared with its digests first: what is missing or was
        changed is made again. Seed images that have changed since are refused.

        Args:
            out_dir: the dataset's folder: empty, not there yet, or begun by the same expansion; a
                path, or a place that fsspec knows, such as ``s3://bucket/folder``.
            new: set an existing result aside (as ``OUT_DIR.old1``) and begin anew.
            shard: (number, count) of this process among several; None: as ``accelerate launch``
                says, else (0, 1).
            progress: called after each batch.
            engine: runs the batches, such as `RayEngine`; None: this process does.

        Raises:
            ExpansionError: the folder holds something else, was begun with other settings or other
                seed images, or cannot be written; or, with ``strict``, a seed image is unreadable.
            GenerationError: the model failed. What was made is kept.
        """
        started = time.perf_counter()
        folder = open_folder(out_dir)
        check_out(self.source, folder)
        number, count = check_shard(shard) if shard is not None else join_processes()
        if new:
            with first_process_first(count, shard):
                if number == 0 and folder.exists(PLAN):
                    folder.set_aside()
        mine = range(number, self.plan.units, count)
        report = Report(progress, sum(map(self.plan.batch_length, mine)), started)
        begun = Store(folder, self.plan, self._layout(folder)).begun()
        self._number_replicas(
            first_replicas(self.source, self.plan) if begun is None else begun.get("repeats", {}))
        store = Store(folder, self.plan, self._layout(folder))
        self._join(store)
        was_whole = store.is_whole()
        if was_whole:
            state = self._check(store, mine, report)
            if state.sound and not state.again:
                return self._close(store, 0, state)
        with store.claim(number, count):
            if not was_whole:
                state = self._check(store, mine, report)
            if not state.sound or state.again:
                store.reopen(state)
            return self._work(store, mine, state, report, engine)

    def _number_replicas(self, first: dict[str, int]) -> None:
        """Let seed images that equal an earlier one go on with the numbers of its replicas."""
        self.facts["repeats"] = first
        self.plan = self.plan.beginning_at({int(index): each for index, each in first.items()})

    def _join(self, store: Store) -> None:
        changed = store.join(self.facts | {WHERE: self._places(store.folder)})
        if len(changed) == 1 and changed[0].startswith("source.digest"):
            # one of these is of another size: say which
            store.check(range(self.plan.units), SeedCheck(self.source, str(store.folder)))
        if changed:
            raise ExpansionError(
                f"{store.folder} was begun with other settings: {'; '.join(changed)}. Use the old "
                "ones, another --out, or --new, which sets the old result aside."
            )

    def _check(self, store: Store, mine: Sequence[int], report: Report) -> State:
        return store.check(mine, SeedCheck(self.source, str(store.folder)), report.checked)

    def _work(
        self, store: Store, mine: Sequence[int], state: State, report: Report,
        engine: Engine | None,
    ) -> Summary:
        # what is made again may belong to another process, whose file was lost with ours
        pending = [unit for unit in sorted({*mine, *state.again}) if unit not in state.done]
        made = 0
        report.begin(sum(map(self.plan.batch_length, state.done)))

        def done(unit: int) -> None:
            nonlocal made
            made += self.plan.batch_length(unit)
            report.made(made)

        if engine is not None and pending:
            engine.run(Job(partial(_open_elsewhere, self._again, store.folder, self.facts),
                           pending, done, self.threads))
            return self._close(store, made, state)
        with cpu_threads(self.threads):
            self._prepare(pending)
            for unit in pending:
                self._make(unit, store)
                done(unit)
        return self._close(store, made, state)

    def _prepare(self, pending: Sequence[int]) -> None:
        for each in self.maker.filters if pending else ():
            each.prepare(self.source, self.core.model)

    def _make(self, unit: int, store: Store) -> None:
        samples, skipped = self.maker.make(unit, self.plan.unit(unit), store.layout)
        store.commit(unit, samples, skipped)

    def _close(self, store: Store, made: int, state: State) -> Summary:
        folder, facts = store.folder, self.facts | {WHERE: self._places(store.folder)}

        def describe(stats: Stats, merged: bool) -> None:
            if not folder.exists(CARD):  # one that is there may be a user's by now
                folder.write(CARD, [dataset_card(facts, stats).encode()])
            if merged or not all(map(folder.exists, exports_of(facts))):
                write_exports(folder, facts)

        stats = store.finish(describe)
        if stats is not None and self.maker.strict and stats.unreadable:
            raise ExpansionError(
                f"strict: {sum(stats.unreadable.values())} images were left out by an earlier run "
                "without strict; see skipped.jsonl."
            )
        warnings = self.source.problems + state.warnings() + (stats.warnings() if stats else [])
        root = folder.root if isinstance(folder, LocalFolder) else str(folder)
        return Summary(root, stats is not None, made, stats, warnings)

    def _places(self, folder: OutputFolder) -> dict[str, Any]:
        return paths_from(folder, self.source, self.core.model) | {"license": self._license}

    def _layout(self, folder: OutputFolder) -> Layout:
        if self.facts["image_format"] == "folder":
            return FolderLayout(folder, self.source.classes)
        return ShardLayout(folder, self._batches_per_shard)


@checked
def expand(
    source: str | Path | Dataset[Any] | Source,
    out_dir: str | Path | OutputFolder,
    synthesizer: Synthesizer | HasSynthesizer | None = None,
    expansion_ratio: int | Mapping[str, int] = 5,
    *,
    new: bool = False,
    shard: tuple[int, int] | None = None,
    progress: Callable[[Progress], None] | None = None,
    engine: Engine | None = None,
    **options: Any,
) -> Summary:
    """Write a synthetic dataset, or go on where an interrupted run stopped.

    ``expand("train", "train_synthetic", Synthesizer(), 5)`` is the whole job. All arguments are
    those of `Expansion` and of its `run`.

    Source: Fu et al. 2024, arXiv:2403.12803; the planning and record-keeping are ours.
    """
    expansion = Expansion(source, synthesizer, expansion_ratio, **options)
    return expansion.run(out_dir, new=new, shard=shard, progress=progress, engine=engine)


def _open_elsewhere(
    again: Callable[[], Expansion], folder: OutputFolder, facts: dict[str, Any]
) -> Callable[[int], None]:
    """What makes a unit and writes it, in another process than the one that planned it."""
    expansion = again()
    expansion.facts["calibration"] = facts["calibration"]
    expansion._number_replicas(facts["repeats"])
    changed = differences(facts, expansion.facts)
    if changed:
        raise ExpansionError(
            f"{folder}: a process on another machine would make other images: "
            f"{'; '.join(changed)}. Every machine needs the same versions, model and seed images."
        )
    store = Store(folder, expansion.plan, expansion._layout(folder))
    if store.begun() is None:
        raise ExpansionError(
            f"{folder}: a process on another machine does not see this folder; give one that all "
            "machines share."
        )
    if expansion.threads is not None:
        torch.set_num_threads(expansion.threads)
    expansion._prepare([0])
    return lambda unit: expansion._make(unit, store)
