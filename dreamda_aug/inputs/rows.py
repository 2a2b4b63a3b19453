"""Samples of a dataset: where image and label are, and what makes them no classification sample."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor
from torchvision import tv_tensors

from dreamda_aug.inputs.labels import class_number, label_key
from dreamda_aug.inputs.pixels import Pixels, channels_of, read_pixels

_IMAGE_KEYS = ("image", "img", "pixel_values", "picture")
_TYPES: dict[type, str] = {
    tv_tensors.BoundingBoxes: "bounding boxes", tv_tensors.Mask: "masks",
    tv_tensors.KeyPoints: "key points", tv_tensors.Video: "videos"}
_KEYS = {
    **dict.fromkeys(("boxes", "bbox", "bboxes", "bndbox", "bounding_boxes"), "bounding boxes"),
    **dict.fromkeys(("mask", "masks", "segmentation", "segmentation_mask", "polygon"), "masks"),
    **dict.fromkeys(("keypoints", "landmarks"), "key points")}


@dataclass(frozen=True)
class SeedImage:
    """One image of a dataset, with its label.

    Attributes:
        image: in its own type, before the dataset's own transform.
        label: as the dataset gives it, or None.
        put: from another image and label to a sample as the dataset gives it.
    """

    image: Any
    label: Any
    put: Callable[[Any, Any], Any]

    @cached_property
    def pixels(self) -> Pixels:
        """Its pixels, read at first use; raises as `read_pixels` does."""
        return read_pixels(self.image)

    def put_back(self, image: Any) -> Any:
        """The dataset's whole sample with another image, after its own transforms."""
        return self.put(image, self.label)


def read_row(sample: Any, index: int = 0, keys: tuple[Any, Any] | None = None) -> SeedImage:
    """Find image and label in a sample.

    Args:
        sample: ``(image, label)``; with more behind them, such as an index; or a dict with one
            image and a label, as Hugging Face's datasets have it.
        index: its number, for messages.
        keys: of image and label in a dict, or None to find them.

    Raises:
        TypeError: it holds annotations, see `refuse_annotations`.
        ValueError: it is something else.
    """
    refuse_annotations(sample)
    if isinstance(sample, Mapping):
        image_key, label_at = keys or _find_keys(sample, index)
        return SeedImage(sample[image_key], sample[label_at],
                         lambda image, label: {**sample, image_key: image, label_at: label})
    if not isinstance(sample, tuple | list) or len(sample) < 2:
        raise ValueError(
            f"dataset must give (image, label), sample {index} is a {type(sample).__name__}"
            f"{f' of length {len(sample)}' if isinstance(sample, tuple | list) else ''}.")
    image, label, *rest = sample
    if isinstance(label, PIL.Image.Image):
        class_number(label)
    return SeedImage(image, label, lambda image, label: (image, label, *rest))


def _find_keys(sample: Mapping[Any, Any], index: int) -> tuple[Any, Any]:
    """Keys of image and label in a dict."""
    images = [key for key, value in sample.items() if is_image(value)]
    named = [key for key in _IMAGE_KEYS if key in images] or images
    label = label_key(key for key in sample if key not in images)
    paths = [key for key in _IMAGE_KEYS if isinstance(sample.get(key), str | os.PathLike)]
    if paths and not images:
        raise ValueError(
            f"dataset must give images, sample {index} has the path {sample[paths[0]]!r} under "
            f"{paths[0]!r}: its transform loads the file, as MONAI's LoadImaged does, and runs "
            "after generation. Load images in the dataset itself; or put DreamDAugment into "
            "that transform, behind what loads the file.")
    if len(named) != 1 or label is None:
        raise ValueError(
            f"dataset must give dicts with one 'image' and a 'label', sample {index} has "
            f"{', '.join(f'{key!r} ({type(each).__name__})' for key, each in sample.items())}.")
    return named[0], label


def is_image(value: Any, *, surely: bool = False) -> bool:
    """Whether a value can be an image.

    A PIL image is one; so is a tensor or an array of 2 or 3 dimensions and more than one number.

    Args:
        value: of any type.
        surely: leave out arrays that may as well be labels (one-hot), boxes or something else. An
            array is surely an image as (H, W) of integers of 8 or 16 bits, and as (H, W, C) of
            integers or floats with C = 1 or 3, for uint8 also 4.
    """
    if isinstance(value, PIL.Image.Image):
        return True
    if not isinstance(value, Tensor | np.ndarray) or value.ndim not in (2, 3) or is_single(value):
        return False
    if isinstance(value, Tensor) or not surely:
        return True
    if value.ndim == 2:
        return value.dtype.kind in "iu" and value.dtype.itemsize <= 2
    return value.dtype.kind in "iuf" and value.shape[2] in channels_of(value)


def is_single(value: Tensor | np.ndarray[Any, Any]) -> bool:
    """Whether a tensor or array holds one number, as a label may."""
    return int(np.prod(value.shape)) == 1


def refuse_annotations(sample: Any) -> None:
    """Refuse boxes, masks, key points and videos, in whatever form a sample holds them.

    They are found by torchvision's types, by the names of their keys, and by their shapes: a
    plane beside an image of its height and width is a mask, a table of four columns holds boxes.

    Raises:
        TypeError: there are any; the message names their kind.
    """
    values = list(_walk(sample))
    kinds = [kind for key, value in values if (kind := _kind(key, value))]
    is_batch = any(isinstance(value, Tensor) and value.ndim == 4 for _, value in values)
    planes = [(value, plane) for _, value in values if (plane := _plane(value, is_batch))]
    sizes = [size for _, (_, size) in planes]
    for value, (channels, size) in planes if len(planes) > 1 else ():
        if channels not in (3, 4) and sizes.count(size) > 1:
            kinds.append("masks")
        elif not isinstance(value, PIL.Image.Image) and value.ndim == 2 and size[1] == 4:
            kinds.append("bounding boxes")
    if kinds:
        raise TypeError(
            f"samples with {kinds[0]} cannot be augmented: a synthetic image keeps its class, not "
            f"the place of things, so the {kinds[0]} of the seed image would be wrong. Use samples "
            "of an image and a class label.")


def _walk(sample: Any, key: Any = None) -> Iterator[tuple[Any, Any]]:
    """Each value of a nested sample, with the key that it stands under."""
    yield key, sample
    if isinstance(sample, Mapping):
        for name, value in sample.items():
            yield from _walk(value, name)
    elif isinstance(sample, tuple | list):
        for value in sample:
            if not isinstance(value, int | float | str):
                yield from _walk(value)


def _kind(key: Any, value: Any) -> str | None:
    """Which kind of annotation a value is by its type or its key."""
    of_key = isinstance(key, str) and not isinstance(value, int | float | str | None)
    return _TYPES.get(type(value)) or (_KEYS.get(key.lower()) if of_key else None)


def _plane(value: Any, is_batch: bool) -> tuple[int, tuple[int, ...]] | None:
    """Channels and (height, width) of what may be an image or a mask."""
    if isinstance(value, PIL.Image.Image):
        return len(value.getbands()), (value.height, value.width)
    if is_batch and isinstance(value, Tensor):
        channels = {3: 1, 4: value.shape[1]} if value.ndim in (3, 4) else {}
        return (channels[value.ndim], tuple(value.shape[-2:])) if channels else None
    if not is_image(value):
        return None
    shape = tuple(value.shape)
    if value.ndim == 2:
        return 1, shape
    return (shape[0], shape[1:]) if isinstance(value, Tensor) else (shape[2], shape[:2])
