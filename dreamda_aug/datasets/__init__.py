"""Datasets of real and synthetic samples: made while training, or read back from a folder."""

from dreamda_aug.datasets.ahead import Freshness
from dreamda_aug.datasets.augmented import AugmentedDataset
from dreamda_aug.datasets.origins import Origin
from dreamda_aug.datasets.stored import StoredDataset

__all__ = ["AugmentedDataset", "Freshness", "Origin", "StoredDataset"]
