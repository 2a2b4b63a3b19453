"""The commands that write, describe, check and publish synthetic datasets."""

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dreamda_aug.cli.options import (
    SOURCE,
    add_classes,
    add_model,
    add_options,
    add_positional,
    class_names,
    given,
    model_options,
    read_pair,
    say,
)
from dreamda_aug.expansion import Expansion, estimate, open_filter
from dreamda_aug.expansion import regenerate as regenerate_image
from dreamda_aug.expansion.batch_maker import encode_png
from dreamda_aug.expansion.engines import Progress, RayEngine, join_processes
from dreamda_aug.expansion.storage import OutputFolder
from dreamda_aug.files import write_atomically
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.report import write_report
from dreamda_aug.report.publishing import push as push_dataset

_PLAN = ("balance", "only_classes", "limit", "image_format", "shard_samples", "keep_flagged",
         "strict", "threads", "license")
_MOVED = ("source", "model", "lora", "device")
_REPORT = ("out", "source", "model", "lora", "metrics", "judge")


def add_expand(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``expand``."""
    add_positional(parser, open_seed_images, "source")
    parser.add_argument("--out", required=True, metavar="PATH",
                        help="folder to write to, also s3://..., gs://... (extra 'remote')")
    add_options(parser, open_seed_images, *SOURCE)
    add_options(parser, Expansion, "expansion_ratio")
    parser.add_argument("--class-ratio", nargs="+", default=[], metavar="CLASS=N",
                        help="another expansion ratio for a class")
    add_options(parser, Expansion, *_PLAN, "calibrate")
    add_classes(parser)
    add_model(parser)
    parser.add_argument("--filter", action="append", default=[],
                        help="guard, copy, seed-copy or label=CLASSIFIER; may be repeated")
    add_options(parser, Expansion.run, "new")
    parser.add_argument("--shard", type=_shard, metavar="I/N",
                        help="this is process I of N, for engines of your own")
    parser.add_argument("--engine", choices=("ray",), help="run batches on Ray (extra 'ray')")
    add_options(parser, RayEngine, "address", "workers")
    parser.add_argument("--dry-run", action="store_true", help="print what it will cost")


def expand(args: argparse.Namespace) -> None:
    """Run ``expand``."""
    names = class_names(args)
    synthesizer = Synthesizer(**model_options(args), class_names=names, keep_text_encoder=False)
    OutputFolder(args.out).check()  # before the images are listed
    source = open_seed_images(args.source, class_names=names, **given(args, *SOURCE))
    engine = _engine(args)
    number, count = args.shard or join_processes()
    plan = given(args, *_PLAN, "calibrate") | ({"calibrate": False} if args.dry_run else {})
    expansion = Expansion(source, synthesizer, **_ratio(args, source.classes),
                          filters=list(map(open_filter, args.filter)), **plan)
    if args.dry_run:
        say("\n".join(estimate(expansion).lines()))
        return
    with tqdm(unit=" images", disable=None if number == 0 else True) as bar:
        summary = expansion.run(args.out, **given(args, "new"), shard=args.shard, engine=engine,
                                progress=partial(_show, bar))
    if count > 1:
        say(f"process {number} of {count}: {summary.made} images made")
    for warning in summary.warnings if number == 0 or summary.whole else ():
        print(f"warning: {warning}", file=sys.stderr)
    if summary.stats is not None:
        more = f", {summary.stats.left_out} left out" if summary.stats.left_out else ""
        say(f"{summary.out}: {summary.stats.made} synthetic images{more}")


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``report``."""
    add_positional(parser, write_report, "root", "folder")
    add_options(parser, write_report, *_REPORT)


def report(args: argparse.Namespace) -> None:
    """Run ``report``."""
    say(write_report(args.folder, **given(args, *_REPORT)))


def add_regenerate(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``regenerate``."""
    add_positional(parser, regenerate_image, "out", "folder")
    add_positional(parser, regenerate_image, "sample_id")
    add_options(parser, regenerate_image, *_MOVED)
    parser.add_argument("--out", metavar="PATH", help="PNG file to write; without it the image is "
                                                      "only compared")


def regenerate(args: argparse.Namespace) -> int:
    """Run ``regenerate``."""
    again = regenerate_image(args.folder, args.sample_id, **given(args, *_MOVED))
    if args.out:
        write_atomically(Path(args.out), encode_png(again.image, again.line))
    say(f"{again.line.id}: {'equal to' if again.equal else 'differs from'} the stored image")
    return 0 if again.equal else 1


def add_push(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``push``."""
    add_positional(parser, push_dataset, "root", "folder")
    add_positional(parser, push_dataset, "repo_id")
    add_options(parser, push_dataset, "private")


def push(args: argparse.Namespace) -> None:
    """Run ``push``."""
    say(push_dataset(args.folder, args.repo_id, **given(args, "private")))


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


def _engine(args: argparse.Namespace) -> RayEngine | None:
    options = given(args, "address", "workers")
    if args.engine is None:
        for name in options:
            raise ValueError(f"--{name} belongs to --engine ray.")
        return None
    if args.shard is not None:
        raise ValueError("--shard and --engine share out the work in two ways; give one of them.")
    return RayEngine(**options)


def _ratio(args: argparse.Namespace, classes: Sequence[str]) -> dict[str, Any]:
    ratio = given(args, "expansion_ratio")
    if not args.class_ratio:
        return ratio
    ratios = dict.fromkeys(classes, ratio["expansion_ratio"]) if ratio else {}
    for name, value in map(read_pair, args.class_ratio):
        if not value.isdecimal():
            raise ValueError(f"--class-ratio must be CLASS=N, got {name}={value}.")
        ratios[name] = int(value)
    return {"expansion_ratio": ratios}


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with 0 <= I < N, got {text}")
    return int(number), int(count)
