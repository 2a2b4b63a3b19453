"""Datasets without their image transforms, which run after generation instead."""

import copy
from collections.abc import Callable
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset

from dreamda_aug.inputs.dataset_fields import as_sized, find_targets

# What a dataset does to an image and its label.
Transform = Callable[[Any, Any], tuple[Any, Any]]


class Untransformed:
    """A dataset without its image transform, which `transform` runs when it is wanted.

    Raises:
        TypeError: the dataset is not map-style.
    """

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset
        self._sized = as_sized(dataset)
        self._bare, self._transform_of = _split(dataset)

    def __reduce__(self) -> tuple[type["Untransformed"], tuple[Dataset[Any]]]:
        return Untransformed, (self.dataset,)  # split again: closures cannot be pickled

    def __len__(self) -> int:
        return len(self._sized)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        sample = self._bare[index]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(
                f"dataset must give (image, label), sample {index} is a {type(sample).__name__}"
                f"{f' of length {len(sample)}' if isinstance(sample, tuple | list) else ''}."
            )
        image, label = sample
        return image, label

    def transform(self, index: int, image: Any, label: Any) -> tuple[Any, Any]:
        return self._transform_of(index)(image, label)


def labels_of(raw: Untransformed) -> list[Any]:
    """Labels of a dataset as it keeps them; items are read only where it keeps no list."""
    try:
        return find_targets(raw.dataset)
    except AttributeError:
        return [raw[i][1] for i in range(len(raw))]


def _split(dataset: Dataset[Any]) -> tuple[Dataset[Any], Callable[[int], Transform]]:
    """A copy without image transforms, and for each index the transform that was taken off."""
    if isinstance(dataset, Subset):
        bare, transform_of = _split(dataset.dataset)
        indices = dataset.indices
        return Subset(bare, indices), lambda index: transform_of(indices[index])
    if isinstance(dataset, ConcatDataset):
        parts, ends = [_split(part) for part in dataset.datasets], dataset.cumulative_sizes

        def transform_of(index: int) -> Transform:
            start = 0
            for end, (_, inner) in zip(ends, parts, strict=True):
                if index < end:
                    return inner(index - start)
                start = end
            raise IndexError(index)

        return ConcatDataset([bare for bare, _ in parts]), transform_of
    if not hasattr(dataset, "transform") and not hasattr(dataset, "transforms"):
        return dataset, lambda index: _keep
    bare = copy.copy(dataset)
    joint = getattr(dataset, "transforms", None)
    image_only = getattr(dataset, "transform", None)
    if hasattr(bare, "transform"):
        bare.transform = None
    if hasattr(bare, "transforms"):
        # torchvision wraps transform and target_transform into transforms; labels keep theirs
        target = getattr(dataset, "target_transform", None)
        bare.transforms = _TargetOnly(target) if target else None
    if image_only is not None:
        return bare, lambda index: lambda image, label: (image_only(image), label)
    if joint is not None and getattr(joint, "transform", joint) is not None:
        return bare, lambda index: joint
    return bare, lambda index: _keep


class _TargetOnly:
    """What is left of torchvision's ``transforms`` without the image's part."""

    def __init__(self, target_transform: Callable[[Any], Any]):
        self.transform = None
        self.target_transform = target_transform

    def __call__(self, image: Any, label: Any) -> tuple[Any, Any]:
        return image, self.target_transform(label)


def _keep(image: Any, label: Any) -> tuple[Any, Any]:
    return image, label
