"""The command that shows what the dials do, on one page with sliders."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamda_aug.cli.options import (
    SOURCE_HELP,
    Subparsers,
    add_model_options,
    model_options,
    positive,
    say,
)

if TYPE_CHECKING:
    from dreamda_aug.generation.synthesizer import Synthesizer
    from dreamda_aug.inputs.seed_images import SeedImages

# Options of the model that the page's lines repeat, by their name in Python.
_REPEATED = ("model", "lora", "block_index", "embedded_guidance", "preset", "prompt", "captions",
             "rng_seed")


def add_commands(subparsers: Subparsers) -> None:
    """Register ``explore``."""
    command = subparsers.add_parser(
        "explore", help="one HTML page with sliders that show what the dials do to your images")
    command.add_argument("source", help=SOURCE_HELP)
    add_model_options(command)
    command.add_argument("--out", type=Path, default=Path("explore.html"), help="the page")
    command.add_argument("--images", type=positive, default=6, help="real images to show")
    command.add_argument("--replicas", type=positive, default=2, help="synthetic images of each")
    command.add_argument("--steps", type=positive, default=12,
                         help="reverse steps from pure noise; more are slower and finer")
    for name, meaning in (("strengths", "in (0, 1]"), ("replays", "in [0, 1]"),
                          ("noise-scales", ">= 0")):
        command.add_argument(f"--{name}", type=float, nargs="+",
                             help=f"positions of that slider, {meaning}")
    command.set_defaults(run=_explore)


def _explore(args: argparse.Namespace) -> None:
    options = model_options(args)
    from dreamda_aug.expansion.seeds import conditions_of
    from dreamda_aug.generation.synthesizer import Synthesizer
    from dreamda_aug.inputs.seed_images import open_seed_images
    from dreamda_aug.method.settings import Settings
    from dreamda_aug.report.explorer import explore, write_exploration

    grids = {name: getattr(args, name) for name in ("strengths", "replays", "noise_scales")
             if getattr(args, name)}
    for name, values in grids.items():
        for value in values:  # refused before a model is loaded
            Settings(**{{"strengths": "strength", "replays": "replay",
                         "noise_scales": "noise_scale"}[name]: value})
    source = open_seed_images(args.source).labeled()
    synthesizer = Synthesizer(**options, class_names=source.classes)
    indices = range(len(source))
    _, condition_of = conditions_of(source, synthesizer.conditioner, synthesizer.model, indices)
    page = explore(
        source, indices, synthesizer, condition_of, lambda label: source.classes[label],
        shown=args.images, replicas=args.replicas, steps=args.steps, **grids,
        title=f"What the dials do to {Path(args.source).name}",
        command=["dreamda", "expand", args.source, "--out",
                 f"{Path(args.source).name}_synthetic", *_repeated(args)],
        arguments=_arguments(args, synthesizer, source), announce=say)
    write_exploration(page, args.out)
    say(f"wrote {args.out}")


def _repeated(args: argparse.Namespace) -> list[str]:
    """The model's options that differ from their defaults, as they were typed."""
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    found = []
    for name in _REPEATED:
        if getattr(args, name) != parser.get_default(name):
            found += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    return found


def _arguments(
    args: argparse.Namespace, synthesizer: "Synthesizer", source: "SeedImages"
) -> dict[str, Any]:
    """The same as arguments of `Synthesizer`."""
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    found = {name: getattr(args, name) for name in _REPEATED
             if getattr(args, name) != parser.get_default(name)}
    if "captions" in found:
        found["captions"] = str(found["captions"])
    if synthesizer.conditioner.needs_label(synthesizer.model):
        found["class_names"] = source.classes
    return found
