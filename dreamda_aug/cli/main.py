"""The command `dreamda`: each subcommand is one library call."""

import argparse
import logging
import sys
import warnings
from typing import NoReturn

import dreamda_aug
from dreamda_aug.cli import expand, inspect
from dreamda_aug.errors import DreamDAError


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the command; the exit status: 0, 2 for bad arguments or input, 130 for Ctrl-C."""
    parser = _Parser(prog="dreamda", description=dreamda_aug.__doc__)
    parser.add_argument("--version", action="version", version=dreamda_aug.__version__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    inspect.add_commands(commands)
    expand.add_commands(commands)
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    warnings.showwarning = lambda message, *rest: print(f"warning: {message}", file=sys.stderr)
    try:
        return args.run(args) or 0
    except KeyboardInterrupt:
        print("interrupted; what was written is kept", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError, DreamDAError) as error:
        print(f"dreamda {args.command}: {error}".replace("\n", " "), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
