"""The commands that show what the library does to your images, and what is installed."""

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from dreamda_aug.arguments import whole
from dreamda_aug.calibration.search import calibrate as calibrate_images
from dreamda_aug.cli.options import (
    LOOK,
    add_model,
    add_options,
    add_positional,
    given,
    model_options,
    repeated,
    say,
)
from dreamda_aug.expansion.manifest import library_versions
from dreamda_aug.generation.cache import LatentCache, default_cache_root
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.pixels import fit_to
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.metrics import compare_folders
from dreamda_aug.metrics.features import inception_features, open_classifier_features
from dreamda_aug.models import load_model
from dreamda_aug.report import explorer, pictures

_SHOWN = ("images", "expansion_ratio")
_GRIDS = ("strengths", "replays", "noise_scales")
_MEASURE = ("expansion_ratio", "min_agreement", "max_distance", "block_indices")


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``preview``."""
    _add_images(parser, pictures.preview, "preview.png")
    add_options(parser, pictures.preview, "noise_scales", "calibrate")


def preview(args: argparse.Namespace) -> None:
    """Run ``preview``."""
    _check_picture(args.out)
    grid = pictures.preview(args.source, Synthesizer(**model_options(args)), **given(
        args, *_SHOWN, "noise_scales", "calibrate"))
    grid.save(args.out)
    say(f"wrote {args.out}")


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``calibrate``."""
    add_positional(parser, open_seed_images, "source")
    add_model(parser)
    parser.add_argument("--out", default="calibration.png", metavar="PATH", help="file to write")
    parser.add_argument("--images", type=int, default=64, metavar="N",
                        help="seed images to measure on (default: 64)")
    add_options(parser, calibrate_images, *_MEASURE)
    parser.add_argument("--max-rows", type=int, default=20_000, metavar="N",
                        help="about how many U-Net rows to spend (default: 20000)")
    parser.add_argument("--full", action="store_true", help="measure every choice instead")


def calibrate(args: argparse.Namespace) -> None:
    """Run ``calibrate``."""
    _check_picture(args.out)
    count = whole("images", args.images, 1)
    synthesizer = Synthesizer(**model_options(args))
    images = open_seed_images(args.source)
    synthesizer = synthesizer.with_class_names(images.names)
    if not images.labels and not hasattr(args, "max_distance"):
        raise ValueError(
            f"{args.source} has no class folders, so agreement cannot be measured; give "
            "--max-distance, or sort the images into a folder for each class."
        )
    sample, pixels, conditions = pictures.draw_some(images, count, synthesizer)
    model = synthesizer.model
    result = calibrate_images(
        torch.cat([fit_to(each.values, model) for each in pixels]),
        torch.tensor(sample.labels) if sample.labels else None, synthesizer=synthesizer,
        conditions=conditions, max_rows=None if args.full else args.max_rows,
        **given(args, *_MEASURE),
        progress=lambda p: say(
            f"{'' if p.block_index is None else f'block {p.block_index}  '}"
            f"{p.steps} steps  {p.images} images  strength {p.strength:<5g} replay "
            f"{p.replay:<5g} noise scale {p.noise_scale:<5g} agreement "
            f"{p.agreement:.2f}  distance {p.distance:.3f}  diversity {p.diversity:.3f}"),
    )
    use = ("" if result.block_index == model.block_index
           else f" with --block-index {result.block_index}")
    say(f"chosen: {result.summary()}; saved beside the cache, where it is found again{use}")
    pictures.plot_calibration(result, args.out)
    say(f"wrote {args.out}")


def add_explore(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``explore``."""
    _add_images(parser, explorer.explore, "explore.html")
    add_options(parser, explorer.explore, "steps", *_GRIDS)


def explore(args: argparse.Namespace) -> None:
    """Run ``explore``."""
    images, name = open_seed_images(args.source).labeled(), Path(args.source).name
    synthesizer = Synthesizer(**model_options(args)).with_class_names(images.names)
    arguments: dict[str, Any] = given(args, *LOOK)
    if synthesizer.conditioner.needs_label(synthesizer.model):
        arguments["class_names"] = images.names
    page = explorer.explore(
        images, synthesizer, **given(args, *_SHOWN, "steps", *_GRIDS),
        title=f"What the dials do to {name}", arguments=arguments, announce=say,
        command=["dreamda", "expand", args.source, "--out", f"{name}_synthetic",
                 *repeated(args, *LOOK)])
    explorer.write_exploration(page, args.out)
    say(f"wrote {args.out}")


def add_metrics(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``metrics``."""
    add_positional(parser, compare_folders, "real_dir")
    add_positional(parser, compare_folders, "synthetic_dir")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--inception", metavar="PATH",
                      help="Inception v3 as TorchScript; default: features are pixels")
    kind.add_argument("--classifier", metavar="ARCHITECTURE:WEIGHTS.safetensors",
                      help="features of a torchvision or timm classifier, or 'bundled'")


def metrics(args: argparse.Namespace) -> None:
    """Run ``metrics``."""
    features = None
    if args.inception:
        features = inception_features(args.inception)
    elif args.classifier:
        features = open_classifier_features(args.classifier)
    report = compare_folders(args.real_dir, args.synthetic_dir, features=features)
    say(json.dumps(asdict(report), indent=2))


def add_info(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``info``."""
    add_options(parser, Synthesizer, "model", "cache")


def info(args: argparse.Namespace) -> None:
    """Run ``info``."""
    for name, version in {"Python": platform.python_version(), **library_versions()}.items():
        say(f"{name:13s} {version}")
    root = Path(getattr(args, "cache", default_cache_root()))
    say(f"cache         {LatentCache(root) if root.exists() else f'{root}: empty'}")
    model = load_model(getattr(args, "model", "bundled"))
    say(f"model         {model.name}: {model.image_size[0]}×{model.image_size[1]}, "
        f"{model.channels} channel(s), condition: {model.condition_kind}, "
        f"on {model.device}, fingerprint {model.fingerprint[:12]}")


def _add_images(parser: argparse.ArgumentParser, command: Callable[..., Any], out: str) -> None:
    """Add the options of commands that show some of the images."""
    add_positional(parser, open_seed_images, "source")
    add_model(parser)
    parser.add_argument("--out", default=out, metavar="PATH", help=f"file to write ({out})")
    add_options(parser, command, *_SHOWN)


def _check_picture(text: str) -> None:
    """Refuse a place for a picture before the work."""
    out = Path(text)
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: expected a file in a folder that is there.")
    if out.suffix.lower() not in PIL.Image.registered_extensions():
        raise ValueError(f"--out {out}: expected a picture such as NAME.png.")
