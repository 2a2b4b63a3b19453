"""Datasets without their image transforms, which wait until after generation."""

import copy
from collections.abc import Callable
from typing import Any

from torch.utils.data import ConcatDataset, Dataset, Subset


class Untransformed:
    """A dataset without its image transform, which waits in `transform`."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self._bare, self._transform_of = _split(dataset)

    def __reduce__(self):
        return Untransformed, (self.dataset,)  # split again: closures cannot be pickled

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        sample = self._bare[index]
        if not isinstance(sample, tuple | list) or len(sample) != 2:
            raise ValueError(
                f"dataset must give (image, label), sample {index} is a {type(sample).__name__}"
                f"{f' of length {len(sample)}' if isinstance(sample, tuple | list) else ''}."
            )
        return tuple(sample)

    def transform(self, index: int, image: Any, label: Any) -> tuple[Any, Any]:
        return self._transform_of(index)(image, label)


def _split(dataset: Dataset) -> tuple[Dataset, Callable[[int], Callable]]:
    """A copy without image transforms, and for each index the transform that was taken off."""
    if isinstance(dataset, Subset):
        bare, transform_of = _split(dataset.dataset)
        indices = dataset.indices
        return Subset(bare, indices), lambda index: transform_of(indices[index])
    if isinstance(dataset, ConcatDataset):
        parts = [_split(part) for part in dataset.datasets]

        def transform_of(index: int) -> Callable:
            for part, (_, inner) in zip(dataset.datasets, parts, strict=True):
                if index < len(part):
                    return inner(index)
                index -= len(part)
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
