"""The commands that fit a diffusion model to your images, and tell whether it helps."""

import argparse
import shlex
from dataclasses import fields
from typing import Any

from dreamda_aug import adaptation
from dreamda_aug.cli.options import (
    LOOK,
    SOURCE,
    add_classes,
    add_model,
    add_options,
    add_positional,
    class_names,
    given,
    model_options,
    read_pair,
    read_settings,
    repeated,
    say,
)
from dreamda_aug.evaluation import evaluate as evaluate_model
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models import ModelSpec

_ADAPTATION = tuple(field.name for field in fields(adaptation.AdaptationSettings))
_TRAINING = ("out", "image_size", "grey", "width", "minutes", "train_steps", "flip", "batch_size",
             "device", "rng_seed", *SOURCE)
_EVALUATION = ("shots", "draws", "expansion_ratios", "presets", "train_steps", "image_size",
               "flip", "calibrate", "apply")


def add_adapt(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``adapt``."""
    add_positional(parser, open_seed_images, "source")
    add_options(parser, adaptation.adapt, "out", "model", "prompt", *SOURCE)
    add_options(parser, ModelSpec, "device", "dtype")
    add_options(parser, adaptation.AdaptationSettings, *_ADAPTATION)
    _add_labels(parser)
    parser.add_argument("--class-map", nargs="+", default=[], metavar="CLASS=PRIOR",
                        help="which of the model's own classes a class begins as")
    parser.add_argument("--image-size", type=int, metavar="N", help="pixels, for latent models")


def adapt(args: argparse.Namespace) -> None:
    """Run ``adapt``."""
    loading = {"model": "bundled"} | given(args, "model", "device", "dtype")
    size = None if args.image_size is None else (args.image_size, args.image_size)
    spec = ModelSpec(loading.pop("model"), image_size=size, **loading)
    found = adaptation.adapt(
        args.source, spec, **given(args, "out", "prompt", *SOURCE), **_labels(args),
        class_map=dict(map(read_pair, args.class_map)), progress=True, **given(args, *_ADAPTATION))
    for name, start in found.started_from.items():
        say(f"class {name}: began as {start}")
    say(found)


def add_train(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``train``."""
    add_positional(parser, open_seed_images, "source")
    add_options(parser, adaptation.train, *_TRAINING)
    _add_labels(parser)


def train(args: argparse.Namespace) -> None:
    """Run ``train``."""
    say(adaptation.train(args.source, **given(args, *_TRAINING), **_labels(args), progress=True))


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``evaluate``."""
    add_positional(parser, open_seed_images, "source")
    add_model(parser)
    add_options(parser, evaluate_model, *_EVALUATION)
    parser.add_argument("--out", default="evaluation.json", metavar="PATH",
                        help="JSON file that keeps finished trainings; the same command resumes")


def evaluate(args: argparse.Namespace) -> None:
    """Run ``evaluate``."""
    options, found = model_options(args), given(args, *_EVALUATION)
    if hasattr(args, "preset"):
        found.setdefault("presets", [args.preset])
    look = [name for name in LOOK if name != "preset"]
    words = ["dreamda", "expand", args.source, "--out", str(found.get("apply", "OUT")),
             *repeated(args, *look), *(word for text in args.set for word in ("--set", text)),
             *["--no-calibrate"] * (not found.get("calibrate", True))]
    command = shlex.join(words).replace("{", "{{").replace("}", "}}")
    say(evaluate_model(
        args.source, Synthesizer(**options), **found, **given(args, "device", "rng_seed"),
        settings=read_settings(args.set), out=args.out, progress=say,
        command=f"{command} --preset {{preset}} --expansion-ratio {{expansion_ratio}}"))


def _add_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--unlabeled", action="store_true", help="train without the labels")
    add_classes(parser)


def _labels(args: argparse.Namespace) -> dict[str, Any]:
    return {"labels": None if args.unlabeled else "source", "class_names": class_names(args)}
