"""Where the labels, or the file names, of a sample are."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import PIL.Image
import torch


def find_labels(
    sample: Any, labels_getter: Callable[[Any], Any] | Literal["default"] | None
) -> Any:
    """The label of a sample, or the labels of a batch.

    Args:
        sample: what a transform is called with.
        labels_getter: as in `DreamDAugment`.

    Raises:
        ValueError: there is none.
    """
    if labels_getter is None:
        raise ValueError(
            "labels_getter=None, but this model is conditioned on the class of each image; give "
            "a labels_getter, or a prompt without {class_name}."
        )
    if callable(labels_getter):
        return labels_getter(sample)
    if isinstance(sample, Mapping):
        for key, value in sample.items():
            if isinstance(key, str) and "label" in key.lower():
                return value
    elif isinstance(sample, Sequence) and len(sample) > 1:
        return sample[1]
    raise ValueError(
        "found no label in the sample, and this model is conditioned on the class of each "
        "image. The transform= of a dataset sees the image alone: wrap the dataset in "
        "AugmentedDataset instead, or pass (image, label), a dict with a 'label', or a "
        "labels_getter."
    )


def find_file_names(
    sample: Any, labels_getter: Callable[[Any], Any] | Literal["default"] | None
) -> Any:
    """The file name of a sample, or those of a batch, which captions are found by.

    None where the sample does not say.
    """
    if callable(labels_getter):
        return labels_getter(sample)
    return sample.get("file_name") if isinstance(sample, Mapping) else None


def label_of(labels: Any, row: int, image: Any) -> Any:
    """The label of one image of a batch, or of a single image."""
    if isinstance(labels, torch.Tensor | np.ndarray):
        floats = (labels.is_floating_point() if isinstance(labels, torch.Tensor)
                  else labels.dtype.kind == "f")
        if floats or math.prod(labels.shape[1:]) != 1:
            raise ValueError(
                f"labels must be class indices, got {labels.dtype} of shape "
                f"{tuple(labels.shape)}; put DreamDAugment before MixUp and CutMix."
            )
        labels = labels.reshape(labels.shape[:1]).tolist()
    if isinstance(image, PIL.Image.Image) or image.ndim < 4 or not isinstance(labels, Sequence):
        return labels
    return labels if isinstance(labels, str) else labels[row]


def plain_label(label: Any) -> Any:
    """A label without its wrapping: 3 for ``[3]``, a 0-d or one-element array, a numpy integer.

    MedMNIST, for one, gives each label as an array of one element. Anything else stays as it is.
    """
    if hasattr(label, "tolist"):  # tensors, and numpy's arrays and scalars
        label = label.tolist()
    if isinstance(label, list | tuple) and len(label) == 1:
        return plain_label(label[0])
    return label


# What a folder's name has in the place of a space, or of a sign that it cannot have.
_BETWEEN_WORDS = re.compile(r"(?<=[^\W_])[\s_\-/\\:|](?=[^\W_])")


def plain_name(name: str) -> str:
    """A class name without what does not matter: case, and which sign stands between two words.

    So the folder ``t-shirt_top`` is the class "T-shirt/top". Other signs, as in "C++", stay.
    """
    return _BETWEEN_WORDS.sub(" ", name.strip().casefold())
