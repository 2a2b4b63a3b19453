"""Samples of a dataset: where image and label are, and how another image takes its place."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from torch import Tensor

from dreamda_aug.inputs.images import channels_of

_IMAGE_KEYS = ("image", "img", "pixel_values", "picture")
_LABEL_KEYS = ("label", "labels", "target", "class", "fine_label")


class Row(NamedTuple):
    """One sample.

    Attributes:
        image: as the dataset gives it.
        label: as the dataset gives it.
        put: from another image and label to a sample of the same form.
    """

    image: Any
    label: Any
    put: Callable[[Any, Any], Any]


def read_row(sample: Any, index: int) -> Row:
    """Find image and label in a sample.

    Args:
        sample: ``(image, label)``; with more behind them, such as an index; or a dict with one
            image and a label, as Hugging Face's datasets have it.
        index: its number, for messages.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(sample, Mapping):
        return _read_mapping(sample, index)
    if not isinstance(sample, tuple | list) or len(sample) < 2:
        raise ValueError(
            f"dataset must give (image, label), sample {index} is a {type(sample).__name__}"
            f"{f' of length {len(sample)}' if isinstance(sample, tuple | list) else ''}."
        )
    image, label, *rest = sample
    if rest and not is_label(label):
        raise ValueError(
            f"dataset must give (image, label) or (image, label, ...) with a single label, sample "
            f"{index} has a {type(label).__name__} in second place."
        )
    return Row(image, label, lambda image, label: (image, label, *rest))


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
    if not isinstance(value, Tensor | np.ndarray) or value.ndim not in (2, 3) or is_label(value):
        return False
    if isinstance(value, Tensor) or not surely:
        return True
    if value.ndim == 2:
        return value.dtype.kind in "iu" and value.dtype.itemsize <= 2
    return value.dtype.kind in "iuf" and value.shape[2] in channels_of(value)


def is_label(value: Any) -> bool:
    """Whether a value can be the label of a single image."""
    if isinstance(value, Tensor | np.ndarray):
        return int(np.prod(value.shape)) == 1
    return isinstance(value, int | float | str | np.generic)


def label_key(names: Mapping[Any, Any]) -> Any | None:
    """The key that a sample's label stands under; None: there is none."""
    for name in _LABEL_KEYS:
        if name in names:
            return name
    return next((name for name in names if isinstance(name, str) and "label" in name.lower()), None)


def _read_mapping(sample: Mapping[Any, Any], index: int) -> Row:
    images = [key for key, value in sample.items() if is_image(value)]
    named = [key for key in _IMAGE_KEYS if key in images] or images
    label = label_key({key: None for key in sample if key not in images})
    if not named or len(named) > 1 and named == images or label is None:
        raise ValueError(
            f"dataset must give dicts with one 'image' and a 'label', sample {index} has "
            f"{', '.join(f'{key!r} ({type(value).__name__})' for key, value in sample.items())}."
        )
    image_key = named[0]
    return Row(sample[image_key], sample[label],
               lambda image, new: {**sample, image_key: image, label: new})
