"""The commands that show what the library does to your images, and what is installed."""

import argparse
import json
import platform
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import dreamda_aug
from dreamda_aug.arguments import real
from dreamda_aug.cli.options import (
    SOURCE_HELP,
    Subparsers,
    add_calibrate_option,
    add_model_options,
    add_settings_option,
    model_options,
    positive,
    read_settings,
    say,
    whole,
)

if TYPE_CHECKING:
    from dreamda_aug.generation.synthesizer import Synthesizer
    from dreamda_aug.inputs.seed_images import SeedImages
    from dreamda_aug.models import Condition


# The largest grid that is still to be looked at.
_MAX_CELLS = 10_000


def add_commands(commands: Subparsers) -> None:
    """Register ``demo``, ``preview``, ``calibrate``, ``metrics`` and ``info``."""
    command = commands.add_parser("demo", help="the whole job on bundled images, in minutes")
    command.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    command.set_defaults(run=_demo)

    command = commands.add_parser("preview", help="a grid of your images and their replicas")
    command.add_argument("source", help=SOURCE_HELP)
    add_model_options(command)
    add_settings_option(command)
    add_calibrate_option(command)
    command.add_argument("--out", type=Path, default=Path("preview.png"))
    command.add_argument("--images", type=positive, default=8, help="seed images to show")
    command.add_argument("--replicas", type=positive, default=2, help="per image and noise scale")
    command.add_argument("--noise-scales", type=float, nargs="+",
                         help="columns of the grid; default: the preset's")
    command.set_defaults(run=_preview)

    command = commands.add_parser(
        "calibrate", help="find how far images may go and keep their labels")
    command.add_argument("source", help=SOURCE_HELP)
    add_model_options(command)
    add_settings_option(command)
    command.add_argument("--out", type=Path, default=Path("calibration.png"), help="the plot")
    command.add_argument("--images", type=positive, default=64, help="seed images to measure on")
    command.add_argument("--replicas", type=positive, default=4, help="per image")
    command.add_argument("--block-indices", type=whole, nargs="+", metavar="N",
                         help="for transformers: measure with noise behind each of these blocks")
    command.add_argument("--min-agreement", type=float, default=0.9,
                         help="share of replicas that must keep their label")
    command.add_argument("--max-distance", type=float,
                         help="another target: RMS pixel distance from the seed image, in [0, 1]")
    command.add_argument("--max-rows", type=positive, default=20_000,
                         help="U-Net rows to spend, about")
    command.add_argument("--full", action="store_true", help="measure every choice instead")
    command.set_defaults(run=_calibrate)

    command = commands.add_parser("metrics", help="FID, KID, precision, ... of two image folders")
    command.add_argument("real", type=Path)
    command.add_argument("synthetic", type=Path)
    kind = command.add_mutually_exclusive_group()
    kind.add_argument("--inception", type=Path,
                      help="Inception v3 as TorchScript; default: features are pixels")
    kind.add_argument("--classifier", metavar="ARCHITECTURE:WEIGHTS.safetensors",
                      help="features of a torchvision or timm classifier, or 'bundled'")
    command.set_defaults(run=_metrics)

    command = commands.add_parser("info", help="versions, cache and model")
    command.add_argument("--model", default="bundled")
    command.add_argument("--cache", type=Path)
    command.set_defaults(run=_info)


def _open_images(args: argparse.Namespace) -> "tuple[SeedImages, Synthesizer]":
    """All of the user's images, and what augments them."""
    from dreamda_aug.generation.synthesizer import Synthesizer
    from dreamda_aug.inputs.seed_images import open_seed_images
    from dreamda_aug.method.settings import resolve_settings

    _check_picture(args.out)
    options = model_options(args) | read_settings(args.set)
    resolve_settings(args.preset)
    images = open_seed_images(args.source)
    return images, Synthesizer(**options, class_names=images.names)


def _condition(synthesizer: "Synthesizer", images: "SeedImages", index: int) -> "Condition":
    """What generation is conditioned on for an image."""
    return synthesizer.conditioner.condition(
        images.labels[index] if images.labels else None, synthesizer.model,
        images.file_names[index] if images.file_names else index)


def _demo(args: argparse.Namespace) -> None:
    from dreamda_aug.cli.demo import run_demo

    started = time.perf_counter()
    figures = run_demo(args.out, say)
    figures.save(args.out / "figures.json")
    say(f"\n{figures}\n\n{time.perf_counter() - started:.0f} s in all")


