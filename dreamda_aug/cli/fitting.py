"""The commands that fit a diffusion model to your images, and tell whether it helps."""

import shlex
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from dreamda_aug import adaptation
from dreamda_aug.cli.options import (
    CLASSES,
    DATA,
    LOOK,
    MODEL,
    SETTINGS,
    SOURCE,
    Options,
    command,
    make_synthesizer,
    read_pair,
    say,
)
from dreamda_aug.evaluation import evaluate as evaluate_model
from dreamda_aug.models import ModelSpec

_ADAPT, _SPEC = Options(adaptation.adapt, "out", "prompt"), Options(ModelSpec, "device", "dtype")
_SETTINGS = Options(adaptation.AdaptationSettings)
_TRAIN = Options(adaptation.train, "out", "image_size", "grey", "width", "minutes", "train_steps",
                 "flip", "batch_size", "device", "rng_seed")
_EVALUATE = Options(evaluate_model, "shots", "draws", "expansion_ratios", "presets", "train_steps",
                    "image_size", "flip", "calibrate", "apply")


@command(DATA, _ADAPT, _SPEC, _SETTINGS, CLASSES)
def adapt(
    args: Namespace, *, model: str = "bundled", class_map: Sequence[str] = (),
    image_size: int | None = None, unlabeled: bool = False,
) -> None:
    """Adapt a model to images.

    Args:
        model: hub id, folder or file of the model.
        class_map: which of the model's own classes a class begins as, as CLASS=PRIOR.
        image_size: pixels, for latent models.
        unlabeled: train without the labels.
    """
    size = None if image_size is None else (image_size, image_size)
    found = _ADAPT.call(
        args, **DATA.given(args), model=_SPEC.call(args, source=model, image_size=size),
        labels=None if unlabeled else "source", class_names=CLASSES.call(args),
        class_map=dict(map(read_pair, class_map)), progress=True, **_SETTINGS.given(args))
    for name, start in found.started_from.items():
        say(f"class {name}: began as {start}")
    say(found)


@command(DATA, _TRAIN, CLASSES)
def train(args: Namespace, *, unlabeled: bool = False) -> None:
    """Train a small model on images alone.

    Args:
        unlabeled: train without the labels.
    """
    say(_TRAIN.call(args, **DATA.given(args), labels=None if unlabeled else "source",
                    class_names=CLASSES.call(args), progress=True))


@command(SOURCE, *MODEL, _EVALUATE)
def evaluate(args: Namespace, *, out: str | Path = "evaluation.json") -> None:
    """Try augmentations, and recommend one.

    Args:
        out: JSON file that keeps finished trainings; the same command resumes.
    """
    synthesizer, found = make_synthesizer(args), _EVALUATE.given(args)
    if hasattr(args, "preset"):
        found.setdefault("presets", [args.preset])
    look = Options(evaluate_model, *(name for name in LOOK.names if name != "preset"), "set")
    words = ["dreamda", "expand", args.source, "--out", str(found.get("apply", "OUT")),
             *look.again(args), *["--no-calibrate"] * (not found.get("calibrate", True))]
    command = shlex.join(words).replace("{", "{{").replace("}", "}}")
    say(evaluate_model(
        args.source, synthesizer, **found, settings=SETTINGS.call(args), out=out, progress=say,
        **Options(evaluate_model, "device", "rng_seed").given(args),
        command=f"{command} --preset {{preset}} --expansion-ratio {{expansion_ratio}}"))
