"""The command `dreamda`: each subcommand is one library call."""

import argparse
import json
import logging
import platform
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import dreamda_aug
from dreamda_aug.cli_expand import add_commands, add_model_options, model_options, positive
from dreamda_aug.errors import DreamDAError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status: 0, 2 for bad arguments or input, 130 for Ctrl-C."""
    parser = _Parser(prog="dreamda", description=dreamda_aug.__doc__)
    parser.add_argument("--version", action="version", version=dreamda_aug.__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    command = commands.add_parser("demo", help="the whole job on bundled images, in minutes")
    command.add_argument("--out", type=Path, default=Path("demo"), help="folder to write to")
    command.set_defaults(run=_demo)

    command = commands.add_parser("preview", help="a grid of your images and their replicas")
    command.add_argument("folder", type=Path, help="images, or a folder for each class")
    add_model_options(command)
    command.add_argument("--out", type=Path, default=Path("preview.png"))
    command.add_argument("--images", type=positive, default=8, help="seed images to show")
    command.add_argument("--replicas", type=positive, default=2, help="per image and noise scale")
    command.add_argument("--noise-scales", type=float, nargs="+",
                         help="columns of the grid; default: the preset's")
    command.set_defaults(run=_preview)

    command = commands.add_parser("calibrate", help="find the noise scale your images bear")
    command.add_argument("folder", type=Path, help="images, or a folder for each class")
    add_model_options(command)
    command.add_argument("--out", type=Path, default=Path("calibration.png"), help="the plot")
    command.add_argument("--images", type=positive, default=64, help="seed images to measure on")
    command.add_argument("--replicas", type=positive, default=4, help="per image")
    command.add_argument("--min-agreement", type=float, default=0.9,
                         help="share of replicas that must keep their label")
    command.add_argument("--max-distance", type=float,
                         help="another target: RMS pixel distance from the seed image, in [0, 1]")
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

    add_commands(commands)

    command = commands.add_parser("info", help="versions, cache and backbone")
    command.add_argument("--backbone", default="bundled")
    command.add_argument("--cache", type=Path)
    command.set_defaults(run=_info)

    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.showwarning = lambda message, *rest: print(f"warning: {message}", file=sys.stderr)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("interrupted; what was written is kept", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, DreamDAError) as error:
        print(f"dreamda {args.command}: {error}".replace("\n", " "), file=sys.stderr)
        return 2


def _say(line: str) -> None:
    print(line, flush=True)


def _open_sample(args: argparse.Namespace):
    """The folder, a sample of its images over all classes, and the transform to augment them."""
    from dreamda_aug.features import FolderImages
    from dreamda_aug.settings import resolve_settings
    from dreamda_aug.transforms import DreamDAugment

    options = model_options(args)
    resolve_settings(args.preset)
    data = FolderImages(args.folder)
    # every k-th image in name order: that touches every class in its share
    count = min(args.images, len(data))
    rows = [round(i * (len(data) - 1) / max(count - 1, 1)) for i in range(count)]
    augment = DreamDAugment(**options, class_names=data.class_names or None)
    return data, rows, augment


def _demo(args: argparse.Namespace) -> None:
    from dreamda_aug.demo import format_table, run_demo, table_as_json

    started = time.perf_counter()
    table = run_demo(args.out, _say)
    (args.out / "table.json").write_text(table_as_json(table))
    _say(f"\n{format_table(table)}\n\n{time.perf_counter() - started:.0f} s in all")


def _preview(args: argparse.Namespace) -> None:
    from dataclasses import replace

    import PIL.Image
    import torch

    from dreamda_aug.generator import Request
    from dreamda_aug.images import fit_to, read_pixels
    from dreamda_aug.pictures import labelled_grid

    data, rows, augment = _open_sample(args)
    generator = augment.generator
    pixels = [read_pixels(PIL.Image.open(data.paths[row])) for row in rows]
    values = torch.cat([fit_to(p.values, generator.backbone) for p in pixels])
    conditions = _conditions(data, rows, augment)
    scales = args.noise_scales or [generator.settings.noise_scale]
    cells = [[image] for image in values]
    requests = [Request(i, conditions[i], r) for i in range(len(rows))
                for r in range(args.replicas)]
    for scale in scales:
        _say(f"noise scale {scale:g}: {len(requests)} images ...")
        part = generator.with_settings(replace(generator.settings, noise_scale=scale))
        made = part.augment(values, requests, [p.digests[0] for p in pixels]).cpu()
        for request, image in zip(requests, made):
            cells[request.image].append(image)
    names = ["seed", *(f"noise {s:g}" for s in scales for _ in range(args.replicas))]
    row_names = [data.class_names[data.labels[row]] if data.class_names else data.paths[row].name
                 for row in rows]
    labelled_grid(cells, row_names, names).save(args.out)
    _say(f"wrote {args.out}")


def _conditions(data, rows, augment) -> list:
    backbone = augment.generator.backbone
    labels = [data.labels[row] if data.labels else None for row in rows]
    return [augment.conditioner.condition(label, backbone, str(data.paths[row]))
            for label, row in zip(labels, rows, strict=True)]


def _calibrate(args: argparse.Namespace) -> None:
    import PIL.Image
    import torch

    from dreamda_aug.calibration import calibrate
    from dreamda_aug.images import fit_to, read_pixels
    from dreamda_aug.pictures import plot_calibration

    data, rows, augment = _open_sample(args)
    if not data.labels and args.max_distance is None:
        raise ValueError(
            f"{args.folder} has no class folders, so agreement cannot be measured; give "
            "--max-distance, or sort the images into a folder for each class."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*was not calibrated")
        generator = augment.generator
    values = torch.cat([
        fit_to(read_pixels(PIL.Image.open(data.paths[row])).values, generator.backbone)
        for row in rows
    ])
    labels = torch.tensor([data.labels[row] for row in rows]) if data.labels else None
    result = calibrate(
        values, labels, generator=generator, conditions=_conditions(data, rows, augment),
        min_agreement=args.min_agreement, max_distance=args.max_distance, replicas=args.replicas,
        progress=lambda p: _say(
            f"adherence {p.adherence:<5g} noise scale {p.noise_scale:<5g} agreement "
            f"{p.agreement:.2f}  distance {p.distance:.3f}  diversity {p.diversity:.3f}"),
    )
    _say(f"chosen: noise_scale={result.noise_scale:g}, adherence={result.adherence:g} "
         f"({result.target}{'' if result.met else ', not kept by any'}); saved beside the cache, "
         "where preset 'recommended' finds it")
    plot_calibration(result, args.out)
    _say(f"wrote {args.out}")


def _metrics(args: argparse.Namespace) -> None:
    from dreamda_aug.classifier_files import open_classifier_features
    from dreamda_aug.features import inception_features
    from dreamda_aug.metrics import compare_folders

    features = None
    if args.inception:
        features = inception_features(args.inception)
    elif args.classifier:
        features = open_classifier_features(args.classifier)
    report = compare_folders(args.real, args.synthetic, features=features)
    _say(json.dumps(report.as_dict(), indent=2))


def _info(args: argparse.Namespace) -> None:
    from dreamda_aug.backbones import load_backbone
    from dreamda_aug.cache import LatentCache, default_cache_root

    names = ("torch", "torchvision", "diffusers", "transformers", "safetensors", "numpy")
    for name in names:
        try:
            _say(f"{name:13s} {version(name)}")
        except PackageNotFoundError:
            _say(f"{name:13s} not installed")
    _say(f"{'dreamda_aug':13s} {dreamda_aug.__version__}, Python {platform.python_version()}")
    root = args.cache or default_cache_root()
    _say(f"cache         {LatentCache(root).info() if root.exists() else f'{root}: empty'}")
    backbone = load_backbone(args.backbone)
    _say(f"backbone      {backbone.name}: {backbone.image_size[0]}×{backbone.image_size[1]}, "
         f"{backbone.channels} channel(s), condition: {backbone.condition_kind}, "
         f"on {backbone.device}, fingerprint {backbone.fingerprint[:12]}")


if __name__ == "__main__":
    sys.exit(main())
