"""Whole datasets: every seed image, K replicas each, resumable and on record."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch.utils.data import Dataset

from dreamda_aug.arguments import whole
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.conditions import conditions, embedded_digest
from dreamda_aug.expansion.filters import Filter
from dreamda_aug.expansion.plan import Plan, count_replicas
from dreamda_aug.expansion.processes import (
    check_shard,
    cpu_threads,
    first_process_first,
    join_processes,
)
from dreamda_aug.expansion.store import Store, set_aside
from dreamda_aug.expansion.units import UnitMaker
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.generation.tensors import TensorSynthesizer
from dreamda_aug.inputs.file_lists import FileSource
from dreamda_aug.inputs.sources import Source, open_source
from dreamda_aug.records.facts import FORMAT, FORMAT_VERSION, PLAN, WHERE
from dreamda_aug.records.layouts import FolderLayout, Layout, ShardLayout
from dreamda_aug.records.manifest import library_versions, settings_to_json
from dreamda_aug.records.tally import Tally, tally_of
from dreamda_aug.report.card import dataset_card, license_of

ImageFormatName = Literal["folder", "webdataset"]
FORMATS: tuple[ImageFormatName, ...] = get_args(ImageFormatName)


class Progress(NamedTuple):
    """How far one process is.

    Attributes:
        done: samples of this process that are on disk.
        total: samples that this process is to make.
        made: samples made since it was started.
        seconds: time since it was started.
    """

    done: int
    total: int
    made: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """The result of an expansion.

    Attributes:
        root: the dataset's folder.
        whole: whether it is finished; False where other processes are still at work.
        made: samples that this process made.
        tally: counts of the whole dataset; None unless ``whole``.
        warnings: what a user should look into.
    """

    root: Path
    whole: bool
    made: int
    tally: Tally | None
    warnings: list[str]


class Expansion:
    """A synthetic dataset to be made; planning decodes no image.

    Seed image, replica number and ``rng_seed`` decide every sample, and every batch is part of the
    plan. So files are the same byte for byte on the same kind of machine, for any number of
    processes and however often the work was interrupted. Inversions are neither read from nor
    written to a cache: its entries may come from batches of another shape, and differ in their
    last bits.

    Args:
        source: what `open_source` takes, or returns.
        synthesizer: makes the images, or a `DreamDAugment`, for its synthesizer; its cache plays
            no role. None: the bundled backbone.
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
        threads: CPU threads per process, where the backbone runs on the CPU: the last bits depend
            on their number, so it is part of the plan. Several processes with one thread each are
            quicker than one with several.
        license: the backbone's licence, for the card; None: as its folder states it.

    Raises:
        ValueError: an argument breaks its rule.
        FileNotFoundError: the source is not there.
    """

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
    ):
        if image_format not in FORMATS:
            raise ValueError(f"image_format must be one of {FORMATS}, got {image_format!r}.")
        shard_samples = whole("shard_samples", shard_samples, 1)
        threads = whole("threads", threads, 1, 4095)
        self.source = source if isinstance(source, Source) else open_source(source)
        if strict and self.source.problems:
            raise ValueError(f"strict: {'; '.join(self.source.problems)}.")
        replicas = count_replicas(self.source, expansion_ratio, balance=balance,
                                  only_classes=only_classes, limit=limit)
        join_processes()  # before the model is loaded: it chooses this process's device
        synthesizer = as_synthesizer(
            Synthesizer(cache=None) if synthesizer is None else synthesizer)
        self.plan = Plan(replicas, synthesizer.batch_size)
        self._units_per_shard = max(1, shard_samples // self.plan.unit_size)
        backbone, settings = synthesizer.backbone, synthesizer.settings
        self.core = TensorSynthesizer(backbone, settings, batch_size=synthesizer.batch_size,
                                      rng_seed=synthesizer.rng_seed)
        conditioned_on, condition_of = conditions(
            self.source, synthesizer.conditioner, backbone, replicas)
        if synthesizer.keep_text_encoder is False:
            prompts = {condition_of(index) for index in replicas}
            backbone.embed_only([None, settings.source_prompt, *prompts])
        self.maker = UnitMaker(self.source, self.core, condition_of, list(filters),
                               keep_flagged=keep_flagged, strict=strict)
        device = torch.device(backbone.device).type
        self.threads = threads if device == "cpu" else None
        self.facts = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "samples": len(self.plan),
            "unit_size": self.plan.unit_size,
            "image_format": image_format,
            "units_per_shard": self._units_per_shard if image_format == "webdataset" else None,
            "expansion": {
                "expansion_ratio": (expansion_ratio if isinstance(expansion_ratio, int)
                                    else dict(sorted(expansion_ratio.items()))),
                "balance": balance,
                "only_classes": sorted(only_classes) if only_classes is not None else None,
                "limit": limit,
                "keep_flagged": keep_flagged,
            },
            "filters": [each.describe() for each in filters],
            "settings": settings_to_json(settings),
            "rng_seed": self.core.rng_seed,
            "conditions": conditioned_on,
            "backbone": self.core.backbone.fingerprint,
            "schedule": self.core.schedule.digest(),
            "embedded": embedded_digest(backbone, settings, conditioned_on),
            "device": device,
            "threads": self.threads,
            # the VAE's batches change the last bits; None, not False: as in older records
            "low_memory": backbone.low_memory or None,
            "versions": library_versions(),
            "source": {
                "images": len(self.source.labels),
                "digest": self.source.digest(),
                "classes": _class_sizes(self.source),
                "problems": self.source.problems,
            },
            WHERE: {
                "source": self.source.spec,
                "backbone": self.core.backbone.name,
                "license": license or license_of(self.core.backbone.name),
            },
        }

    def run(
        self,
        out_dir: str | Path,
        *,
        new: bool = False,
        shard: tuple[int, int] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> Summary:
        """Make what is missing in a folder.

        Args:
            out_dir: the dataset's folder: empty, not there yet, or begun by the same expansion.
            new: set an existing result aside (as ``OUT_DIR.old1``) and begin anew.
            shard: (number, count) of this process among several; None: as ``accelerate launch``
                says, else (0, 1).
            progress: called after each batch.

        Raises:
            ExpansionError: the folder holds something else, was begun with other settings, or
                cannot be written; or, with ``strict``, a seed image is unreadable.
            GenerationError: the backbone failed. What was made is kept.
        """
        started = time.perf_counter()
        root = Path(out_dir)
        self._check_place(root)
        number, count = check_shard(shard) if shard is not None else join_processes()
        if new:
            with first_process_first(count, shard):
                if number == 0:
                    set_aside(root)
        store = Store(root, self.plan, self._layout(root))
        store.join(self.facts)
        with store.claim(number, count):
            return self._work(store, number, count, progress, started)

    def _work(
        self, store: Store, number: int, count: int,
        progress: Callable[[Progress], None] | None, started: float,
    ) -> Summary:
        done = store.done_units()
        mine = range(number, self.plan.units, count)
        pending = [unit for unit in mine if unit not in done]
        total = sum(map(self.plan.unit_length, mine))
        made = 0
        before = total - sum(map(self.plan.unit_length, pending))
        if progress:
            progress(Progress(before, total, 0, time.perf_counter() - started))
        with cpu_threads(self.threads):
            for each in self.maker.filters if pending else ():
                each.prepare(self.source, self.core.backbone)
            for unit in pending:
                planned = self.plan.unit(unit)
                store.commit(unit, *self.maker.make(unit, planned, store.layout))
                made += len(planned)
                if progress:
                    seconds = time.perf_counter() - started
                    progress(Progress(before + made, total, made, seconds))
        return self._close(store, made)

    def _check_place(self, root: Path) -> None:
        """Refuse to write between the seed images."""
        if not str(root) or str(root) == "." and not (root / PLAN).exists():
            raise ValueError("out_dir must name a folder of its own, got the current one.")
        if isinstance(self.source, FileSource):
            place, inside = root.resolve(), self.source.root.resolve()
            if self.source.is_folder and place.is_relative_to(inside):
                raise ValueError(
                    f"out_dir must lie outside the seed images' folder {inside}, got {place}: the "
                    "next run would take synthetic images for seed images."
                )

    def _close(self, store: Store, made: int) -> Summary:
        tally = None

        def card(root: Path) -> str:
            nonlocal tally
            tally = tally_of(root)
            return dataset_card(self.facts, tally)

        whole = store.is_whole() or store.finish(card)
        if whole and tally is None:
            tally = tally_of(store.root)
        if tally is not None and self.maker.strict and tally.unreadable:
            raise ExpansionError(
                f"strict: {sum(tally.unreadable.values())} images were left out by an earlier run "
                "without strict; see skipped.jsonl."
            )
        warnings = tally.warnings() if tally else []
        return Summary(store.root, whole, made, tally, self.source.problems + warnings)

    def _layout(self, root: Path) -> Layout:
        if self.facts["image_format"] == "folder":
            return FolderLayout(root, self.source.classes)
        return ShardLayout(root, self._units_per_shard)


def expand(
    source: str | Path | Dataset[Any] | Source,
    out_dir: str | Path,
    synthesizer: Synthesizer | HasSynthesizer | None = None,
    expansion_ratio: int | Mapping[str, int] = 5,
    *,
    new: bool = False,
    shard: tuple[int, int] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Summary:
    """Write a synthetic dataset, or go on where an interrupted run stopped.

    ``expand("train", "train_synthetic", Synthesizer(), 5)`` is the whole job. All arguments are
    those of `Expansion` and of its `run`.

    Source: Fu et al. 2024, arXiv:2403.12803; the planning and record-keeping are ours.
    """
    expansion = Expansion(source, synthesizer, expansion_ratio, **options)
    return expansion.run(out_dir, new=new, shard=shard, progress=progress)


def _class_sizes(source: Source) -> dict[str, int]:
    counts = Counter(source.labels)
    return {name: counts[label] for label, name in enumerate(source.classes)}
