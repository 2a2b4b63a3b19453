"""Map-style datasets: samples without their image transforms, labels, names of classes, files."""

import copy
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import ConcatDataset, Dataset, Subset

from dreamda_aug.inputs.samples import (
    SeedImage,
    is_image,
    label_key,
    plain_label,
    read_sample,
    refuse_annotations,
)

# From an image with its label to what a transform makes of them.
Step = Callable[[SeedImage], Any]


@runtime_checkable
class SizedDataset(Protocol):
    """A map-style dataset: samples by index, and how many there are."""

    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


@runtime_checkable
class Table(Protocol):
    """What is used of Hugging Face's ``datasets.Dataset``; samples are dicts."""

    features: Mapping[str, Any]
    format: Mapping[str, Any]

    def with_format(self, type: str | None, /) -> Any: ...


class DatasetReader:
    """Samples of a dataset without its image transform, which ``put`` of a sample runs.

    The transform is what a dataset calls as ``self.transform`` or ``self.transforms``, be it an
    attribute or a method, of torchvision's or albumentations' kind; or what was given to
    ``with_transform`` or ``set_transform`` of a Hugging Face dataset. It is run where the dataset
    itself has called it, and in the way that it has. Datasets inside a ``Subset``, a
    ``ConcatDataset`` or an attribute of the given one are treated alike; all stay as they are.

    Args:
        dataset: of samples that `read_sample` takes.
        has_labels: False allows samples that are images alone.

    Attributes:
        may_vary: whether an image may differ each time it is read.

    Raises:
        TypeError: the dataset is not map-style, or its transform cannot be taken off.
    """

    def __init__(self, dataset: Any, has_labels: bool = True):
        self.dataset, self.has_labels = as_sized(dataset), has_labels
        self._leaves = [leaf for leaf, _ in _places(dataset)]
        self._steps: list[Step] = []
        self._of_table: dict[int, Step] = {}
        self._is_stripped = False
        self._bare = self._strip(dataset, nested=False)
        # by id of a leaf: its steps, if all of its samples go through the same ones
        self._usual: dict[int, list[Step]] = {}
        parts = _parts(dataset)
        self._is_regular = not self._is_stripped or all(map(_is_plain, parts))
        self.may_vary = not all(_is_plain(part) or isinstance(part, Table) for part in parts)

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetReader, (self.dataset, self.has_labels)  # closures cannot be pickled

    def __len__(self) -> int:
        return len(self._leaves)

    def read(self, index: int) -> SeedImage:
        """The sample there; raises as `fetch` and `sample` do."""
        return self.sample(index, self.fetch(index))

    def fetch(self, index: int) -> Any:
        """What the dataset gives there; raises what `UNREADABLE` lists if it is broken."""
        self._steps.clear()
        return self._bare[index]

    def sample(self, index: int, found: Any) -> SeedImage:
        """Image and label in what `fetch` has just returned; raises as `read_sample` does."""
        leaf = self._leaves[index]
        steps = [*filter(None, [self._of_table.get(id(leaf))]), *self._steps]
        if self.has_labels or isinstance(found, tuple | list | Mapping):
            seed = read_sample(found, index, _columns(leaf))
        else:
            seed = SeedImage(found, None, lambda image, label: image)
        if isinstance(found, tuple | list) and len(found) == 2 and self._is_regular:
            self._usual[id(leaf)] = steps
        return replace(seed, put=lambda image, label: _applied(
            steps, SeedImage(image, label, seed.put)))

    def put_back(self, index: int, image: Any, label: Any) -> Any:
        """What the dataset makes of another image; its own is read only where that is necessary."""
        steps = self._usual.get(id(self._leaves[index]))
        if steps is None:
            return self.read(index).put_back(image)
        return _applied(steps, SeedImage(image, label, lambda image, label: (image, label)))

    def labels(self, indices: Sequence[int]) -> list[Any]:
        """Labels as the samples have them, which are read if the dataset keeps no list of them."""
        kept = find_targets(self.dataset)
        if kept is None:
            return [self.read(index).label for index in indices]
        changes = {id(leaf): _target_transform(leaf) for leaf in self._leaves}
        return [change(kept[i]) if (change := changes[id(self._leaves[i])]) else kept[i]
                for i in indices]

    def changes_labels(self, classes: int) -> bool:
        """Whether a ``target_transform`` makes another label of any of the classes."""
        changes = filter(None, map(_target_transform, _parts(self.dataset)))
        try:
            return any(plain_label(change(label)) != label
                       for change in changes for label in range(classes))
        except Exception:  # the user's own function, for labels of another kind
            return True

    def _strip(self, dataset: Any, nested: bool) -> Any:
        """The dataset, or a copy whose transforms change nothing and note how they are called."""
        if isinstance(dataset, Table):
            return dataset if nested else self._strip_table(dataset)
        changed: dict[str, Any] = {}
        for name in ("transform", "transforms"):
            if callable(found := getattr(dataset, name, None)):
                # torchvision's pair of both transforms, of which labels keep theirs
                is_pair = hasattr(found, "transform") and hasattr(found, "target_transform")
                changed[name] = (self._strip if is_pair else self._watched)(found, nested)
        if isinstance(dataset, ConcatDataset):
            changed["datasets"] = [self._strip(part, nested) for part in dataset.datasets]
        for name, inner in vars(dataset).items() if hasattr(dataset, "__dict__") else ():
            if isinstance(inner, Dataset | Table) or name == "dataset":
                bare = self._strip(inner, nested or not isinstance(dataset, Subset))
                changed.update({name: bare} if bare is not inner else {})
        bare = copy.copy(dataset) if changed else dataset
        try:
            for name, value in changed.items():
                setattr(bare, name, value)
        except AttributeError as error:
            raise TypeError(
                f"dataset must let its {name} be set, and {type(dataset).__name__} does not "
                f"({error}): give the dataset without it, and AugmentedDataset(..., transform=...)."
            ) from error
        return bare

    def _strip_table(self, table: Table) -> Any:
        settings = table.format
        if settings["type"] is None:
            return table
        columns, transform = settings["columns"], settings["format_kwargs"].get("transform")
        if settings["type"] != "custom" or not callable(transform):
            raise TypeError(
                f"a Hugging Face dataset must have no format, or one made by with_transform, got "
                f"{settings['type']!r}; give dataset.with_format(None).")

        def step(seed: SeedImage) -> Any:
            sample = seed.put_back(seed.image)
            batch = transform({name: [sample[name]] for name in columns if name in sample})
            return {name: values[0] for name, values in batch.items()}

        self._of_table[id(table)] = step
        return table.with_format(None)

    def _watched(self, transform: Callable[..., Any], nested: bool) -> Callable[..., Any]:
        self._is_stripped = True

        def call(*given: Any, **named: Any) -> Any:
            refuse_annotations(named)
            images = [key for key, value in named.items() if is_image(value)]
            count = 0 if named else len(given)
            if count == 1 and isinstance(given[0], Mapping):
                if nested:  # what the outer dataset makes of its result is not known
                    return transform(given[0])
                self._steps.append(lambda seed: transform(seed.put_back(seed.image)))
            elif count == 1:
                self._steps.append(lambda seed: seed.put_back(transform(seed.image)))
            elif count == 2:
                self._steps.append(lambda seed: seed.put(*transform(seed.image, seed.label)))
            elif not given and len(images) == 1:
                key, = images
                self._steps.append(
                    lambda seed: seed.put_back(transform(**{**named, key: seed.image})[key]))
            else:
                raise TypeError(
                    "a dataset must call its transform with the image, with image and label, or as "
                    f"transform(image=image), got {len(given)} arguments and {sorted(named)}.")
            return named or (given if count == 2 else given[0])

        return call


