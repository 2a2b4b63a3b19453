"""The seam to diffusers: the only folder that imports it, and only when a model is loaded."""

from dreamda_aug.models.base import Condition, DiffusionModel, is_model
from dreamda_aug.models.families import Family
from dreamda_aug.models.load import BUNDLED, ModelSpec, as_model, load_model

__all__ = ["BUNDLED", "DiffusionModel", "ModelSpec", "Condition", "Family", "as_model",
           "is_model", "load_model"]
