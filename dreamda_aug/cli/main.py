"""The command `dreamda`: each subcommand is one library call."""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import NoReturn

import dreamda_aug
from dreamda_aug.cli import adapt, evaluate, expand, explore, inspect, push
from dreamda_aug.errors import DreamDAError
from dreamda_aug.files import WRITE_HERE, local_path


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0; 2 for bad arguments or input; 130 for Ctrl-C; 141 where whoever read the
        output has closed it, as ``| head`` does.
    """
    parser = _Parser(prog="dreamda", description=dreamda_aug.__doc__)
    parser.add_argument("--version", action="version", version=dreamda_aug.__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    inspect.add_commands(commands)
    expand.add_commands(commands)
    adapt.add_commands(commands)
    evaluate.add_commands(commands)
    explore.add_commands(commands)
    push.add_commands(commands)
    try:
        return _run(parser, argv)
    except BrokenPipeError:
        _drop_output()
        return 141


def _run(parser: argparse.ArgumentParser, argv: list[str] | None) -> int:
    try:
        args = parser.parse_args(argv)
    finally:
        sys.stdout.flush()  # of --help too: a closed pipe is noticed here, and not at exit
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.showwarning = lambda message, *rest: print(f"warning: {message}", file=sys.stderr)
    try:
        if isinstance(getattr(args, "out", None), Path):  # `expand` takes URLs, and its own is text
            local_path(args.out, "--out", WRITE_HERE)
        status = args.run(args) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print("interrupted; what was written is kept", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, DreamDAError) as error:
        print(f"dreamda {args.command}: {error}".replace("\n", " "), file=sys.stderr)
        return 2


def _drop_output() -> None:
    """What is still to be written at exit goes nowhere, instead of into a closed pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            os.dup2(nowhere, stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
