"""The seam to diffusers: the only folder that imports it, and only when a model is loaded."""

from dreamda_aug.backbones.base import Backbone, Condition
from dreamda_aug.backbones.load import BUNDLED, BackboneSpec, load_backbone

__all__ = ["BUNDLED", "Backbone", "BackboneSpec", "Condition", "load_backbone"]
