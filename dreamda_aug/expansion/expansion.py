"""Whole datasets: every seed image, K replicas each, resumable and on record."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.utils.data import Dataset

from dreamda_aug.expansion.card import Tally, dataset_card, license_of, tally_of
from dreamda_aug.expansion.conditions import conditions
from dreamda_aug.expansion.filters import Filter
from dreamda_aug.expansion.layouts import FolderLayout, Layout, ShardLayout
from dreamda_aug.expansion.manifest import (
    FORMAT,
    FORMAT_VERSION,
    ExpansionError,
    library_versions,
    settings_to_json,
)
from dreamda_aug.expansion.plan import Plan, count_replicas
from dreamda_aug.expansion.processes import (
    check_shard,
    cpu_threads,
    first_process_first,
    join_processes,
)
from dreamda_aug.expansion.sources import Source, open_source
from dreamda_aug.expansion.store import WHERE, Store, set_aside
from dreamda_aug.expansion.units import UnitMaker
from dreamda_aug.generator import Generator
from dreamda_aug.transforms import DreamDAugment

FORMATS = ("folder", "webdataset")


class Progress(NamedTuple):
    """How far one process is.

    Attributes:
        done: samples of this process that are on disk.
        total: samples that fall to this process.
        made: samples made since it was started.
        seconds: time since it was started.
    """

    done: int
    total: int
    made: int
    seconds: float


@dataclass(frozen=True)
class Summary:
    """What an expansion came to.

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

    Every sample is a function of its own seeds, and every batch is part of the plan, so files are
    the same byte for byte on the same kind of machine, for any number of processes and however
    often the work was interrupted. Inversions are neither read from nor written to a cache: its
    entries may come from batches of another shape, and differ in their last bits.

    Args:
        source: what `open_source` takes, or returns.
        augment: makes the images; ``p`` and ``cache`` play no role. None: the bundled backbone.
        expansion_ratio: synthetic images per seed image, >= 0; or one number per class name.
        balance: see `count_replicas`.
        only_classes: names of the classes to expand; None: all.
        limit: use at most so many seed images, taken in turn from each class.
        image_format: ``"folder"`` (torchvision's ``ImageFolder``) or ``"webdataset"``.
        shard_samples: about how many samples go into a WebDataset shard.
        filters: what may object to an image.
        keep_flagged: keep those images, and note the flag in the manifest; else they are left out
            and counted.
        strict: unreadable seed images, empty classes and repeated entries are errors; else they
            are left out and counted.
        threads: CPU threads per process, where the backbone runs on the CPU: the last bits follow
            their number, so it is part of the plan. Several processes with one thread each are
            quicker than one with several.
        license: the backbone's licence, for the card; None: as its folder states it.

    Raises:
        ValueError: an argument breaks its rule.
        FileNotFoundError: the source is not there.
    """

    def __init__(
        self,
        source: str | Path | Dataset | Source,
        augment: DreamDAugment | None = None,
        expansion_ratio: int | Mapping[str, int] = 5,
        *,
        balance: bool = False,
        only_classes: Collection[str] | None = None,
        limit: int | None = None,
        image_format: str = "folder",
        shard_samples: int = 1000,
        filters: Sequence[Filter] = (),
        keep_flagged: bool = False,
        strict: bool = False,
        threads: int = 1,
        license: str | None = None,
    ):
        if image_format not in FORMATS:
            raise ValueError(f"image_format must be one of {FORMATS}, got {image_format!r}.")
        if shard_samples < 1:
            raise ValueError(f"shard_samples must be at least 1, got {shard_samples}.")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}.")
        self.source = source if hasattr(source, "digest") else open_source(source)
        if strict and self.source.problems:
            raise ValueError(f"strict: {'; '.join(self.source.problems)}.")
        replicas = count_replicas(self.source, expansion_ratio, balance=balance,
                                  only_classes=only_classes, limit=limit)
        join_processes()  # before the model is loaded: it chooses this process's device
        augment = DreamDAugment(cache=None) if augment is None else augment
        self.plan = Plan(replicas, augment.batch_size)
        self._units_per_shard = max(1, shard_samples // self.plan.unit_size)
        loaded = augment.generator
        self.generator = Generator(loaded.backbone, loaded.settings, batch_size=augment.batch_size,
                                   rng_seed=augment.rng_seed)
        told, condition_of = conditions(self.source, augment, self.generator, replicas)
        if augment.keep_text_encoder is False:
            prompts = {condition_of(index) for index in replicas}
            loaded.backbone.embed_only([None, loaded.settings.source_prompt, *prompts])
        self.maker = UnitMaker(self.source, self.generator, condition_of, list(filters),
                               keep_flagged=keep_flagged, strict=strict)
        device = torch.device(self.generator.backbone.device).type
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
            "settings": settings_to_json(self.generator.settings),
            "rng_seed": self.generator.rng_seed,
            "conditions": told,
            "backbone": self.generator.backbone.fingerprint,
            "device": device,
            "threads": self.threads,
            # the VAE's batches change the last bits; None as in records of before
            "low_memory": getattr(self.generator.backbone, "low_memory", False) or None,
            "versions": library_versions(),
            "source": {
                "images": len(self.source.labels),
                "digest": self.source.digest(),
                "classes": _class_sizes(self.source),
                "problems": self.source.problems,
            },
            WHERE: {
                "source": self.source.spec,
                "backbone": self.generator.backbone.name,
                "license": license or license_of(self.generator.backbone.name),
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
        number, count = check_shard(shard) if shard is not None else join_processes()
        if new:
            with first_process_first(count, shard):
                if number == 0:
                    set_aside(root)
        store = Store(root, self.plan, self._layout(root))
        store.join(self.facts)
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
                each.prepare(self.source, self.generator.backbone)
            for unit in pending:
                planned = self.plan.unit(unit)
                store.commit(unit, *self.maker.make(unit, planned, store.layout))
                made += len(planned)
                if progress:
                    seconds = time.perf_counter() - started
                    progress(Progress(before + made, total, made, seconds))
        return self._close(store, made)

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
    source: str | Path | Dataset | Source,
    out_dir: str | Path,
    augment: DreamDAugment | None = None,
    expansion_ratio: int | Mapping[str, int] = 5,
    *,
    new: bool = False,
    shard: tuple[int, int] | None = None,
    progress: Callable[[Progress], None] | None = None,
    **options,
) -> Summary:
    """Write a synthetic dataset, or go on where an interrupted run stopped.

    ``expand("train", "train_synthetic", DreamDAugment(), 5)`` is the whole job. All arguments are
    those of `Expansion` and of its `run`.

    Source: Fu et al. 2024, arXiv:2403.12803; the planning and record-keeping are ours.
    """
    expansion = Expansion(source, augment, expansion_ratio, **options)
    return expansion.run(out_dir, new=new, shard=shard, progress=progress)


def _class_sizes(source: Source) -> dict[str, int]:
    counts = Counter(source.labels)
    return {name: counts[label] for label, name in enumerate(source.classes)}
