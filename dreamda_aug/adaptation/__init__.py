"""Adapt a diffusion model to a user's own images: LoRA, kept only where it helps."""

from dreamda_aug.adaptation.adapt import adapt
from dreamda_aug.adaptation.result import Adaptation
from dreamda_aug.adaptation.settings import AdaptationSettings

__all__ = ["Adaptation", "AdaptationSettings", "adapt"]
