"""The command that chooses an augmentation for your images."""

import argparse
import shlex
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

# Options that decide images, and therefore belong to the recommended command.
_IMAGES = ("model", "lora", "block_index", "embedded_guidance", "prompt", "captions", "rng_seed")


def add_commands(commands: Subparsers) -> None:
    """Register ``evaluate``."""
    command = commands.add_parser(
        "evaluate", help="try augmentations on your folder, and recommend one")
    command.add_argument("folder", help="a folder for each class, a list, or torchvision:NAME")
    add_model_options(command)
    add_settings_option(command)
    command.add_argument("--presets", nargs="+", metavar="PRESET",
                         help="what is compared; default: samples (where the model is conditioned "
                              "on the class), recommended and fast")
    command.add_argument("--shots", type=positive,
                         help="labeled images per class; default: two thirds of the smallest "
                              "class, up to 100 in all")
    command.add_argument("--draws", type=positive, default=6, help="how often they are drawn")
    command.add_argument("--expansion-ratios", type=positive, nargs="+", default=[5, 10],
                         help="synthetic images per labeled one")
    command.add_argument("--train-steps", type=positive, default=320,
                         help="optimizer steps of every training")
    command.add_argument("--image-size", type=positive, help="pixels that the classifier sees")
    command.add_argument("--flip", type=float, default=0.5,
                         help="probability that training images are mirrored; 0 for digits")
    add_calibrate_option(command)
    command.add_argument("--out", type=Path, default=Path("evaluation.json"),
                         help="JSON that keeps finished trainings; the same command resumes")
    command.add_argument("--apply", metavar="OUT",
                         help="folder to fill with the recommended synthetic images")
    command.set_defaults(run=_evaluate)


def _evaluate(args: argparse.Namespace) -> None:
    from dreamda_aug.evaluation import evaluate
    from dreamda_aug.evaluation.protocol import PRESETS
    from dreamda_aug.generation.synthesizer import Synthesizer
    from dreamda_aug.method.settings import resolve_settings

    changes = read_settings(args.set)
    presets = args.presets
    if changes:
        presets = {name: resolve_settings(name, **changes) for name in presets or PRESETS}
    say(str(evaluate(
        args.folder, Synthesizer(**model_options(args)), shots=args.shots, draws=args.draws,
        expansion_ratios=args.expansion_ratios, presets=presets, train_steps=args.train_steps,
        image_size=args.image_size, flip=args.flip, device=args.device or "cpu",
        calibrate=args.calibrate, rng_seed=args.rng_seed, out=args.out, apply=args.apply,
        command=_command(args), progress=say)))


def _command(args: argparse.Namespace) -> str:
    """The command that makes images of an arm, with this one's options."""
    parts = ["dreamda", "expand", args.folder, "--out", args.apply or "OUT"]
    for name in _IMAGES:
        if getattr(args, name) not in (None, 0):
            parts += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    for text in args.set:
        parts += ["--set", text]
    return f"{shlex.join(parts)} --preset {{preset}} --ratio {{expansion_ratio}}".replace(
        "{class_name}", "{{class_name}}")
