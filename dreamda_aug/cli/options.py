"""Command-line options made from the signatures and docstrings of the library.

An option is written once, in the library: its name, type, choices and default are those of a
parameter of a public function or class, and its help is the parameter's entry under ``Args:``.
"""

import argparse
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.method.settings import resolve_settings
from dreamda_aug.models import ModelSpec

# How a model is loaded and used, in every command that makes images.
_LOADING = ("lora", "block_index", "embedded_guidance", "low_memory", "device")
_USE = ("preset", "prompt", "captions", "cache", "batch_size", "compile", "rng_seed")
MODEL = ("model", *_LOADING, *_USE)
# Those that decide how images look, and stand in command lines that a command recommends.
LOOK = ("model", "lora", "block_index", "embedded_guidance", "preset", "prompt", "captions",
        "rng_seed")
SOURCE = ("split", "data_root", "download")
_METAVARS: dict[Any, str] = {int: "N", float: "X"}
_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:(?: {4}.*)?\n)*)", re.MULTILINE)


def add_positional(
    parser: argparse.ArgumentParser, owner: Callable[..., Any], name: str, shown: str = ""
) -> None:
    """Add a positional argument for a parameter; ``shown`` is its name here, if it differs."""
    parser.add_argument(shown or name, help=_help(owner, name))


def add_options(
    parser: argparse.ArgumentParser, owner: Callable[..., Any], *names: str, **changes: Any
) -> None:
    """Add an option for each of these parameters; `given` reads what the user gave.

    Args:
        parser: of the command.
        owner: the function or class.
        names: of its parameters; one without a default becomes a required option.
        changes: keywords of ``add_argument`` that differ, such as ``help``.
    """
    parameters = inspect.signature(owner).parameters
    function = owner.__init__ if isinstance(owner, type) else owner
    hints = typing.get_type_hints(function)
    for name in names:
        default = parameters[name].default
        keywords: dict[str, Any] = {
            "help": _help(owner, name, default), "default": argparse.SUPPRESS,
            "required": default is inspect.Parameter.empty,
            **_kind(hints[name], default), **changes}
        parser.add_argument(f"--{name.replace('_', '-')}", **keywords)


def given(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that the user gave, as keyword arguments; for others the library's
    defaults apply.
    """
    return {name: getattr(args, name) for name in names if hasattr(args, name)}


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of `Synthesizer`, and ``--set`` for its settings."""
    add_options(parser, Synthesizer, "model")
    add_options(parser, ModelSpec, *_LOADING)
    add_options(parser, Synthesizer, *_USE)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="a setting that differs from the preset, such as noise_scale=2 or "
                             "replay=auto (calibrated); may be repeated")


def repeated(args: argparse.Namespace, *names: str) -> list[str]:
    """The words of a command line that give these options again."""
    return [word for name, value in given(args, *names).items()
            for word in (f"--{name.replace('_', '-')}", str(value))]


def model_options(args: argparse.Namespace) -> dict[str, Any]:
    """What the options of `add_model` are to `Synthesizer`."""
    found, settings = given(args, *MODEL), read_settings(args.set)
    resolve_settings(found.get("preset", "recommended"), **settings)  # takes nothing but settings
    return found | settings


def read_settings(texts: Sequence[str]) -> dict[str, Any]:
    """``["steps=50"]`` to ``{"steps": 50}``; values are JSON, text, or auto for None."""
    found: dict[str, Any] = {}
    for name, value in map(read_pair, texts):
        try:
            found[name] = None if value == "auto" else json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
    return found


def read_pair(text: str) -> tuple[str, str]:
    """``"a=b"`` to ``("a", "b")``."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"expected NAME=VALUE, got {text!r}.")
    return name, value


def add_classes(parser: argparse.ArgumentParser) -> None:
    """Add ``--classes``; `class_names` reads its file."""
    parser.add_argument("--classes", type=Path, metavar="PATH",
                        help="file with a class name per line, in label order")


def class_names(args: argparse.Namespace) -> list[str] | None:
    """Class names of the file that the user gave, or None."""
    path: Path | None = args.classes
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a file with a class name per line: {error}.") from error
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path}: expected different class names, one per line, got {names[:9]}.")
    return names


def say(line: object) -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def _help(owner: Callable[..., Any], name: str, default: Any = None) -> str:
    """The parameter's entry in the docstring, without markup."""
    text = _entries(owner)[name].replace("`", "").replace("%", "%%")
    shown = isinstance(default, str | int | float) and not isinstance(default, bool)
    return f"{text} (default: {default})" if shown and default != "" else text


def _entries(owner: Callable[..., Any]) -> dict[str, str]:
    found: dict[str, str] = {}
    for section in _SECTION.findall(f"{inspect.getdoc(owner)}\n"):
        for entry in re.split(r"\n(?= {4}\S)", section):
            names, _, text = entry.partition(": ")
            found |= dict.fromkeys(names.strip().split(", "), " ".join(text.split()))
    return found


def _kind(annotation: Any, default: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    kinds = [annotation]
    if get_origin(annotation) in (typing.Union, types.UnionType):
        kinds = [each for each in get_args(annotation) if each is not types.NoneType]
    for kind in kinds:
        origin = get_origin(kind) or kind
        if origin is bool:
            return {"action": argparse.BooleanOptionalAction if default else "store_true"}
        if origin is Literal:
            return {"choices": get_args(kind)}
        if origin in (int, float):
            return {"type": origin, "metavar": _METAVARS[origin]}
    if any(kind in (str, Path) for kind in kinds) or Any in kinds:
        return {"metavar": "TEXT" if Path not in kinds else "PATH"}
    item = get_args(kinds[0])[0]
    return {"nargs": "+", "type": item, "metavar": _METAVARS.get(item, "TEXT")}
