"""The command that answers whether it helps on your images."""

import argparse
from pathlib import Path

from dreamda_aug.cli.options import (
    Subparsers,
    add_calibrate_option,
    add_model_options,
    add_settings_option,
    model_options,
    positive,
    read_settings,
    say,
)


def add_commands(commands: Subparsers) -> None:
    """Register ``evaluate``."""
    command = commands.add_parser(
        "evaluate", help="train with and without synthetic images on your folder; a verdict")
    command.add_argument("folder", help="a folder for each class, a list, or torchvision:NAME")
    add_model_options(command)
    add_settings_option(command)
    command.add_argument("--shots", type=positive, default=5, help="labeled images per class")
    command.add_argument("--draws", type=positive, default=5, help="how often they are drawn")
    command.add_argument("--replicas", type=positive, default=10, help="per labeled image")
    command.add_argument("--steps", type=positive, default=640, help="optimizer steps per arm")
    command.add_argument("--image-size", type=positive, help="pixels that the classifier sees")
    command.add_argument("--flip", type=float, default=0.5,
                         help="probability that training images are mirrored; 0 for digits")
    add_calibrate_option(command)
    command.add_argument("--out", type=Path, help="JSON with all numbers")
    command.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> None:
    from dreamda_aug.evaluation import evaluate
    from dreamda_aug.generation.synthesizer import Synthesizer

    found = evaluate(
        args.folder, Synthesizer(**model_options(args), **read_settings(args.set)),
        shots=args.shots, draws=args.draws, replicas=args.replicas, steps=args.steps,
        image_size=args.image_size, flip=args.flip, device=args.device or "cpu",
        calibrate=args.calibrate, rng_seed=args.rng_seed)
    if args.out:
        found.save(args.out)
    say(str(found))
