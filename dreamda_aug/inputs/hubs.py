"""Datasets by name: torchvision's, and Hugging Face's."""

import inspect
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset


def open_torchvision(
    name: str, split: str, root: str | Path | None, download: bool
) -> Dataset[Any]:
    from torchvision import datasets

    cls = getattr(datasets, name, None)
    if name not in datasets.__all__ or not isinstance(cls, type):
        raise ValueError(f"torchvision has no dataset {name!r}; see torchvision.datasets.")
    takes = inspect.signature(cls).parameters
    arguments: dict[str, Any] = {}
    if "root" in takes:
        arguments["root"] = str(root or "data")
    if "split" in takes:
        arguments["split"] = split
    elif "train" in takes:
        if split not in ("train", "test"):
            raise ValueError(f"split of {name} must be 'train' or 'test', got {split!r}.")
        arguments["train"] = split == "train"
    if download and "download" in takes:
        arguments["download"] = True
    try:
        dataset: Dataset[Any] = cls(**arguments)
    except (RuntimeError, OSError, TypeError) as error:
        raise ValueError(
            f"torchvision's {name} could not be opened in {arguments.get('root')}: {error} "
            "(download=True fetches it where torchvision can.)"
        ) from error
    try:
        len(dataset)  # type: ignore[arg-type]  # not all have one
    except (TypeError, NotImplementedError) as error:
        raise ValueError(f"torchvision's {name} holds no images of its own.") from error
    return dataset


def open_hugging_face(name: str, split: str, root: str | Path | None) -> "HuggingFaceImages":
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "Hugging Face datasets need an extra package: pip install 'dreamda_aug[hub]'."
        ) from error
    if not name.strip():
        raise ValueError("hf: must be followed by a dataset's name, such as hf:user/name.")
    try:
        table = datasets.load_dataset(name, split=split, cache_dir=root and str(root))
    except (OSError, ValueError, RuntimeError, LookupError) as error:
        raise ValueError(f"Hugging Face dataset {name!r} could not be opened: {error}") from error
    return HuggingFaceImages(table)


class HuggingFaceImages(Dataset[tuple[Any, int]]):
    """A Hugging Face image classification table as a dataset of ``(PIL image, label)``.

    Args:
        table: a ``datasets.Dataset`` with one image column and one class-label column.

    Raises:
        ValueError: a column is missing.
    """

    def __init__(self, table: Any):
        kinds = {name: type(feature).__name__ for name, feature in table.features.items()}
        images = [name for name, kind in kinds.items() if kind == "Image"]
        labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
        if not images or not labels:
            raise ValueError(
                f"a table with an Image and a ClassLabel column was expected, found {kinds}."
            )
        self.table, self._image, self._label = table, images[0], labels[0]
        self.classes = list(table.features[self._label].names)
        self.targets = list(table[self._label])

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        row = self.table[index]
        return row[self._image], row[self._label]
