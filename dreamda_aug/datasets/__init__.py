"""Datasets of real and synthetic samples: made while training, or read back from a folder."""

from dreamda_aug.datasets.augmented import AugmentedDataset
from dreamda_aug.datasets.parts import Origin
from dreamda_aug.datasets.stored import StoredDataset

__all__ = ["AugmentedDataset", "Origin", "StoredDataset"]
