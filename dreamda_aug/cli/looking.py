"""The commands that show what the library does to your images, and what is installed."""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import PIL.Image
import torch

import dreamda_aug
from dreamda_aug.arguments import real
from dreamda_aug.calibration.automatic import calibrated
from dreamda_aug.calibration.sweep import calibrate as calibrate_images
from dreamda_aug.cli.options import (
    LOOK,
    add_model,
    add_options,
    add_positional,
    add_source,
    given,
    model_options,
    positive,
    repeated,
    say,
)
from dreamda_aug.expansion import Expansion
from dreamda_aug.expansion.seeds import conditions_of
from dreamda_aug.generation.cache import LatentCache, default_cache_root
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.generation.tensors import Request
from dreamda_aug.inputs.pixels import Pixels, fit_to
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.method.settings import Settings
from dreamda_aug.metrics import compare_folders
from dreamda_aug.metrics.classifier_files import open_classifier_features
from dreamda_aug.metrics.features import inception_features
from dreamda_aug.models import Condition, load_model
from dreamda_aug.report.explorer import explore as explore_images
from dreamda_aug.report.explorer import write_exploration
from dreamda_aug.report.pictures import labeled_grid, plot_calibration

# The largest grid that people can look at.
_MAX_CELLS = 10_000
_TARGET = ("min_agreement", "max_distance", "block_indices")


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo``."""
    parser.add_argument("--out", default="demo", metavar="PATH", help="folder to write to")


def demo(args: argparse.Namespace) -> None:
    """Run ``demo``."""
    from dreamda_aug.cli.demo import run_demo

    started, out = time.perf_counter(), Path(args.out)
    figures = run_demo(out, say)
    figures.save(out / "figures.json")
    say(f"\n{figures}\n\n{time.perf_counter() - started:.0f} s in all")


def add_preview(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``preview``."""
    _add_images(parser, "preview.png", 8, 2)
    add_options(parser, Expansion, "calibrate")
    parser.add_argument("--noise-scales", type=float, nargs="+", metavar="X",
                        help="columns of the grid; default: the preset's")


def preview(args: argparse.Namespace) -> None:
    """Run ``preview``."""
    images, synthesizer = _open_images(args)
    count = min(args.images, len(images))
    cells_asked = count * (1 + args.expansion_ratio * len(args.noise_scales or [1]))
    if cells_asked > _MAX_CELLS:
        raise ValueError(
            f"--images, --expansion-ratio and --noise-scales may ask for {_MAX_CELLS:,} "
            f"pictures at most, got {cells_asked:,}; `dreamda expand` writes many."
        )
    sample, pixels, wanted = _some(images, count, synthesizer)
    if getattr(args, "calibrate", True):  # as `expand` does, which then finds it
        synthesizer, _ = calibrated(synthesizer, images, range(len(images)),
                                    _condition_of(images, synthesizer))
    core = synthesizer.core
    values = torch.cat([fit_to(p.values, core.model) for p in pixels])
    scales = args.noise_scales or [core.settings.noise_scale]
    cells = [[image] for image in values]
    requests = [Request(i, wanted[i], r) for i in range(count)
                for r in range(args.expansion_ratio)]
    parts = [core.with_settings(replace(core.settings, noise_scale=scale)) for scale in scales]
    for scale, part in zip(scales, parts, strict=True):
        say(f"noise scale {scale:g}: {len(requests)} images ...")
        made = part.synthesize(values, requests, [p.digests[0] for p in pixels]).images.cpu()
        for request, image in zip(requests, made):
            cells[request.image].append(image)
    names = ["seed", *(f"noise {s:g}" for s in scales for _ in range(args.expansion_ratio))]
    row_names = ([sample.classes[label] for label in sample.labels] if sample.labels
                 else [Path(path).name for path in sample.paths])
    labeled_grid(cells, row_names, names).save(args.out)
    say(f"wrote {args.out}")


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``calibrate``."""
    _add_images(parser, "calibration.png", 64, 4)
    add_options(parser, calibrate_images, *_TARGET)
    parser.add_argument("--max-rows", type=int, default=20_000, metavar="N",
                        help="about how many U-Net rows to spend (default: 20000)")
    parser.add_argument("--full", action="store_true", help="measure every choice instead")


def calibrate(args: argparse.Namespace) -> None:
    """Run ``calibrate``."""
    images, synthesizer = _open_images(args)
    if not images.labels and not hasattr(args, "max_distance"):
        raise ValueError(
            f"{args.source} has no class folders, so agreement cannot be measured; give "
            "--max-distance, or sort the images into a folder for each class."
        )
    for name, value in given(args, "min_agreement", "max_distance").items():
        real(name, value, "lie in [0, 1]", 0, 1)
    model = synthesizer.model
    sample, pixels, wanted = _some(images, args.images, synthesizer)
    values = torch.cat([fit_to(each.values, model) for each in pixels])
    result = calibrate_images(
        values, torch.tensor(sample.labels) if sample.labels else None, synthesizer=synthesizer,
        conditions=wanted, replicas=args.expansion_ratio,
        max_rows=None if args.full else args.max_rows, **given(args, *_TARGET),
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


def add_explore(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``explore``."""
    _add_images(parser, "explore.html", 6, 2)
    add_options(parser, explore_images, "steps", "strengths", "replays", "noise_scales")


