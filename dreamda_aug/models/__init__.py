"""The seam to diffusers: the only folder that imports it, and only when a model is loaded."""

from dreamda_aug.models.base import DiffusionModel
from dreamda_aug.models.families import Family
from dreamda_aug.models.load import ModelSpec, load_model

__all__ = ["DiffusionModel", "Family", "ModelSpec", "load_model"]
