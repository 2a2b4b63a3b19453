"""Where the label of a sample is, what a class label may be, and which class it is."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch

from dreamda_aug.arguments import shown

# Labels without names are numbers of classes: a larger one is an identifier of another kind.
MAX_CLASSES = 1_000_000
# What `find_labels` returns where there is none; None in a label's place is a wrong label.
NO_LABEL = object()
_LABEL_KEYS = ("label", "labels", "target", "class", "fine_label")
# What a folder's name has in the place of a space, or of a sign that it cannot have.
_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_\-/\\:|](?=[^\W_])")
# All that UTF-8 has no bytes for.
SURROGATES = re.compile("[\ud800-\udfff]")


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
    many = isinstance(labels, torch.Tensor | np.ndarray) and labels.ndim > 0 or (
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
        is_array = isinstance(label, torch.Tensor | np.ndarray) and label.ndim
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
) -> torch.Tensor:
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
