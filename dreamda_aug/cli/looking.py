"""The commands that show what the library does to your images, and what is installed."""

import argparse
import json
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import PIL.Image
import torch

import dreamda_aug
from dreamda_aug.arguments import real
from dreamda_aug.calibration.automatic import calibrated
from dreamda_aug.calibration.sweep import calibrate as calibrate_images
from dreamda_aug.cli.options import (
    MODEL,
    SOURCE,
    add_options,
    add_positional,
    add_settings,
    given,
    model_options,
    say,
)
from dreamda_aug.expansion.class_conditions import conditions
from dreamda_aug.files import WRITE_HERE, local_path
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.generation.tensors import Request
from dreamda_aug.inputs.images import Pixels, fit_to, read_pixels
from dreamda_aug.inputs.opening import read_image
from dreamda_aug.inputs.sources import open_source
from dreamda_aug.method.settings import Settings
from dreamda_aug.metrics import FolderImages, compare_folders
from dreamda_aug.metrics.classifier_files import open_classifier_features
from dreamda_aug.metrics.features import inception_features
from dreamda_aug.models import Condition, load_model
from dreamda_aug.report.explorer import explore as explore_images
from dreamda_aug.report.explorer import write_exploration
from dreamda_aug.report.pictures import labeled_grid, plot_calibration

# The largest grid that people can look at.
_MAX_CELLS = 10_000
# Options of the model that the explorer's lines repeat.
_REPEATED = tuple(name for name in MODEL if name not in (
    "cache", "batch_size", "compile", "low_memory", "device"))
_TARGET = ("min_agreement", "max_distance", "block_indices")


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``demo``."""
    parser.add_argument("--out", default="demo", metavar="PATH", help="folder to write to")


def demo(args: argparse.Namespace) -> None:
    """Run ``demo``."""
    from dreamda_aug.cli.demo import run_demo

    started, out = time.perf_counter(), local_path(args.out, "--out", WRITE_HERE)
    figures = run_demo(out, say)
    figures.save(out / "figures.json")
    say(f"\n{figures}\n\n{time.perf_counter() - started:.0f} s in all")

