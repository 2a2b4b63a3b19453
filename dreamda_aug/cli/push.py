"""The command that publishes a synthetic dataset."""

import argparse
from pathlib import Path

from dreamda_aug.cli.options import Subparsers, say


def add_commands(subparsers: Subparsers) -> None:
    """Register ``push``."""
    command = subparsers.add_parser("push", help="upload a dataset to the Hugging Face hub")
    command.add_argument("folder", type=Path, help="what dreamda expand wrote")
    command.add_argument("repository", metavar="USER/NAME", help="made if it is not there")
    command.add_argument("--private", action="store_true", default=None,
                         help="a new repository is for you alone")
    command.set_defaults(run=_push)


def _push(args: argparse.Namespace) -> None:
    from dreamda_aug.report.publishing import push

    say(push(args.folder, args.repository, private=args.private))