def explore(args: argparse.Namespace) -> None:
    """Run ``explore``."""
    options = model_options(args)
    grids = given(args, "strengths", "replays", "noise_scales")
    for name, values in grids.items():
        for value in values:  # refused before a model is loaded
            Settings(**{name.removesuffix("s"): value})
    source = open_seed_images(args.source).labeled()
    synthesizer = Synthesizer(**options, class_names=source.classes)
    indices = range(len(source))
    _, condition_of = conditions_of(source, synthesizer.conditioner, synthesizer.model, indices)
    names = {"class_names": source.classes} if synthesizer.conditioner.needs_label(
        synthesizer.model) else {}
    page = explore_images(
        source, indices, synthesizer, condition_of, lambda label: source.classes[label],
        shown=args.images, replicas=args.expansion_ratio, **given(args, "steps"), **grids,
        title=f"What the dials do to {Path(args.source).name}",
        command=["dreamda", "expand", args.source, "--out",
                 f"{Path(args.source).name}_synthetic", *repeated(args, *LOOK)],
        arguments=given(args, *LOOK) | names, announce=say)
    write_exploration(page, args.out)
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
    say(json.dumps(report.as_dict(), indent=2))


def add_info(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``info``."""
    add_options(parser, Synthesizer, "model", "cache")


def info(args: argparse.Namespace) -> None:
    """Run ``info``."""
    for name in ("torch", "torchvision", "diffusers", "transformers", "safetensors", "numpy"):
        try:
            say(f"{name:13s} {version(name)}")
        except PackageNotFoundError:
            say(f"{name:13s} not installed")
    say(f"{'dreamda_aug':13s} {dreamda_aug.__version__}, Python {platform.python_version()}")
    root = Path(getattr(args, "cache", default_cache_root()))
    say(f"cache         {LatentCache(root).info() if root.exists() else f'{root}: empty'}")
    model = load_model(getattr(args, "model", "bundled"))
    say(f"model         {model.name}: {model.image_size[0]}×{model.image_size[1]}, "
        f"{model.channels} channel(s), condition: {model.condition_kind}, "
        f"on {model.device}, fingerprint {model.fingerprint[:12]}")


def _add_images(
    parser: argparse.ArgumentParser, out: str, images: int, expansion_ratio: int
) -> None:
    """Add the options of commands that look at some of the images."""
    add_source(parser)
    add_model(parser)
    parser.add_argument("--out", default=out, metavar="PATH", help=f"file to write ({out})")
    for name, default, text in (("--images", images, "seed images to look at"),
                                ("--expansion-ratio", expansion_ratio, "synthetic images of each")):
        parser.add_argument(name, type=positive, default=default, metavar="N",
                            help=f"{text} (default: {default})")


def _open_images(args: argparse.Namespace) -> tuple[SeedImages, Synthesizer]:
    """All of the user's images, and what augments them."""
    _check_picture(args.out)
    synthesizer = Synthesizer(**model_options(args))
    images = open_seed_images(args.source)
    return images, synthesizer.with_class_names(images.names)


def _some(
    images: SeedImages, count: int, synthesizer: Synthesizer
) -> tuple[SeedImages, list[Pixels], list[Condition]]:
    """Some of the images, with their pixels and conditions."""
    sample = images.subset(sorted(images.spread(count)))
    pixels = [sample.read(index) for index in range(len(sample))]
    condition = _condition_of(sample, synthesizer)
    return sample, pixels, [condition(index) for index in range(len(sample))]


def _condition_of(images: SeedImages, synthesizer: Synthesizer) -> Callable[[int], Condition]:
    labels, names = images.labels, images.file_names
    return lambda index: synthesizer.conditioner.condition(
        labels[index] if labels else None, synthesizer.model, names[index] if names else index)


def _check_picture(text: str) -> None:
    """Refuse a place for a picture before the work."""
    out = Path(text)
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: expected a file in a folder that is there.")
    if out.suffix.lower() not in PIL.Image.registered_extensions():
        raise ValueError(f"--out {out}: expected a picture such as NAME.png.")