def _applied(steps: Sequence[Step], seed: SeedImage) -> Any:
    """The sample that a dataset's transforms make of an image and its label."""
    if not steps:
        return seed.put_back(seed.image)
    sample = steps[0](seed)
    for step in steps[1:]:
        sample = step(read_sample(sample))
    return sample


def _target_transform(dataset: Any) -> Callable[[Any], Any] | None:
    own = getattr(dataset, "target_transform", None)
    return own or getattr(getattr(dataset, "transforms", None), "target_transform", None)


def as_sized(dataset: Any) -> SizedDataset:
    """The same dataset; raises TypeError if it has no length, or no samples by index."""
    if not isinstance(dataset, SizedDataset) or isinstance(dataset, str):
        raise TypeError("dataset must be map-style, with __getitem__ and __len__, got "
                        f"{type(dataset).__name__}.")
    return dataset


def _each(dataset: Any, of_leaf: Callable[[Any], list[Any] | None]) -> list[Any] | None:
    """Values of all samples; ``of_leaf`` lists those of a dataset below all others, or is None."""
    if isinstance(dataset, Subset):
        inner = _each(dataset.dataset, of_leaf)
        return None if inner is None else [inner[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_each(part, of_leaf) for part in dataset.datasets]
        return None if None in parts else list(chain.from_iterable(part or () for part in parts))
    return of_leaf(dataset)


def _places(dataset: Any) -> list[tuple[Any, int]]:
    """For each sample, the dataset below all others that holds it, and its number there."""
    return _each(dataset, lambda leaf: [(leaf, i) for i in range(len(as_sized(leaf)))]) or []


def occurrences(dataset: Any) -> list[int]:
    """For each sample, how often the same one came before it, as ``Subset(data, [0, 0])`` has it.

    Nothing is read: equal images at different places of a dataset count as different ones.
    """
    seen: Counter[tuple[int, int]] = Counter()
    found = []
    for leaf, index in _places(dataset):
        found.append(seen[id(leaf), index])
        seen[id(leaf), index] += 1
    return found


def find_classes(dataset: Any) -> list[str] | None:
    """Names of a dataset's classes, in label order, or None if it keeps none.

    The first name counts where a class has several, as in torchvision's ``ImageNet``.

    Raises:
        ValueError: parts of a ``ConcatDataset`` name their classes differently.
    """
    if isinstance(dataset, ConcatDataset):
        found = [names for names in map(find_classes, dataset.datasets) if names is not None]
        longest = max(found, key=len, default=[])
        for names in found:
            if names != longest[: len(names)]:
                raise ValueError(
                    f"the parts of the ConcatDataset name their classes differently, {names} and "
                    f"{longest}, so that a label has two meanings; give them the same classes, or "
                    "class_names.")
        return longest if found else None
    if keys := _columns(dataset):
        classes = getattr(dataset.features[keys[1]], "names", None)
    else:
        classes = getattr(dataset, "classes", None)
        if classes is None and hasattr(dataset, "dataset"):
            return find_classes(dataset.dataset)
    return None if classes is None else [
        str(name[0] if isinstance(name, tuple) else name) for name in classes]


def find_targets(dataset: Any) -> list[Any] | None:
    """Labels of a dataset, without its images, or None if it keeps no list of them."""
    return _each(dataset, _targets)


def _targets(leaf: Any) -> list[Any] | None:
    if keys := _columns(leaf):
        return list(leaf.with_format(None)[keys[1]])
    for name in ("targets", "labels", "_labels"):
        labels = getattr(leaf, name, None)
        if labels is not None and len(labels) == len(leaf):
            return labels.tolist() if hasattr(labels, "tolist") else list(labels)
    return None


def find_names(dataset: Any) -> list[str] | None:
    """File names of a dataset's images, in torchvision's ``samples``, or None if it keeps none.

    They are relative to the dataset's ``root``, unless that gives two files one name, as in a
    ``ConcatDataset`` of folders that are alike.
    """
    files = _each(dataset, _files)
    if files is None:
        return None
    names = [os.path.relpath(path, root) if root else path for path, root in files]
    if len(set(names)) < len({path for path, _ in files}):
        names = [path for path, _ in files]
    return [name.replace(os.sep, "/") for name in names]


def _files(leaf: Any) -> list[tuple[str, str | None]] | None:
    """Path and root of each file."""
    samples = getattr(leaf, "samples", None)
    if not isinstance(samples, Sequence) or not samples or not all(
            isinstance(each, tuple) and each and isinstance(each[0], str | Path)
            for each in samples):
        return None
    return [(str(path), getattr(leaf, "root", None)) for path, *_ in samples]


def _columns(dataset: Any) -> tuple[str, str] | None:
    """Columns of image and label of a Hugging Face dataset, or None to find them in a sample."""
    if not isinstance(dataset, Table):
        return None
    kinds = {name: type(feature).__name__ for name, feature in dataset.features.items()}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    classes = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    label = label_key(classes) or next(iter(classes), None) or label_key(kinds)
    return (images[0], label) if len(images) == 1 and label is not None else None


def _parts(dataset: Any) -> list[Any]:
    """The dataset, and all those that its subsets and concatenations are made of."""
    inner = (dataset.datasets if isinstance(dataset, ConcatDataset)
             else [dataset.dataset] if isinstance(dataset, Subset) else [])
    return [dataset, *(part for each in inner for part in _parts(each))]


def _is_plain(dataset: Any) -> bool:
    """Whether a dataset transforms all of its samples in the same way, as torchvision's do."""
    return type(dataset) in (Subset, ConcatDataset) or (
        type(dataset).__module__.startswith("torchvision."))
