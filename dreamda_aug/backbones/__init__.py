"""The seam to diffusers: the only folder that imports it, and only when a model is loaded."""

from dreamda_aug.backbones.base import Backbone, Condition, is_backbone
from dreamda_aug.backbones.families import Family
from dreamda_aug.backbones.load import BackboneSpec, as_backbone, load_backbone
from dreamda_aug.backbones.opening import BUNDLED

__all__ = ["BUNDLED", "Backbone", "BackboneSpec", "Condition", "Family", "as_backbone",
           "is_backbone", "load_backbone"]
