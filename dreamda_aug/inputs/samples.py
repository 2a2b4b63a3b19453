"""Samples of a dataset: image and label, which class a label is, and annotations, refused."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision import tv_tensors

from dreamda_aug.arguments import shown
from dreamda_aug.inputs.pixels import Pixels, channels_of, read_pixels

# Labels without names are numbers of classes: a larger one is an identifier of another kind.
MAX_CLASSES = 1_000_000
# What `find_labels` returns where there is none; None in a label's place is a wrong label.
NO_LABEL = object()
_LABEL_KEYS = ("label", "labels", "target", "class", "fine_label")
# What a folder's name has in the place of a space, or of a sign that it cannot have.
_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_\-/\\:|](?=[^\W_])")
# All that UTF-8 has no bytes for.
SURROGATES = re.compile("[\ud800-\udfff]")
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


def read_sample(sample: Any, index: int = 0, keys: tuple[Any, Any] | None = None) -> SeedImage:
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


def label_key(names: Iterable[Any]) -> Any | None:
    """The key that a sample's label stands under, or None if there is none."""
    names = list(names)
    like_label = (name for name in names if isinstance(name, str) and "label" in name.lower())
    return next((name for name in _LABEL_KEYS if name in names), None) or next(like_label, None)


def find_labels(
    sample: Any, labels_getter: Callable[[Any], Any] | Literal["default"] | None
) -> Any:
    """The label of a sample, or the labels of a batch, or `NO_LABEL`.

    Args:
        sample: what a transform is called with.
        labels_getter: as in `DreamDAugment`.
    """
    if callable(labels_getter):
        return labels_getter(sample)
    if labels_getter is None:
        return NO_LABEL
    if isinstance(sample, Mapping):
        key = label_key(sample)
        return NO_LABEL if key is None else sample[key]
    return sample[1] if isinstance(sample, Sequence) and len(sample) > 1 else NO_LABEL


def label_of(labels: Any, row: int, image: Any) -> Any:
    """The label of one image of a batch, or of a single image."""
    is_batch = not isinstance(image, PIL.Image.Image) and image.ndim == 4
    many = isinstance(labels, Tensor | np.ndarray) and labels.ndim > 0 or (
        isinstance(labels, Sequence) and not isinstance(labels, str))
    return labels[row] if is_batch and many else labels


def plain_label(label: Any) -> Any:
    """A label without its wrapping: 3 for ``[3]``, a 0-d or one-element array, a numpy integer.

    MedMNIST, for one, gives each label as an array of one element. Anything else stays as it is.
    """
    if hasattr(label, "tolist"):  # tensors, and numpy's arrays and scalars
        label = label.tolist()
    if isinstance(label, list | tuple) and len(label) == 1:
        return plain_label(label[0])
    return label


def class_number(label: Any, classes: int | None = None) -> int:
    """The number of the class that a label stands for.

    Args:
        label: an integer, numpy's or torch's too, or one by itself in an array, tensor or list.
        classes: how many classes there are, or None where that is not known.

    Raises:
        ValueError: it is anything else, such as a float, a one-hot row, a mask or None; or it is
            not one of the classes.
    """
    number = plain_label(label)
    if isinstance(number, bool) or not isinstance(number, int):
        is_array = isinstance(label, Tensor | np.ndarray) and label.ndim
        raise ValueError(
            "a label must be the number of one class (an integer, or a tensor, array or list of "
            "one integer), got "
            f"{f'{label.dtype} of shape {tuple(label.shape)}' if is_array else shown(number)}.")
    most = MAX_CLASSES if classes is None else classes
    if not 0 <= number < most:
        raise ValueError(f"a label must be one of the {most:,} classes, 0 to {most - 1:,}, got "
                         f"{shown(number)}.")
    return number


def check_integers(
    name: str, values: Any, count: int, low: int | None = None, high: int | None = None
) -> Tensor:
    """Labels or indices as a (count,) int64 tensor.

    Args:
        name: of the argument, for the error.
        values: integers in [low, high]; None for ``low`` allows any.
        count: how many there must be.

    Raises:
        ValueError: they are of another type, shape or range.
    """
    values = torch.as_tensor(values)
    if (values.shape != (count,) or values.is_floating_point() or values.is_complex()
            or values.dtype == torch.bool):
        raise ValueError(
            f"{name} must be integers of shape ({count},), got {values.dtype} of shape "
            f"{tuple(values.shape)}; scores become labels with argmax(1).")
    if low is not None and high is not None and count and (
            values.min() < low or values.max() > high):
        raise ValueError(f"{name} must lie in [{low}, {high}], got {values.min().item()} to "
                         f"{values.max().item()}.")
    return values.long()


def number_labels(
    labels: Sequence[Any], names: Sequence[str] | None
) -> tuple[list[int], list[str] | None]:
    """The class number of each label, and the names of the classes.

    Args:
        labels: numbers of classes, or names of them.
        names: of the classes, in label order, or None to take names among the labels, sorted.

    Returns:
        Both; None for names where classes are numbers alone.

    Raises:
        ValueError: a label is no class, or none of these; or a name is not UTF-8.
    """
    found = [text if isinstance(text := plain_label(label), str) else label for label in labels]
    if names is None and any(isinstance(each, str) for each in found):
        found = [each if isinstance(each, str) else str(class_number(each)) for each in found]
        names = sorted(set(found))
    if names is None:
        return [class_number(each) for each in found], None
    check_names(names)
    position = {name: number for number, name in enumerate(names)}
    numbers = []
    for each in found:
        if isinstance(each, str) and each not in position:
            raise ValueError(f"a label must be one of the class names {shown(list(names))}, got "
                             f"{shown(each)}.")
        numbers.append(position[each] if isinstance(each, str) else class_number(each, len(names)))
    return numbers, list(names)


def check_names(names: Iterable[str]) -> None:
    """Refuse names that no record can hold, before anything is made, with a ValueError."""
    for name in names:
        if SURROGATES.search(name):
            raise ValueError(
                f"the name {name!r} is not UTF-8 and could not be written down; rename it.")


def match_class(name: str, classes: Sequence[str]) -> int | None:
    """The number of the one class that a name means, or None.

    If no class is called so, case does not matter, nor which sign stands between two words: the
    folder ``t-shirt_top`` is the class "T-shirt/top". Other signs, as in "C++", do.
    """
    if name in classes:
        return classes.index(name)
    plain, *known = (_BETWEEN_WORDS.sub(" ", each.strip().casefold()) for each in (name, *classes))
    return known.index(plain) if known.count(plain) == 1 else None
