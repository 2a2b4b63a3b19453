"""The command `dreamda`: each subcommand is one library call."""

import argparse
import importlib
import logging
import os
import sys
import warnings
from typing import NoReturn

import dreamda_aug
from dreamda_aug.errors import DreamDAError
from dreamda_aug.files import WRITE_HERE, local_path

# Commands with their modules, of which only that of the chosen command is loaded, and their helps.
_COMMANDS = {
    "demo": ("demo", "the whole job on bundled images, in minutes"),
    "preview": ("looking", "a grid of your images and their replicas"),
    "explore": ("looking", "one HTML page with sliders that show what the dials do to your images"),
    "calibrate": ("looking", "find how far images may go and keep their labels"),
    "expand": ("writing", "write a synthetic dataset; the same command resumes"),
    "report": ("writing", "one HTML page on a synthetic dataset"),
    "regenerate": ("writing", "make one image again from its record"),
    "push": ("writing", "upload a synthetic dataset to the Hugging Face hub"),
    "adapt": ("fitting", "adapt a model to your images; the same command resumes"),
    "train": ("fitting", "train a small model on your images alone; the same command resumes"),
    "evaluate": ("fitting", "try augmentations on your folder, and recommend one"),
    "metrics": ("looking", "FID, KID, precision, ... of two image folders"),
    "info": ("looking", "versions, cache and model"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0; 1 if `regenerate` found another image; 2 for bad arguments or input;
        130 for Ctrl-C; 141 if the reader of the output has closed it, as ``| head`` does.
    """
    argv = sys.argv[1:] if argv is None else argv
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as `>&-` does
            setattr(sys, name, open(os.devnull, "w"))
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()  # of --help too: a closed pipe is noticed here, and not at exit
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # what they still hold is written at exit
            os.dup2(nowhere, stream.fileno())
        return 141


def _run(argv: list[str]) -> int:
    parser = _Parser(prog="dreamda", description=dreamda_aug.__doc__)
    parser.add_argument("--version", action="version", version=dreamda_aug.__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    chosen = next((each for each in argv if not each.startswith("-")), None)
    for name, (module, text) in _COMMANDS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            getattr(importlib.import_module(f"dreamda_aug.cli.{module}"), name)(command)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.showwarning = lambda message, *rest: print(f"warning: {message}", file=sys.stderr)
    try:
        if args.command != "expand":  # which writes to object stores too
            local_path(getattr(args, "out", None) or ".", "--out", WRITE_HERE)
        return args.run(args) or 0
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("interrupted; what was written is kept", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, DreamDAError) as error:
        print(f"dreamda {args.command}: {error}".replace("\n", " "), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
