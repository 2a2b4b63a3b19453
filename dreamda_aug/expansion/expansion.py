"""Whole datasets: every seed image, several replicas of each, resumable and on record."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch

from dreamda_aug.arguments import check_fields, checked, whole
from dreamda_aug.calibration.automatic import calibrated
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.batch_maker import BatchMaker
from dreamda_aug.expansion.card import Stats, license_of
from dreamda_aug.expansion.engines import Progress, RayEngine, cpu_threads, join_processes
from dreamda_aug.expansion.filters import Filter
from dreamda_aug.expansion.layouts import WORK
from dreamda_aug.expansion.manifest import (
    FORMAT,
    PLAN,
    library_versions,
    read_metadata,
    settings_to_json,
)
from dreamda_aug.expansion.regeneration import paths_from
from dreamda_aug.expansion.seeds import (
    DEFAULT_RATIO,
    Plan,
    count_replicas,
    first_replicas,
    seed_check,
)
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.expansion.store import SUMS, Store, check_out
from dreamda_aug.generation.dials import Calibration, find_calibration
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.samples import check_names
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.machine_paths import without_paths


@dataclass(frozen=True)
class Summary:
    """The result of an expansion.

    Attributes:
        out: the dataset's folder: its path, or a URL such as ``"s3://bucket/folder"``.
        whole: whether it is finished; False while other processes still work on it.
        made: samples that this process made.
        stats: counts of the whole dataset, or None unless ``whole``.
        warnings: sentences for the user.
    """

    out: Path | str
    whole: bool
    made: int
    stats: Stats | None
    warnings: list[str]


@dataclass(eq=False)
class Expansion:
    """A synthetic dataset to be made.

    The constructor lists the seed images and plans. `run` loads the model, and calibrates it on a
    sample of the seed images if dials are None.

    Seed image, replica number and ``rng_seed`` determine every sample, and the plan fixes the
    batches. So files are the same byte for byte on the same kind of machine, for any number of
    processes and interruptions. Inversions are not cached, since those from batches of another
    shape differ in their last bits. Duplicate seed images get distinct replica numbers, so their
    outputs differ.

    Args:
        source: what `open_seed_images` takes: a folder, a list, a name, a dataset.
        synthesizer: makes the images; or a `DreamDAugment`, for its synthesizer; or None for the
            bundled model. Its cache plays no role.
        expansion_ratio: synthetic images per seed image, >= 0; or numbers by class name, with 5
            for the classes that it does not name.
        balance: raise every class to the size that the largest one reaches with its ratio, real
            and synthetic images together; smaller classes get more replicas per image.
        only_classes: names of the classes to expand, or None for all.
        limit: the largest number of seed images to use, taken in turn from each class, or None for
            all.
        image_format: ``"folder"`` (torchvision's ``ImageFolder``) or ``"webdataset"``.
        shard_samples: about how many samples go into a WebDataset shard.
        filters: drop images, see `Filter`.
        keep_flagged: keep such images, with their flags in the manifest, instead of dropping and
            counting them.
        strict: raise for unreadable seed images, empty classes and repeated entries, instead of
            leaving them out and counting them.
        threads: CPU threads per process if the model runs on the CPU. It is part of the plan, since
            it changes the last bits. Several processes with one thread each are faster than one
            with several.
        license: the model's licence, for the card, or None for what its folder states.
        calibrate: calibrate dials that are None on a sample of the source, once: the result is
            stored beside the synthesizer's cache. False takes what `calibrate` found, or mild
            defaults.

    Raises:
        ValueError: an argument breaks its rule.
        FileNotFoundError: the source is not there.
    """

    source: Any
    synthesizer: Synthesizer | HasSynthesizer | None = None
    expansion_ratio: int | Mapping[str, int] = DEFAULT_RATIO
    _: KW_ONLY
    balance: bool = False
    only_classes: Collection[str] | None = None
    limit: int | None = None
    image_format: Literal["folder", "webdataset"] = "folder"
    shard_samples: int = 1000
    filters: Sequence[Filter] = ()
    keep_flagged: bool = False
    strict: bool = False
    threads: int = 1
    license: str | None = None
    calibrate: bool = True

    def __post_init__(self) -> None:
        check_fields(self)
        whole("shard_samples", self.shard_samples, 1)
        whole("threads", self.threads, 1, 4095)
        self._calibration: Calibration | None = None
        check_names([self.license or ""])
        self.images = open_seed_images(self.source).labeled()
        if self.strict and self.images.problems:
            raise ValueError(f"strict: {'; '.join(self.images.problems)}.")
        self._synthesizer = as_synthesizer(
            self.synthesizer or Synthesizer()).with_class_names(self.images.names)
        names, classes = self._synthesizer.conditioner.class_names, self.images.classes
        if names is not None and len(names) != len(classes):
            raise ValueError(
                f"class_names must name the source's {len(classes)} classes, got {len(names)}.")
        replicas = count_replicas(
            self.images, self.expansion_ratio, balance=self.balance,
            only_classes=self.only_classes, limit=self.limit)
        self.plan = Plan(replicas, self._synthesizer.batch_size)

    @cached_property
    def maker(self) -> BatchMaker:
        """Makes the batches; the first use loads the model, and calibrates it."""
        join_processes()  # before the model is loaded: it chooses this process's device
        synthesizer, images, chosen = self._synthesizer, self.images, self.plan.replicas
        model, conditioner = synthesizer.model, synthesizer.conditioner
        condition_of = conditioner.of_images(images, model)
        if self.calibrate:
            # all of them, however few are used; captions are known for those alone
            usable = range(len(images)) if conditioner.captions is None else chosen
            self._synthesizer, self._calibration = calibrated(
                synthesizer, images, usable, condition_of)
        elif synthesizer.requested_settings.open_dials:
            self._calibration = find_calibration(
                synthesizer.requested_settings, model, synthesizer.cache)
        sampler = replace(self._synthesizer.sampler, cache=None)
        if synthesizer.keep_text_encoder is False:
            prompts = set(map(condition_of, chosen))
            model.embed_only([None, sampler.settings.source_prompt, *prompts])
        return BatchMaker(
            images, sampler, condition_of, self.filters, self.keep_flagged, self.strict)

    @cached_property
    def metadata(self) -> dict[str, Any]:
        """Everything that decides the dataset's files; the first use loads the model.

        It is what `read_metadata` returns, but for paths and repeated seed images.
        """
        images, sampler = self.images, self.maker.sampler
        model, settings = sampler.model, sampler.settings
        conditioner, embedded = self._synthesizer.conditioner, None
        conditions: dict[str, Any]
        if conditioner.captions is None:
            conditions = {name: conditioner.condition(label, model)
                          for label, name in enumerate(images.classes)}
            if model.condition_kind == "text":  # changes with the text encoder
                embedded = _digest([model.condition_digest(text)
                                    for text in [settings.source_prompt, *conditions.values()]])
        else:  # an image's own record holds its own
            conditions = {"captions": _digest(
                [[index, self.maker.condition_of(index)] for index in self.plan.replicas])}
        ratio, counts = self.expansion_ratio, Counter(images.labels)
        return {
            **FORMAT,
            "samples": len(self.plan), "batch_size": self.plan.batch_size,
            "image_format": self.image_format,
            "batches_per_shard": max(1, self.shard_samples // self.plan.batch_size)
            if self.image_format == "webdataset" else None,
            "expansion": {
                "expansion_ratio": dict(ratio) if isinstance(ratio, Mapping) else ratio,
                "only_classes": None if self.only_classes is None else sorted(self.only_classes),
                **{name: getattr(self, name) for name in ("balance", "limit", "keep_flagged")},
            },
            "filters": [each.describe() for each in self.filters],
            "settings": settings_to_json(settings),
            "calibration": self._calibration and self._calibration.metadata(),
            "rng_seed": sampler.rng_seed,
            "conditions": conditions,
            "model": model.fingerprint,
            "schedule": sampler.schedule.digest(),
            "embedded": embedded,
            "device": torch.device(model.device).type,
            "threads": self.threads if torch.device(model.device).type == "cpu" else None,
            "image_size": list(model.image_size),
            # the first: the VAE's batches change the last bits
            **{name: getattr(model, name)
               for name in ("low_memory", "block_index", "embedded_guidance")},
            "compile": sampler.static_shapes,
            "versions": library_versions(),
            "source": {
                "images": len(images),
                "digest": images.digest(),
                "classes": {name: counts[label] for label, name in enumerate(images.classes)},
                "problems": [without_paths(problem) for problem in images.problems],
            },
            "license": without_paths(self.license or license_of(model.name)),
        }

    @checked
    def run(
        self, out: str | Path, *, new: bool = False, shard: tuple[int, int] | None = None,
        progress: Callable[[Progress], None] | None = None, engine: RayEngine | None = None,
    ) -> Summary:
        """Make what is missing in a folder.

        Files of an earlier run are compared with their digests first; missing and changed ones are
        made again. Changed seed images are refused.

        Args:
            out: the dataset's folder: empty, not there yet, or begun by the same expansion; a
                path, or a URL that fsspec opens, such as ``s3://bucket/folder``.
            new: set an existing result aside (as ``OUT.old1``) and start again.
            shard: (number, count) of this process among several, or None for those of ``accelerate
                launch``, else (0, 1).
            progress: called after each batch.
            engine: runs the batches on Ray, or None to run them in this process.

        Raises:
            ExpansionError: the folder holds something else, was begun with other settings or other
                seed images, or cannot be written; or, with ``strict``, a seed image is unreadable.
            GenerationError: the model failed. What was made is kept.
        """
        folder = OutputFolder(out)
        check_out(self.images, folder)
        number, count = join_processes() if shard is None else shard
        if not 0 <= number < count:
            raise ValueError(f"shard must be (number, count) with number < count, got {shard}.")
        if new and count > 1:
            raise ValueError(
                "new: set the old result aside with one process, then start the others without it.")
        if new and folder.exists(PLAN):
            folder.set_aside()
        store = self._join(folder)
        mine, length = range(number, self.plan.batches, count), self.plan.batch_length
        total, made = sum(map(length, mine)), 0

        def report(done: int, stage: Literal["checking", "making"] = "making") -> None:
            if progress:
                progress(Progress(done, total, made, stage))

        def done(batch: int) -> None:
            nonlocal made
            made += length(batch)
            report(kept + made)

        # a complete dataset is only read
        lock = (nullcontext(True) if folder.exists(SUMS)
                else folder.lock(f"{WORK}/lock-{number}-of-{count}"))
        with lock as mine_alone:
            if not mine_alone:
                raise ExpansionError(
                    f"{folder}: another process is at work here as number {number} of {count}; "
                    "wait for it, or give each process its own --shard.")
            pending, damaged = store.pending(mine, seed_check(self.images, str(folder)),
                                             partial(report, stage="checking"))
            kept = total - sum(length(batch) for batch in pending if batch in mine)
            if pending:
                report(kept)
                self._make(pending, store, engine, done)
            stats = store.finish()
        if stats is not None and self.strict and stats.unreadable:
            raise ExpansionError(
                f"strict: {stats.unreadable.total()} images were left out by an earlier run "
                "without strict; see skipped.jsonl.")
        warnings = list(self.images.problems)
        if damaged:
            warnings.append(
                f"{len(damaged)} files were missing or were not as they had been written (such as "
                f"{damaged[0]}); they are made again.")
        warnings += stats.warnings(self.images.classes) if stats else []
        return Summary(folder.path or str(folder), stats is not None, made, stats, warnings)

    def _make(
        self, pending: Sequence[int], store: Store, engine: RayEngine | None,
        done: Callable[[int], None],
    ) -> None:
        threads = store.metadata["threads"]
        if engine is not None:  # with the dials that were measured here
            again = replace(self, source=self.images, synthesizer=self._synthesizer,
                            calibrate=False)
            engine.run(partial(_open_elsewhere, again, store.folder), pending, done, threads)
            return
        with cpu_threads(threads):
            make = self._opened(store)
            for batch in pending:
                make(batch)
                done(batch)

    def _opened(self, store: Store) -> Callable[[int], None]:
        """Return a function that makes a batch and writes it."""
        for each in self.filters:
            each.prepare(self.images, self.maker.sampler.model)
        return lambda batch: store.commit(
            batch, *self.maker.make(batch, store.plan.batch(batch), store.layout.file))

    def _join(self, folder: OutputFolder) -> Store:
        """The dataset's folder, begun or joined; ExpansionError if it was begun otherwise."""
        first = (read_metadata(folder)["repeats"] if folder.exists(PLAN)
                 else first_replicas(self.images, self.plan))
        paths = paths_from(folder.path, self.images, self.maker.sampler.model)
        store = Store(folder, self.metadata | {"repeats": first, "paths": paths},
                      Plan(self.plan.replicas, self.plan.batch_size, first))
        changed = store.join()
        if len(changed) == 1 and changed[0].startswith("source.digest"):
            look = seed_check(self.images, str(folder))
            for _, records in store.records():  # one of these is of another size: say which
                for record in records:
                    look(record)
        if changed:
            raise ExpansionError(
                f"{folder} was begun with other settings: {'; '.join(changed)}. Use the old "
                "ones, on every machine, another --out, or --new, which sets the old result aside.")
        return store


@checked
def expand(
    source: Any, out: str | Path, synthesizer: Synthesizer | HasSynthesizer | None = None,
    expansion_ratio: int | Mapping[str, int] = DEFAULT_RATIO, *, new: bool = False,
    shard: tuple[int, int] | None = None, progress: Callable[[Progress], None] | None = None,
    engine: RayEngine | None = None, **options: Any,
) -> Summary:
    """Write a synthetic dataset, or resume one that was interrupted.

    ``expand("train", "train_synthetic", Synthesizer(), 5)`` is the whole job. All arguments are
    those of `Expansion` and of its `run`.

    Source: Fu et al. 2024, arXiv:2403.12803; the planning and record-keeping are ours.
    """
    expansion = Expansion(source, synthesizer, expansion_ratio, **options)
    return expansion.run(out, new=new, shard=shard, progress=progress, engine=engine)


def _open_elsewhere(expansion: Expansion, folder: OutputFolder) -> Callable[[int], None]:
    """What makes a batch and writes it, in another process than the one that planned it."""
    if not folder.exists(PLAN):
        raise ExpansionError(
            f"{folder}: a process on another machine does not see this folder; give one that all "
            "machines share.")
    store = expansion._join(folder)
    if (threads := store.metadata["threads"]) is not None:
        torch.set_num_threads(threads)
    return expansion._opened(store)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
