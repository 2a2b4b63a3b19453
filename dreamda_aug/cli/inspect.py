"""The commands that show what the library does to your images, and what is installed."""

import argparse
import json
import platform
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import dreamda_aug
from dreamda_aug.arguments import real
from dreamda_aug.cli.options import (
    Subparsers,
    add_model_options,
    add_settings_option,
    model_options,
    positive,
    read_settings,
    say,
    whole,
)

if TYPE_CHECKING:
    from dreamda_aug.backbones import Condition
    from dreamda_aug.generation.synthesizer import Synthesizer
    from dreamda_aug.inputs.images import Pixels
    from dreamda_aug.metrics import FolderImages


# The largest grid that is still to be looked at.
_MAX_CELLS = 10_000


def add_commands(commands: Subparsers) -> None:
    """Register ``demo``, ``preview``, ``calibrate``, ``metrics`` and ``info``."""
    command = commands.add_parser("demo", help="the whole job on bundled images, in minutes")
    command.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    command.set_defaults(run=_demo)

    command = commands.add_parser("preview", help="a grid of your images and their replicas")
    command.add_argument("folder", type=Path, help="images, or a folder for each class")
    add_model_options(command)
    add_settings_option(command)
    command.add_argument("--out", type=Path, default=Path("preview.png"))
    command.add_argument("--images", type=positive, default=8, help="seed images to show")
    command.add_argument("--replicas", type=positive, default=2, help="per image and noise scale")
    command.add_argument("--noise-scales", type=float, nargs="+",
                         help="columns of the grid; default: the preset's")
    command.set_defaults(run=_preview)

    command = commands.add_parser(
        "calibrate", help="find how far images may go and keep their labels")
    command.add_argument("folder", type=Path, help="images, or a folder for each class")
    add_model_options(command)
    add_settings_option(command)
    command.add_argument("--out", type=Path, default=Path("calibration.png"), help="the plot")
    command.add_argument("--images", type=positive, default=64, help="seed images to measure on")
    command.add_argument("--replicas", type=positive, default=4, help="per image")
    command.add_argument("--tap-indices", type=whole, nargs="+", metavar="N",
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

    command = commands.add_parser("info", help="versions, cache and backbone")
    command.add_argument("--backbone", default="bundled")
    command.add_argument("--cache", type=Path)
    command.set_defaults(run=_info)


def _open_sample(args: argparse.Namespace) -> "tuple[FolderImages, list[int], Synthesizer]":
    """The folder, rows of a sample of its images over all classes, and what augments them."""
    from dreamda_aug.generation.synthesizer import Synthesizer
    from dreamda_aug.method.settings import resolve_settings
    from dreamda_aug.metrics import FolderImages

    _check_picture(args.out)
    options = model_options(args) | read_settings(args.set)
    resolve_settings(args.preset)
    data = FolderImages(args.folder)
    # every k-th image in name order: that touches every class in its share
    count = min(args.images, len(data))
    rows = [round(i * (len(data) - 1) / max(count - 1, 1)) for i in range(count)]
    synthesizer = Synthesizer(**options, class_names=data.class_names or None)
    return data, rows, synthesizer


def _demo(args: argparse.Namespace) -> None:
    from dreamda_aug.cli.demo import run_demo

    started = time.perf_counter()
    figures = run_demo(args.out, say)
    figures.save(args.out / "figures.json")
    say(f"\n{figures}\n\n{time.perf_counter() - started:.0f} s in all")


def _preview(args: argparse.Namespace) -> None:
    from dataclasses import replace

    import torch

    from dreamda_aug.generation.tensors import Request
    from dreamda_aug.inputs.images import fit_to
    from dreamda_aug.report.pictures import labelled_grid

    data, rows, synthesizer = _open_sample(args)
    cells_asked = len(rows) * (1 + args.replicas * len(args.noise_scales or [1]))
    if cells_asked > _MAX_CELLS:
        raise ValueError(
            f"--images, --replicas and --noise-scales may ask for {_MAX_CELLS:,} "
            f"pictures at most, got {cells_asked:,}; `dreamda expand` writes many."
        )
    core = synthesizer.core
    pixels = [_read(data.paths[row]) for row in rows]
    values = torch.cat([fit_to(p.values, core.backbone) for p in pixels])
    conditions = _conditions(data, rows, synthesizer)
    scales = args.noise_scales or [core.settings.noise_scale]
    cells = [[image] for image in values]
    requests = [Request(i, conditions[i], r) for i in range(len(rows))
                for r in range(args.replicas)]
    parts = [core.with_settings(replace(core.settings, noise_scale=scale)) for scale in scales]
    for scale, part in zip(scales, parts, strict=True):
        say(f"noise scale {scale:g}: {len(requests)} images ...")
        made = part.synthesize(values, requests, [p.digests[0] for p in pixels]).images.cpu()
        for request, image in zip(requests, made):
            cells[request.image].append(image)
    names = ["seed", *(f"noise {s:g}" for s in scales for _ in range(args.replicas))]
    row_names = [data.class_names[data.labels[row]] if data.labels else data.paths[row].name
                 for row in rows]
    labelled_grid(cells, row_names, names).save(args.out)
    say(f"wrote {args.out}")


def _read(path: Path) -> "Pixels":
    """The pixels of an image file; a ValueError that names it where it is broken."""
    from dreamda_aug.inputs.images import read_pixels
    from dreamda_aug.inputs.opening import read_image

    image = read_image(path)
    try:
        return read_pixels(image)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_picture(out: Path) -> None:
    """Refuse a place for a picture before the work, and not after it."""
    import PIL.Image

    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: expected a file in a folder that is there.")
    if out.suffix.lower() not in PIL.Image.registered_extensions():
        raise ValueError(f"--out {out}: expected a picture such as NAME.png.")


def _conditions(
    data: "FolderImages", rows: Sequence[int], synthesizer: "Synthesizer"
) -> "list[Condition]":
    labels = [data.labels[row] if data.labels else None for row in rows]
    return [synthesizer.conditioner.condition(label, synthesizer.backbone, str(data.paths[row]))
            for label, row in zip(labels, rows, strict=True)]


def _calibrate(args: argparse.Namespace) -> None:
    import torch

    from dreamda_aug.generation.sweep import calibrate
    from dreamda_aug.inputs.images import fit_to
    from dreamda_aug.report.pictures import plot_calibration

    real("--min-agreement", args.min_agreement, "lie in [0, 1]", 0, 1)
    if args.max_distance is not None:
        real("--max-distance", args.max_distance, "lie in [0, 1]", 0, 1)
    data, rows, synthesizer = _open_sample(args)
    if not data.labels and args.max_distance is None:
        raise ValueError(
            f"{args.folder} has no class folders, so agreement cannot be measured; give "
            "--max-distance, or sort the images into a folder for each class."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was not calibrated")
        backbone = synthesizer.backbone
    values = torch.cat([
        fit_to(_read(data.paths[row]).values, backbone)
        for row in rows
    ])
    labels = torch.tensor([data.labels[row] for row in rows]) if data.labels else None
    result = calibrate(
        values, labels, synthesizer=synthesizer, conditions=_conditions(data, rows, synthesizer),
        min_agreement=args.min_agreement, max_distance=args.max_distance, replicas=args.replicas,
        tap_indices=args.tap_indices, max_rows=None if args.full else args.max_rows,
        progress=lambda p: say(
            f"{'' if p.tap_index is None else f'tap {p.tap_index}  '}"
            f"{p.steps} steps  {p.images} images  strength {p.strength:<5g} adherence "
            f"{p.adherence:<5g} noise scale {p.noise_scale:<5g} agreement "
            f"{p.agreement:.2f}  distance {p.distance:.3f}  diversity {p.diversity:.3f}"),
    )
    use = ("" if result.tap_index == backbone.tap_index
           else f" with --tap-index {result.tap_index}")
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
    from dreamda_aug.backbones import load_backbone
    from dreamda_aug.generation.cache import LatentCache, default_cache_root

    names = ("torch", "torchvision", "diffusers", "transformers", "safetensors", "numpy")
    for name in names:
        try:
            say(f"{name:13s} {version(name)}")
        except PackageNotFoundError:
            say(f"{name:13s} not installed")
    say(f"{'dreamda_aug':13s} {dreamda_aug.__version__}, Python {platform.python_version()}")
    root = args.cache or default_cache_root()
    say(f"cache         {LatentCache(root).info() if root.exists() else f'{root}: empty'}")
    backbone = load_backbone(args.backbone)
    say(f"backbone      {backbone.name}: {backbone.image_size[0]}×{backbone.image_size[1]}, "
         f"{backbone.channels} channel(s), condition: {backbone.condition_kind}, "
         f"on {backbone.device}, fingerprint {backbone.fingerprint[:12]}")
