"""Models of a user's own images: LoRA weights for a pretrained one, or a new one from scratch."""

from dreamda_aug.adaptation.adapting import Adaptation, AdaptationSettings, adapt
from dreamda_aug.adaptation.from_scratch import TrainedModel, train

__all__ = ["Adaptation", "AdaptationSettings", "TrainedModel", "adapt", "train"]
