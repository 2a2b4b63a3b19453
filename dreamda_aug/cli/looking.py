"""The commands that show what the library does to your images, and what is installed."""

import json
import platform
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

import PIL.Image
import torch

from dreamda_aug.arguments import whole
from dreamda_aug.calibration.search import calibrate as calibrate_images
from dreamda_aug.cli.options import LOOK, MODEL, SOURCE, Options, command, make_synthesizer, say
from dreamda_aug.expansion.manifest import library_versions
from dreamda_aug.generation.cache import LatentCache, default_cache_root
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.pixels import fit_to
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.metrics import compare_folders
from dreamda_aug.metrics.features import inception_features, open_classifier_features
from dreamda_aug.models import load_model
from dreamda_aug.report import explorer, pictures

_PREVIEW = Options(pictures.preview, "images", "expansion_ratio", "noise_scales", "calibrate")
_MEASURE = Options(calibrate_images, "expansion_ratio", "min_agreement", "max_distance",
                   "block_indices")
_EXPLORE = Options(explorer.explore, "images", "expansion_ratio", "steps", "strengths", "replays",
                   "noise_scales")
_FOLDERS = Options(compare_folders, "real_dir", "synthetic_dir")
_INFO = Options(Synthesizer, "model", "cache")


@command(SOURCE, *MODEL, _PREVIEW)
def preview(args: Namespace, *, out: str | Path = "preview.png") -> None:
    """Draw a grid of images and their replicas.

    Args:
        out: file to write.
    """
    _check_picture(out)
    _PREVIEW.call(args, source=args.source, synthesizer=make_synthesizer(args)).save(out)
    say(f"wrote {out}")


@command(SOURCE, *MODEL, _MEASURE)
def calibrate(
    args: Namespace, *, out: str | Path = "calibration.png", images: int = 64,
    max_rows: int = 20_000, full: bool = False,
) -> None:
    """Find how far images may go and keep their labels.

    Args:
        out: file to write.
        images: seed images to measure on.
        max_rows: about how many U-Net rows to spend.
        full: measure every choice instead.
    """
    _check_picture(out)
    count = whole("images", images, 1)
    synthesizer, seeds = make_synthesizer(args), open_seed_images(args.source)
    synthesizer = synthesizer.with_class_names(seeds.names)
    if not seeds.labels and not hasattr(args, "max_distance"):
        raise ValueError(
            f"{args.source} has no class folders, so agreement cannot be measured; give "
            "--max-distance, or sort the images into a folder for each class."
        )
    sample, pixels, conditions = pictures.draw_some(seeds, count, synthesizer)
    model = synthesizer.model
    result = _MEASURE.call(
        args, images=torch.cat([fit_to(each.values, model) for each in pixels]),
        labels=torch.tensor(sample.labels) if sample.labels else None, synthesizer=synthesizer,
        conditions=conditions, max_rows=None if full else max_rows,
        progress=lambda p: say(
            f"{'' if p.block_index is None else f'block {p.block_index}  '}"
            f"{p.steps} steps  {p.images} images  strength {p.strength:<5g} replay "
            f"{p.replay:<5g} noise scale {p.noise_scale:<5g} agreement "
            f"{p.agreement:.2f}  distance {p.distance:.3f}  diversity {p.diversity:.3f}"))
    use = ("" if result.block_index == model.block_index
           else f" with --block-index {result.block_index}")
    say(f"chosen: {result.summary()}; saved beside the cache, where it is found again{use}")
    pictures.plot_calibration(result, out)
    say(f"wrote {out}")


@command(SOURCE, *MODEL, _EXPLORE)
def explore(args: Namespace, *, out: str | Path = "explore.html") -> None:
    """Write a page with sliders that show what the dials do.

    Args:
        out: file to write.
    """
    seeds, name = open_seed_images(args.source).labeled(), Path(args.source).name
    synthesizer = make_synthesizer(args).with_class_names(seeds.names)
    arguments = LOOK.given(args)
    if synthesizer.conditioner.needs_label(synthesizer.model):
        arguments["class_names"] = seeds.names
    page = _EXPLORE.call(
        args, source=seeds, synthesizer=synthesizer, title=f"What the dials do to {name}",
        arguments=arguments, announce=say, command=["dreamda", "expand", args.source, "--out",
                                                    f"{name}_synthetic", *LOOK.again(args)])
    explorer.write_exploration(page, out)
    say(f"wrote {out}")


@command(_FOLDERS)
def metrics(
    args: Namespace, *, inception: Path | None = None, classifier: str | None = None
) -> None:
    """Compare two folders; without an option by their pixels.

    Args:
        inception: Inception v3 as TorchScript, for its features.
        classifier: features of a torchvision or timm classifier, ARCHITECTURE:WEIGHTS.safetensors,
            or 'bundled'.
    """
    if inception and classifier:
        raise ValueError("--inception and --classifier give features in two ways; give one.")
    features = (inception_features(inception) if inception else
                open_classifier_features(classifier) if classifier else None)
    say(json.dumps(asdict(_FOLDERS.call(args, features=features)), indent=2))


@command(_INFO)
def info(args: Namespace) -> None:
    """Print versions, cache and model."""
    for name, version in {"Python": platform.python_version(), **library_versions()}.items():
        say(f"{name:13s} {version}")
    root = Path(getattr(args, "cache", default_cache_root()))
    say(f"cache         {LatentCache(root) if root.exists() else f'{root}: empty'}")
    model = load_model(getattr(args, "model", "bundled"))
    say(f"model         {model.name}: {model.image_size[0]}×{model.image_size[1]}, "
        f"{model.channels} channel(s), condition: {model.condition_kind}, "
        f"on {model.device}, fingerprint {model.fingerprint[:12]}")


def _check_picture(place: str | Path) -> None:
    """Refuse a place for a picture before the work."""
    out = Path(place)
    if out.is_dir() or not out.parent.is_dir():
        raise ValueError(f"--out {out}: expected a file in a folder that is there.")
    if out.suffix.lower() not in PIL.Image.registered_extensions():
        raise ValueError(f"--out {out}: expected a picture such as NAME.png.")
