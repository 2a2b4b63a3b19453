"""The commands that write, describe, check and publish synthetic datasets."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from dreamda_aug.cli.options import (
    CLASSES,
    DATA,
    MODEL,
    Options,
    command,
    make_synthesizer,
    read_pair,
    say,
)
from dreamda_aug.expansion import Expansion, estimate, open_filter
from dreamda_aug.expansion import regenerate as regenerate_image
from dreamda_aug.expansion.batch_maker import encode_png
from dreamda_aug.expansion.engines import Progress, RayEngine, join_processes
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.files import write_atomically
from dreamda_aug.report import write_report
from dreamda_aug.report.publishing import push as push_dataset

_PLAN = Options(Expansion, "balance", "only_classes", "limit", "image_format", "shard_samples",
                "keep_flagged", "strict", "threads", "license", "calibrate")
_RATIO, _RUN = Options(Expansion, "expansion_ratio"), Options(Expansion.run, "new")
_RAY = Options(RayEngine, "address", "workers")
_REPORT = Options(write_report, "root", "out", "source", "model", "lora", "metrics",
                  "judge")
_AGAIN = Options(regenerate_image, "source", "model", "lora", "device")
_PUSH = Options(push_dataset, "root", "repo_id", "private")


@command(DATA, _RATIO, _PLAN, CLASSES, *MODEL, _RUN, _RAY)
def expand(
    args: Namespace, *, out: str, class_ratio: Sequence[str] = (), filter: list[str] | None = None,
    shard: str | None = None, engine: Literal["ray"] | None = None, dry_run: bool = False,
) -> None:
    """Write a synthetic dataset.

    Args:
        out: folder to write to, also s3://..., gs://... (extra 'remote').
        class_ratio: another expansion ratio for a class, as CLASS=N.
        filter: guard, copy, seed-copy or label=CLASSIFIER; may be repeated.
        shard: I/N, for process I of N, for engines of your own.
        engine: run batches on Ray (extra 'ray').
        dry_run: print what it will cost.
    """
    part = None if shard is None else _part(shard)
    for name in _RAY.given(args) if engine is None else ():
        raise ValueError(f"--{name} belongs to --engine ray.")
    if engine and part:
        raise ValueError("--shard and --engine share out the work in two ways; give one of them.")
    names = CLASSES.call(args)
    synthesizer = make_synthesizer(args, class_names=names, keep_text_encoder=False)
    OutputFolder(out).check()  # before the images are listed
    source = DATA.call(args, class_names=names)
    ray = RayEngine(**_RAY.given(args)) if engine else None
    number, count = part or join_processes()
    ratio = _RATIO.given(args)
    if class_ratio:
        others = dict.fromkeys(source.classes, *ratio.values()) if ratio else {}
        ratio = {"expansion_ratio": others | dict(map(_class_ratio, class_ratio))}
    plan = _PLAN.given(args) | ({"calibrate": False} if dry_run else {})
    expansion = Expansion(
        source, synthesizer, **ratio, filters=list(map(open_filter, filter or ())), **plan)
    if dry_run:
        say("\n".join(estimate(expansion).lines()))
        return
    with tqdm(unit=" images", disable=None if number == 0 else True) as bar:
        summary = expansion.run(out, **_RUN.given(args), shard=part, engine=ray,
                                progress=partial(_show, bar))
    if count > 1:
        say(f"process {number} of {count}: {summary.made} images made")
    for warning in summary.warnings if number == 0 or summary.whole else ():
        print(f"warning: {warning}", file=sys.stderr)
    if summary.stats is not None:
        more = f", {summary.stats.left_out} left out" if summary.stats.left_out else ""
        say(f"{summary.out}: {summary.stats.made} synthetic images{more}")


@command(_REPORT)
def report(args: Namespace) -> None:
    """Write a page on a synthetic dataset."""
    say(_REPORT.call(args))


@command(_AGAIN)
def regenerate(args: Namespace, folder: str, sample_id: str, *, out: Path | None = None) -> int:
    """Make one image again, and compare it with the stored one.

    Args:
        folder: the dataset's folder.
        sample_id: the id or the file of its manifest line.
        out: PNG file to write; without it the image is only compared.
    """
    again = _AGAIN.call(args, out=folder, sample_id=sample_id)
    if out:
        write_atomically(out, encode_png(again.image, again.line))
    say(f"{again.line.id}: {'equal to' if again.equal else 'differs from'} the stored image")
    return 0 if again.equal else 1


@command(_PUSH)
def push(args: Namespace) -> None:
    """Upload a synthetic dataset."""
    say(_PUSH.call(args))


def _show(bar: tqdm, progress: Progress) -> None:
    """Draw images, rate and remaining time, if there is a terminal."""
    if bar.disable:
        return
    stage = "checking: " if progress.stage == "checking" else ""
    if stage != bar.desc:
        bar.reset()  # checking is quicker than making
        bar.desc = stage
    bar.total = progress.total
    # what lay there already is not counted into the rate
    bar.initial = progress.done - progress.made
    bar.update(progress.done - bar.n)


def _class_ratio(text: str) -> tuple[str, int]:
    name, value = read_pair(text)
    if not value.isdecimal():
        raise ValueError(f"--class-ratio must be CLASS=N, got {name}={value}.")
    return name, int(value)


def _part(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise ValueError(f"--shard must be I/N with 0 <= I < N, got {text}.")
    return int(number), int(count)
