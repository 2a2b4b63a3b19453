"""Diffusion-based data augmentation: DreamDA for any PyTorch pipeline."""

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "AMSTWrapper", "AugmentedDataset", "BottleneckNoise", "CycleDiffusion", "DDIMInversion",
    "DreamDAugment", "Generator", "LatentCache", "PRESETS", "SelfTraining", "Settings", "calibrate",
    "expand", "load_backbone",
]

# Where each name lives; modules are loaded at first use, so that importing the package is quick.
_MODULES = {
    "AMSTWrapper": "amst",
    "AugmentedDataset": "datasets",
    "BottleneckNoise": "perturbation",
    "CycleDiffusion": "inversion",
    "DDIMInversion": "inversion",
    "DreamDAugment": "transforms",
    "Generator": "generator",
    "LatentCache": "cache",
    "PRESETS": "settings",
    "SelfTraining": "amst",
    "Settings": "settings",
    "calibrate": "calibration",
    "expand": "expansion",
    "load_backbone": "backbones",
}

if TYPE_CHECKING:
    from dreamda_aug.amst import AMSTWrapper, SelfTraining
    from dreamda_aug.backbones import load_backbone
    from dreamda_aug.cache import LatentCache
    from dreamda_aug.calibration import calibrate
    from dreamda_aug.datasets import AugmentedDataset
    from dreamda_aug.expansion import expand
    from dreamda_aug.generator import Generator
    from dreamda_aug.inversion import CycleDiffusion, DDIMInversion
    from dreamda_aug.perturbation import BottleneckNoise
    from dreamda_aug.settings import PRESETS, Settings
    from dreamda_aug.transforms import DreamDAugment


def __getattr__(name: str):
    if name in _MODULES:
        return getattr(importlib.import_module(f"dreamda_aug.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'dreamda_aug' has no attribute {name!r}")
