"""What datasets of torchvision's kind keep beside their samples: classes, labels, file names."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import ConcatDataset, Dataset, Subset

from dreamda_aug.inputs.labels import label_key


@runtime_checkable
class SizedDataset(Protocol):
    """A map-style dataset: samples by index, and how many there are.

    torch's own `Dataset` does not promise a length; see `as_sized`.
    """

    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


@runtime_checkable
class Table(Protocol):
    """What is used of Hugging Face's ``datasets.Dataset``; samples are dicts."""

    @property
    def features(self) -> Mapping[str, Any]: ...

    @property
    def format(self) -> Mapping[str, Any]: ...

    def with_format(self, type: str | None, /) -> Any: ...

    def __getitem__(self, key: Any, /) -> Any: ...

    def __len__(self) -> int: ...


def as_sized(dataset: Dataset[Any]) -> SizedDataset:
    """The same dataset, checked to be map-style.

    Raises:
        TypeError: it has no length, or no samples by index.
    """
    if not isinstance(dataset, SizedDataset):
        raise TypeError(
            f"dataset must be map-style, with __getitem__ and __len__, got "
            f"{type(dataset).__name__}."
        )
    return dataset


def find_attribute(dataset: Dataset[Any], name: str) -> Any:
    """An attribute of a dataset, or of the one that it is a part of."""
    while not hasattr(dataset, name):
        if isinstance(dataset, ConcatDataset):
            dataset = dataset.datasets[0]
        elif hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        else:
            raise AttributeError(f"{type(dataset).__name__} has no {name}.")
    return getattr(dataset, name)


def find_classes(dataset: Dataset[Any]) -> list[str] | None:
    """Names of a dataset's classes, in label order; None where it keeps none.

    The first name counts where a class has several, as in torchvision's ``ImageNet``.
    """
    inner: Any = dataset
    while isinstance(inner, Subset):
        inner = inner.dataset
    if isinstance(inner, Table):
        names = getattr(inner.features.get(label_key(inner.features) or ""), "names", None)
        return None if names is None else list(names)
    try:
        classes = find_attribute(dataset, "classes")
    except AttributeError:
        return None
    if classes is None:
        return None
    return [str(name[0] if isinstance(name, tuple) else name) for name in classes]


def find_targets(dataset: Dataset[Any]) -> list[Any]:
    """Labels of a dataset, without its images; AttributeError where it keeps no list of them."""
    if isinstance(dataset, Subset):
        inner = find_targets(dataset.dataset)
        return [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [label for part in dataset.datasets for label in find_targets(part)]
    if isinstance(dataset, Table):
        key = label_key(dataset.features)
        if key is None:
            raise AttributeError(f"{type(dataset).__name__} has no column of labels.")
        return list(dataset.with_format(None)[key])
    for name in ("targets", "labels", "_labels"):
        if hasattr(dataset, name):
            labels = getattr(dataset, name)
            return labels.tolist() if hasattr(labels, "tolist") else list(labels)
    raise AttributeError(f"{type(dataset).__name__} has no targets.")


def find_names(dataset: Dataset[Any]) -> list[str] | None:
    """File names of a dataset's images, in torchvision's ``samples``; None where it keeps none.

    They are relative to the dataset's ``root``, unless that gives two files one name, as in a
    ``ConcatDataset`` of folders that are alike.
    """
    files = _find_files(dataset)
    if files is None:
        return None
    names = [os.path.relpath(path, root) if root else path for path, root in files]
    if len(set(names)) < len({path for path, _ in files}):
        names = [path for path, _ in files]
    return [name.replace(os.sep, "/") for name in names]


def _find_files(dataset: Dataset[Any]) -> list[tuple[str, str | None]] | None:
    """The same as pairs of a path and its dataset's root."""
    if isinstance(dataset, Subset):
        inner = _find_files(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        files: list[tuple[str, str | None]] = []
        for part in dataset.datasets:
            of_part = _find_files(part)
            if of_part is None:
                return None
            files += of_part
        return files
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, Sequence) or not samples or not all(
        isinstance(sample, tuple) and sample and isinstance(sample[0], str | Path)
        for sample in samples
    ):
        return None
    root = getattr(dataset, "root", None)
    return [(str(path), root) for path, *_ in samples]
