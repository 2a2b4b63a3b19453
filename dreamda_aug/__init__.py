"""Diffusion-based data augmentation: DreamDA for any PyTorch pipeline."""

import importlib
from typing import TYPE_CHECKING, Any

from dreamda_aug.version import __version__ as __version__

__all__ = [
    "AMSTWrapper", "AugmentedDataset", "ModelSpec", "BottleneckNoise", "CycleDiffusion",
    "DDIMInversion", "DreamDAugment", "LatentCache", "PRESETS", "SelfTraining", "Settings",
    "Synthesizer", "adapt", "calibrate", "evaluate", "expand", "load_model",
    "train",
]

# Where each name lives; modules are loaded at first use, so that importing the package is quick.
_MODULES = {
    "AMSTWrapper": "amst",
    "AugmentedDataset": "datasets",
    "ModelSpec": "models",
    "BottleneckNoise": "method.perturbation",
    "CycleDiffusion": "method.inversion",
    "DDIMInversion": "method.inversion",
    "DreamDAugment": "transforms",
    "LatentCache": "generation.cache",
    "PRESETS": "method.settings",
    "SelfTraining": "amst",
    "Settings": "method.settings",
    "Synthesizer": "generation.synthesizer",
    "adapt": "adaptation",
    "calibrate": "calibration.search",
    "evaluate": "evaluation",
    "expand": "expansion",
    "load_model": "models",
    "train": "adaptation",
}

if TYPE_CHECKING:
    from dreamda_aug.adaptation import adapt, train
    from dreamda_aug.amst import AMSTWrapper, SelfTraining
    from dreamda_aug.calibration.search import calibrate
    from dreamda_aug.datasets import AugmentedDataset
    from dreamda_aug.evaluation import evaluate
    from dreamda_aug.expansion import expand
    from dreamda_aug.generation.cache import LatentCache
    from dreamda_aug.generation.synthesizer import Synthesizer
    from dreamda_aug.method.inversion import CycleDiffusion, DDIMInversion
    from dreamda_aug.method.perturbation import BottleneckNoise
    from dreamda_aug.method.settings import PRESETS, Settings
    from dreamda_aug.models import ModelSpec, load_model
    from dreamda_aug.transforms import DreamDAugment


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(importlib.import_module(f"dreamda_aug.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'dreamda_aug' has no attribute {name!r}")
