"""Command-line options made from signatures and docstrings.

An option is written once: its name, type, choices and default are those of a parameter, and its
help is the parameter's entry under ``Args:``. Most are parameters of the library; what a command
alone has is a parameter of its own function.
"""

import argparse
import inspect
import json
import re
import types
import typing
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dreamda_aug.files import open_file, read_lines
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.method.settings import resolve_settings
from dreamda_aug.models import ModelSpec

_METAVARS: dict[Any, str] = {int: "N", float: "X"}
_SECTION = re.compile(r"^(?:Args|Attributes):\n((?:(?: {4}.*)?\n)*)", re.MULTILINE)


def say(line: object) -> None:
    """Print a line at once, also into a pipe, and whatever a path in it is made of."""
    print(str(line).encode(errors="backslashreplace").decode(), flush=True)


class Options:
    """Parameters of a function or class as options of a command.

    A parameter without a default is a positional argument, or a required option if it is
    keyword-only.

    Args:
        owner: the function or class.
        names: of its parameters; all that its docstring describes, if none are given.
    """

    def __init__(self, owner: Callable[..., Any], *names: str):
        self.owner, self.names = owner, names or tuple(_entries(owner))

    def add(self, parser: ArgumentParser) -> None:
        """Add them to the parser of a command."""
        owner, entries = self.owner, _entries(self.owner)
        hints = typing.get_type_hints(owner.__init__ if isinstance(owner, type) else owner)
        for name in self.names:
            parameter = inspect.signature(owner).parameters[name]
            default, is_needed = parameter.default, parameter.default is parameter.empty
            text = entries[name].replace("`", "").replace("%", "%%")
            if is_needed and parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                parser.add_argument(name, help=text)
                continue
            if type(default) in (str, int, float) and default != "":
                text += f" (default: {default})"
            parser.add_argument(
                f"--{name.replace('_', '-')}", help=text, default=argparse.SUPPRESS,
                required=is_needed, **_kind(hints[name], default))

    def given(self, args: Namespace) -> dict[str, Any]:
        """Those that the user gave, as keyword arguments; for others the defaults apply."""
        return {name: getattr(args, name) for name in self.names if hasattr(args, name)}

    def call(self, args: Namespace, **more: Any) -> Any:
        """Call the owner with what the user gave, and with more keyword arguments."""
        return self.owner(**self.given(args), **more)

    def again(self, args: Namespace) -> list[str]:
        """The words of a command line that give them again."""
        several = {name: value if isinstance(value, list) else [value]
                   for name, value in self.given(args).items()}
        return [word for name, values in several.items() for value in values
                for word in (f"--{name.replace('_', '-')}", str(value))]


def command(*options: Options) -> Callable[[Callable[..., int | None]], Callable[..., None]]:
    """Make a function that adds a command to a parser, of one that runs it.

    The command has these options, and one for each parameter that its function's docstring
    describes. The function is called with the parsed arguments and with its own parameters.
    """
    def decorated(run: Callable[..., int | None]) -> Callable[[ArgumentParser], None]:
        def add_to(parser: ArgumentParser) -> None:
            own = Options(run)
            for each in (*options, own):
                each.add(parser)
            parser.set_defaults(run=lambda args: run(args, **own.given(args)))

        return add_to

    return decorated


def _entries(owner: Callable[..., Any]) -> dict[str, str]:
    """Description of each parameter in the docstring."""
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
    if kinds == [Path] or str in kinds or Any in kinds:
        return {"type": Path if kinds == [Path] else str,
                "metavar": "PATH" if Path in kinds else "TEXT"}
    item = get_args(kinds[0])[0]
    if get_origin(kinds[0]) is list:
        return {"action": "append", "metavar": "TEXT"}
    return {"nargs": "+", "type": item, "metavar": _METAVARS.get(item, "TEXT")}


def read_settings(set: list[str] | None = None) -> dict[str, Any]:
    """``["steps=50"]`` to ``{"steps": 50}``; values are JSON, text, or auto for None.

    Args:
        set: a setting that differs from the preset, such as noise_scale=2 or replay=auto
            (calibrated); may be repeated.
    """
    found: dict[str, Any] = {}
    for name, value in map(read_pair, set or ()):
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


def read_classes(classes: str | Path | None = None) -> list[str] | None:
    """Names of the classes, or None.

    Args:
        classes: file with a class name per line, in label order.
    """
    if classes is None:
        return None
    with open_file(classes) as file:
        names = [line.strip() for _, line in read_lines(file, str(classes))]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"{classes}: expected different class names, one per line, got {names[:9]}.")
    return names


SOURCE = Options(open_seed_images, "source")
DATA = Options(open_seed_images, "source", "split", "data_root", "download")
CLASSES, SETTINGS = Options(read_classes), Options(read_settings)
_SPEC = Options(ModelSpec, "lora", "block_index", "embedded_guidance", "low_memory", "device")
_USE = Options(Synthesizer, "model", "preset", "prompt", "captions", "cache", "batch_size",
               "compile", "rng_seed")
# How a model is loaded and used, in every command that makes images.
MODEL = (_USE, _SPEC, SETTINGS)
# Those that decide how images look, and stand in command lines that a command recommends.
LOOK = Options(Synthesizer, "model", "lora", "block_index", "embedded_guidance", "preset",
               "prompt", "captions", "rng_seed")


def make_synthesizer(args: Namespace, **more: Any) -> Synthesizer:
    """The synthesizer that the options ``MODEL`` describe."""
    settings = SETTINGS.call(args)
    # takes nothing but settings
    resolve_settings(_USE.given(args).get("preset", "recommended"), **settings)
    return Synthesizer(**_USE.given(args), **_SPEC.given(args), **settings, **more)
