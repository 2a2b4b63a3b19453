"""The commands that write, describe and check synthetic datasets."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from dreamda_aug.cli.options import (
    SOURCE_HELP,
    Subparsers,
    add_calibrate_option,
    add_model_options,
    add_settings_option,
    check_device,
    model_options,
    positive,
    read_names,
    read_settings,
    whole,
)

if TYPE_CHECKING:
    from dreamda_aug.expansion.ray_engine import RayEngine
    from dreamda_aug.expansion.sharding import Progress


def add_commands(subparsers: Subparsers) -> None:
    """Register ``expand``, ``report`` and ``regenerate``."""
    command = subparsers.add_parser(
        "expand", help="write a synthetic dataset; the same command goes on after an interruption")
    command.add_argument("source", help=SOURCE_HELP)
    command.add_argument("--out", required=True,
                         help="folder to write to, also s3://..., gs://... (extra 'remote')")
    command.add_argument("--ratio", type=whole, default=5, help="synthetic images per seed image")
    command.add_argument("--class-ratio", action="append", default=[], metavar="CLASS=K",
                         help="another ratio for a class; may be repeated")
    command.add_argument("--balance", action="store_true",
                         help="raise small classes to the size of the largest")
    command.add_argument("--only-class", action="append", metavar="CLASS",
                         help="expand this class only; may be repeated")
    command.add_argument("--limit", type=positive, help="seed images to use, over all classes")
    command.add_argument("--format", choices=("folder", "webdataset"), default="folder")
    command.add_argument("--shard-samples", type=positive, default=1000,
                         help="images per WebDataset shard")
    command.add_argument("--classes", type=Path, help="file with a class name per line")
    command.add_argument("--split", help="of a torchvision, Hugging Face or bundled dataset")
    command.add_argument("--data-root", type=Path, help="folder of torchvision's data")
    command.add_argument("--download", action="store_true", help="let torchvision download it")
    add_model_options(command)
    add_settings_option(command)
    command.add_argument("--threads", type=positive, default=1,
                         help="CPU threads per process; part of the settings")
    command.add_argument("--license", help="the model's licence, for the dataset card")
    command.add_argument("--filter", action="append", default=[],
                         help="guard, copy, seed-copy or label=CLASSIFIER; may be repeated")
    command.add_argument("--keep-flagged", action="store_true",
                         help="keep what a filter objects to, and flag it in the manifest")
    command.add_argument("--strict", action="store_true",
                         help="unreadable seed images and the like are errors")
    command.add_argument("--new", action="store_true",
                         help="set an existing result aside and begin anew")
    command.add_argument("--shard", type=_shard, metavar="I/N",
                         help="this is process I of N, for engines of your own")
    add_calibrate_option(command)
    command.add_argument("--engine", choices=("ray",), help="run batches on Ray (extra 'ray')")
    command.add_argument("--address", help="of a Ray cluster, auto or ray://HOST:PORT; default: "
                                           "start Ray on this machine")
    command.add_argument("--workers", type=positive,
                         help="Ray processes; default: as many as there is room for")
    command.add_argument("--dry-run", action="store_true", help="say what it will cost")
    command.set_defaults(run=_expand)

    command = subparsers.add_parser("report", help="one HTML page on a synthetic dataset")
    command.add_argument("folder", type=Path)
    command.add_argument("--out", type=Path, help="default: report.html in the folder")
    command.add_argument("--source", help="the seed images, where they have moved")
    command.add_argument("--metrics", action="store_true",
                         help="compute FID, KID and the like first (class folders only)")
    command.set_defaults(run=_report)

    command = subparsers.add_parser("regenerate", help="make one image again from its record")
    command.add_argument("folder", type=Path)
    command.add_argument("id", help="id or file of a line of manifest.jsonl")
    command.add_argument("--out", type=Path, help="PNG to write; default: only compare")
    command.add_argument("--source", help="the seed images, where they have moved")
    command.add_argument("--model", help="the model, where it has moved")
    command.add_argument("--lora", help="its LoRA weights, where they have moved")
    command.add_argument("--device")
    command.set_defaults(run=_regenerate)


def _expand(args: argparse.Namespace) -> int:
    overrides = read_settings(args.set)
    names = read_names(args.classes) if args.classes else None
    options = model_options(args)
    from dreamda_aug.expansion.expansion import Expansion
    from dreamda_aug.expansion.filters import open_filter
    from dreamda_aug.expansion.sharding import join_processes
    from dreamda_aug.expansion.storage import OutputFolder
    from dreamda_aug.generation.synthesizer import Synthesizer
    from dreamda_aug.inputs.seed_images import open_seed_images

    out = OutputFolder(args.out)
    out.check()
    source = open_seed_images(args.source, class_names=names, split=args.split,
                              data_root=args.data_root, download=args.download)
    ratio = _ratios(args.ratio, args.class_ratio, source.classes)
    engine = _engine(args)
    filters = [open_filter(text) for text in args.filter]
    number, count = args.shard or join_processes()
    synthesizer = Synthesizer(**options, class_names=names, keep_text_encoder=False, **overrides)
    expansion = Expansion(
        source, synthesizer, ratio, balance=args.balance, only_classes=args.only_class,
        limit=args.limit, image_format=args.format,
        shard_samples=args.shard_samples, filters=filters, keep_flagged=args.keep_flagged,
        strict=args.strict, threads=args.threads, license=args.license,
        calibrate=args.calibrate and not args.dry_run,
    )
    if args.dry_run:
        from dreamda_aug.expansion.estimate import estimate

        print("\n".join(estimate(expansion).lines()))
        return 0
    bar = _Bar() if number == 0 else None
    summary = expansion.run(
        out, new=args.new, shard=args.shard, progress=bar, engine=engine)
    if bar:
        bar.close()
    if count > 1:
        print(f"process {number} of {count}: {summary.made} images made")
    for warning in summary.warnings if number == 0 or summary.whole else ():
        print(f"warning: {warning}", file=sys.stderr)
    if summary.stats is not None:
        more = f", {summary.stats.left_out} left out" if summary.stats.left_out else ""
        print(f"{out}: {summary.stats.made} synthetic images{more}")
    return 0


def _engine(args: argparse.Namespace) -> "RayEngine | None":
    if args.engine is None:
        for name in ("address", "workers"):
            if getattr(args, name) is not None:
                raise ValueError(f"--{name} belongs to --engine ray.")
        return None
    if args.shard is not None:
        raise ValueError("--shard and --engine share out the work in two ways; give one of them.")
    from dreamda_aug.expansion.ray_engine import RayEngine

    return RayEngine(args.address, args.workers)


def _report(args: argparse.Namespace) -> int:
    from dreamda_aug.report.contents import write_report

    print(write_report(args.folder, args.out, source=args.source, metrics=args.metrics))
    return 0


def _regenerate(args: argparse.Namespace) -> int:
    from dreamda_aug.expansion.batches import encode_png
    from dreamda_aug.expansion.regeneration import regenerate
    from dreamda_aug.files import write_atomically

    check_device(args.device)
    again = regenerate(args.folder, args.id, source=args.source, model=args.model,
                       lora=args.lora, device=args.device)
    if args.out:
        write_atomically(args.out, encode_png(again.image, again.line))
    print(f"{again.line.id}: {'equal to' if again.equal else 'differs from'} the stored image")
    return 0 if again.equal else 1


class _Bar:
    """Images, rate and remaining time on one line of a terminal; silent elsewhere."""

    def __init__(self) -> None:
        from tqdm import tqdm

        self._bar = tqdm(unit=" images", disable=None)
        self._stage = "making"

    def __call__(self, progress: "Progress") -> None:
        if progress.stage != self._stage:
            self._stage = progress.stage
            self._bar.reset()  # the rate of checking says nothing of that of making
            self._bar.set_description(
                "checking what is there" if progress.stage == "checking" else "", refresh=False)
        self._bar.total = progress.total
        # what lay there already is not counted into the rate
        self._bar.initial = progress.done - progress.made
        self._bar.update(progress.done - self._bar.n)

    def close(self) -> None:
        self._bar.close()


def _ratios(ratio: int, texts: list[str], classes: list[str]) -> int | dict[str, int]:
    if not texts:
        return ratio
    ratios = dict.fromkeys(classes, ratio)
    for text in texts:
        name, _, value = text.rpartition("=")
        if name not in ratios or not value.isdecimal():
            raise ValueError(f"--class-ratio {text}: expected CLASS=K with a class of the source.")
        ratios[name] = int(value)
    return ratios


def _shard(text: str) -> tuple[int, int]:
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise argparse.ArgumentTypeError(f"expected I/N with 0 <= I < N, got {text}")
    return int(number), int(count)
