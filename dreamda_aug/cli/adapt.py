"""The command that adapts a diffusion model to images."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from dreamda_aug.cli.options import (
    SOURCE_HELP,
    Subparsers,
    check_device,
    positive,
    read_names,
    say,
)


def add_commands(subparsers: Subparsers) -> None:
    """Register ``adapt``."""
    command = subparsers.add_parser(
        "adapt", help="adapt a model to your images; the same command goes on after an "
                      "interruption")
    command.add_argument("source", help=SOURCE_HELP)
    command.add_argument("--model", default="bundled", help="hub id, folder, or 'bundled'")
    command.add_argument("--out", type=Path, required=True, help="folder to write to")
    command.add_argument("--unlabeled", action="store_true",
                         help="train under the null class or the empty prompt, whatever the labels")
    command.add_argument("--classes", type=Path, help="file with a class name per line")
    command.add_argument("--class-map", action="append", default=[], metavar="CLASS=PRIOR",
                         help="which of the model's own classes a class begins as; may be repeated")
    command.add_argument("--prompt", help="template with {class_name}, for text-to-image models")
    command.add_argument("--rank", type=positive, help="of the LoRA matrices (default 8)")
    command.add_argument("--train-steps", type=positive, help="at most (default 1000)")
    command.add_argument("--learning-rate", type=float,
                         help="default: 1e-3 for pixel models, 1e-4 for latent ones")
    command.add_argument("--batch-size", type=positive, help="images per call (default 8)")
    command.add_argument("--accumulate", type=positive, help="batches per step (default 1)")
    command.add_argument("--prior-weight", type=float,
                         help="how strongly to hold to what the model predicted before")
    command.add_argument("--label-dropout", type=float,
                         help="share of images trained without their class (default 0.1)")
    command.add_argument("--held-out", type=float, help="share of images to measure on")
    command.add_argument("--evaluate-every", type=positive, help="steps (default 25)")
    command.add_argument("--patience", type=positive,
                         help="measurements without improvement until it stops (default 5)")
    command.add_argument("--no-early-stopping", dest="early_stopping", action="store_const",
                         const=False, help="train on all images for exactly --train-steps steps")
    command.add_argument("--gradient-checkpointing", action="store_const", const=True,
                         help="less memory, about a third more time")
    command.add_argument("--image-size", type=positive, help="pixels, for latent models")
    command.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                         help="of the frozen weights; LoRA weights are float32")
    command.add_argument("--device", help="such as cpu or cuda:1")
    command.add_argument("--rng-seed", type=int)
    command.add_argument("--split", help="of a torchvision, Hugging Face or bundled dataset")
    command.add_argument("--data-root", type=Path, help="folder of torchvision's data")
    command.add_argument("--download", action="store_true", help="let torchvision download it")
    command.set_defaults(run=_adapt)


def _adapt(args: argparse.Namespace) -> None:
    check_device(args.device)
    from dreamda_aug.adaptation import AdaptationSettings, adapt
    from dreamda_aug.inputs.prompts import DEFAULT_PROMPT
    from dreamda_aug.models import ModelSpec

    given: dict[str, Any] = {}
    for each in fields(AdaptationSettings):
        if getattr(args, each.name) is not None:
            given[each.name] = getattr(args, each.name)
    size = None if args.image_size is None else (args.image_size, args.image_size)
    found = adapt(
        args.source, ModelSpec(args.model, args.device, args.dtype, image_size=size),
        args.out, labels=None if args.unlabeled else "source",
        class_names=read_names(args.classes) if args.classes else None,
        class_map=dict(map(_pair, args.class_map)), prompt=args.prompt or DEFAULT_PROMPT,
        split=args.split, data_root=args.data_root, download=args.download, progress=True,
        settings=AdaptationSettings(**given),
    )
    for name, start in found.started_from.items():
        say(f"class {name}: began as {start}")
    say(str(found))


def _pair(text: str) -> tuple[str, str]:
    name, given, prior = text.partition("=")
    if not given or not name or not prior:
        raise ValueError(f"--class-map {text}: expected CLASS=PRIOR.")
    return name, prior