def _preview(args: argparse.Namespace) -> None:
    from dataclasses import replace

    import torch

    from dreamda_aug.calibration.automatic import calibrated
    from dreamda_aug.generation.sampler import Request
    from dreamda_aug.inputs.pixels import fit_to
    from dreamda_aug.report.pictures import labeled_grid

    images, synthesizer = _open_images(args)
    sample = images.subset(sorted(images.spread(args.images)))
    count = len(sample)
    cells_asked = count * (1 + args.replicas * len(args.noise_scales or [1]))
    if cells_asked > _MAX_CELLS:
        raise ValueError(
            f"--images, --replicas and --noise-scales may ask for {_MAX_CELLS:,} "
            f"pictures at most, got {cells_asked:,}; `dreamda expand` writes many."
        )
    pixels = [sample.read(i) for i in range(count)]
    if args.calibrate:  # as `expand` does, which then finds it
        synthesizer, _ = calibrated(synthesizer, images, range(len(images)),
                                    partial(_condition, synthesizer, images))
    sampler = synthesizer.sampler
    values = torch.cat([fit_to(p.values, sampler.model) for p in pixels])
    conditions = [_condition(synthesizer, sample, i) for i in range(count)]
    scales = args.noise_scales or [sampler.settings.noise_scale]
    cells = [[image] for image in values]
    requests = [Request(i, conditions[i], r) for i in range(count)
                for r in range(args.replicas)]
    parts = [replace(sampler, settings=replace(sampler.settings, noise_scale=scale))
             for scale in scales]
    for scale, part in zip(scales, parts, strict=True):
        say(f"noise scale {scale:g}: {len(requests)} images ...")
        made = part.synthesize(values, requests, [p.digests[0] for p in pixels]).images.cpu()
        for request, image in zip(requests, made):
            cells[request.image].append(image)
    names = ["seed", *(f"noise {s:g}" for s in scales for _ in range(args.replicas))]
    row_names = ([sample.classes[label] for label in sample.labels]
                 or [Path(path).name for path in sample.paths])
    labeled_grid(cells, row_names, names).save(args.out)
    say(f"wrote {args.out}")


def _check_picture(out: Path) -> None:
    """Refuse a place for a picture before the work, and not after it."""
    import PIL.Image

    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: expected a file in a folder that is there.")
    if out.suffix.lower() not in PIL.Image.registered_extensions():
        raise ValueError(f"--out {out}: expected a picture such as NAME.png.")


def _calibrate(args: argparse.Namespace) -> None:
    import torch

    from dreamda_aug.calibration.sweep import calibrate
    from dreamda_aug.inputs.pixels import fit_to
    from dreamda_aug.report.pictures import plot_calibration

    real("--min-agreement", args.min_agreement, "lie in [0, 1]", 0, 1)
    if args.max_distance is not None:
        real("--max-distance", args.max_distance, "lie in [0, 1]", 0, 1)
    images, synthesizer = _open_images(args)
    sample = images.subset(sorted(images.spread(args.images)))
    if not sample.labels and args.max_distance is None:
        raise ValueError(
            f"{args.source} has no class folders, so agreement cannot be measured; give "
            "--max-distance, or sort the images into a folder for each class."
        )
    model = synthesizer.model
    values = torch.cat([fit_to(sample.read(i).values, model) for i in range(len(sample))])
    labels = torch.tensor(sample.labels) if sample.labels else None
    result = calibrate(
        values, labels, synthesizer=synthesizer, conditions=[
            _condition(synthesizer, sample, i) for i in range(len(sample))],
        min_agreement=args.min_agreement, max_distance=args.max_distance,
        expansion_ratio=args.replicas,
        block_indices=args.block_indices, max_rows=None if args.full else args.max_rows,
        progress=lambda p: say(
            f"{'' if p.block_index is None else f'block {p.block_index}  '}"
            f"{p.steps} steps  {p.images} images  strength {p.strength:<5g} replay "
            f"{p.replay:<5g} noise scale {p.noise_scale:<5g} agreement "
            f"{p.agreement:.2f}  distance {p.distance:.3f}  diversity {p.diversity:.3f}"),
    )
    use = ("" if result.block_index == model.block_index
           else f" with --block-index {result.block_index}")
    say(f"chosen: {result.summary()}; saved beside the cache, where it is found again{use}")
    plot_calibration(result, args.out)
    say(f"wrote {args.out}")


def _metrics(args: argparse.Namespace) -> None:
    from dreamda_aug.metrics import compare_folders
    from dreamda_aug.metrics.classifier_files import open_classifier_features
    from dreamda_aug.metrics.features import inception_features

    features = None
    if args.inception:
        features = inception_features(args.inception)
    elif args.classifier:
        features = open_classifier_features(args.classifier)
    report = compare_folders(args.real, args.synthetic, features=features)
    say(json.dumps(report.as_dict(), indent=2))


def _info(args: argparse.Namespace) -> None:
    from dreamda_aug.generation.cache import LatentCache, default_cache_root
    from dreamda_aug.models import load_model

    names = ("torch", "torchvision", "diffusers", "transformers", "safetensors", "numpy")
    for name in names:
        try:
            say(f"{name:13s} {version(name)}")
        except PackageNotFoundError:
            say(f"{name:13s} not installed")
    say(f"{'dreamda_aug':13s} {dreamda_aug.__version__}, Python {platform.python_version()}")
    root = args.cache or default_cache_root()
    say(f"cache         {LatentCache(root).info() if root.exists() else f'{root}: empty'}")
    model = load_model(args.model)
    say(f"model      {model.name}: {model.image_size[0]}×{model.image_size[1]}, "
         f"{model.channels} channel(s), condition: {model.condition_kind}, "
         f"on {model.device}, fingerprint {model.fingerprint[:12]}")
