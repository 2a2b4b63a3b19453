"""Options that several commands share."""

import argparse
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

SOURCE_HELP = ("images, a folder for each class, a .csv or .jsonl list, torchvision:NAME, hf:NAME, "
               "or bundled")


class Subparsers(Protocol):
    """What `ArgumentParser.add_subparsers` returns."""

    def add_parser(self, name: str, *, help: str) -> argparse.ArgumentParser: ...


def add_model_options(command: argparse.ArgumentParser) -> None:
    """The options that say which model makes images, and how; `model_options` reads them."""
    command.add_argument("--model", default="bundled", help="hub id, folder, or 'bundled'")
    command.add_argument("--lora", help="folder that dreamda adapt wrote; or a LoRA file, folder "
                                        "or hub id")
    command.add_argument("--block-index", type=whole, metavar="N",
                         help="for transformers: noise enters behind block N; default: the middle")
    command.add_argument("--embedded-guidance", type=float, metavar="X",
                         help="for FLUX.1 dev and its like: the guidance scale that the model "
                              "takes as an input; default: its pipeline's own")
    command.add_argument("--preset", default="recommended")
    command.add_argument("--prompt", help="template with {class_name}, for text-to-image models")
    command.add_argument("--captions", type=Path, help="a prompt per image: .jsonl or .csv with "
                                                       "file_name and text")
    command.add_argument("--cache", type=Path, help="folder of inversions and calibrations")
    command.add_argument("--batch-size", type=positive, default=32)
    command.add_argument("--compile", action="store_true",
                         help="run the model through torch.compile: minutes at first, quicker then")
    command.add_argument("--low-memory", action="store_true",
                         help="for GPUs with 8 GB; give --batch-size 1 too")
    command.add_argument("--rng-seed", type=int, default=0)
    command.add_argument("--device", help="such as cpu or cuda:1")


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_model_options` are to `Synthesizer`."""
    from dreamda_aug.inputs.prompts import DEFAULT_PROMPT

    check_device(args.device)
    names = ("model", "lora", "block_index", "embedded_guidance", "compile", "preset", "captions",
             "batch_size", "low_memory", "rng_seed", "device")
    return {name: getattr(args, name) for name in names} | {
        "prompt": args.prompt or DEFAULT_PROMPT, "cache": args.cache or "default"}


def add_calibrate_option(command: argparse.ArgumentParser) -> None:
    """The option that leaves out what `calibration.automatic` does."""
    command.add_argument("--no-calibrate", dest="calibrate", action="store_false",
                         help="do not measure on your images how far they may go")


def add_settings_option(command: argparse.ArgumentParser) -> None:
    """The option that changes single settings of the preset; `read_settings` reads it."""
    command.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                         help="a setting that differs from the preset, such as noise_scale=2")


def read_settings(texts: list[str]) -> dict[str, Any]:
    """``["steps=50"]`` to ``{"steps": 50}``; values are JSON, or text where they are not."""
    from dreamda_aug.method.settings import DIALS, Settings

    known = {f.name for f in fields(Settings)} - {
        "inversion", "perturbation", "guidance_interval", "replay_interval"}
    found: dict[str, Any] = {}
    for text in texts:
        name, given, value = text.partition("=")
        if name not in known or not given:
            raise ValueError(f"--set {text}: expected NAME=VALUE, NAME one of {sorted(known)}.")
        if value == "auto" and name in DIALS:
            found[name] = None  # what was calibrated
            continue
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
        number = isinstance(found[name], int | float) and not isinstance(found[name], bool)
        number = number and math.isfinite(found[name])
        texts_allowed = {"update_rule", "source_prompt", "replay", "noise_scale", "solver",
                         "timestep_spacing"}
        if not number and not (isinstance(found[name], str) and name in texts_allowed):
            raise ValueError(f"--set {text}: {name} cannot be {value!r}.")
    return found


def check_device(device: str | None) -> None:
    import torch

    if device is None:
        return
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise ValueError(f"--device {device}: expected cpu, cuda, cuda:1, ...") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: torch finds no CUDA device.")


def whole(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {value}")
    return value


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {value}")
    return value


def read_names(path: Path) -> list[str]:
    """Class names of a file with one per line."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a file with a class name per line, found none.")
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8 text ({error}).") from error
    if not names:
        raise ValueError(f"{path}: expected a class name per line, found none.")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}: class name {repeated[0]!r} is there twice.")
    return names


def say(line: str) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)
