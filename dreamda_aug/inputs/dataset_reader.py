"""Map-style datasets: samples without their image transforms, labels, names of classes, files."""

import copy
import os
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from torch.utils.data import ConcatDataset, Dataset, Subset

from dreamda_aug.inputs.labels import label_key, plain_label
from dreamda_aug.inputs.reader import Reader, Sample
from dreamda_aug.inputs.rows import Row, is_image, read_row

# From another image, and the row whose image it replaces, to what the dataset makes of them.
Step = Callable[[Any, Row], Any]


@runtime_checkable
class SizedDataset(Protocol):
    """A map-style dataset: samples by index, and how many there are."""

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


class DatasetReader(Reader):
    """Samples of a dataset without its image transform, which ``put_back`` runs.

    The transform is what a dataset calls as ``self.transform`` or ``self.transforms``, be it an
    attribute or a method, of torchvision's or albumentations' kind; or what was given to
    ``with_transform`` or ``set_transform`` of a Hugging Face dataset. It is run where the dataset
    itself has called it, and in the way that it has. Datasets inside a ``Subset``, a
    ``ConcatDataset`` or an attribute of the given one are treated alike; all stay as they are.

    Args:
        dataset: of samples that `read_row` takes.
        only_images: samples may also be images without a label.

    Raises:
        TypeError: the dataset is not map-style, or its transform cannot be taken off.
    """

    has_labels = True

    def __init__(self, dataset: Any, only_images: bool = False):
        self.dataset, self.only_images = as_sized(dataset), only_images
        super().__init__(len(self.dataset))
        self.file_names = find_names(dataset)
        self._steps: list[Step] = []
        self._stripped = False
        self._bare = self._strip(dataset, nested=False)
        # by id of a dataset: its steps, if all of its samples go through the same ones
        self._usual: dict[int, list[Step]] = {}
        parts = _parts(dataset)
        self._is_regular = not self._stripped or all(map(_is_plain, parts))
        self.may_vary = not all(_is_plain(part) or isinstance(part, Table) for part in parts)
        self._read_labels: dict[int, Any] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return DatasetReader, (self.dataset, self.only_images)  # closures cannot be pickled

    def fetch(self, index: int) -> Any:
        self._steps.clear()
        return self._bare[index]

    def sample(self, index: int, found: Any) -> Sample:
        steps, (leaf, _) = list(self._steps), locate(self.dataset, index)
        if self.only_images and not isinstance(found, tuple | list | Mapping):
            row = Row(found, None, lambda image, label: image)
        else:
            row = read_row(found, index, _columns(leaf))
        if isinstance(found, tuple | list) and len(found) == 2 and self._is_regular:
            self._usual[id(leaf)] = steps
        return Sample(row.image, row.label, lambda image: _applied(steps, image, row))

    def put_back(self, index: int, image: Any, label: Any) -> Any:
        steps = self._usual.get(id(locate(self.dataset, index)[0]))
        if steps is None:
            return self.read(index).put_back(image)
        return _applied(steps, image, Row(image, label, lambda image, label: (image, label)))

    def labels(self, indices: Sequence[int]) -> list[Any]:
        """Labels as samples have them; samples are read, once, if the dataset keeps no list."""
        if (kept := find_targets(self.dataset)) is not None:
            return [self._changed(index, kept[index]) for index in indices]
        for index in indices:
            if index not in self._read_labels:
                self._read_labels[index] = self.read(index).label
        return [self._read_labels[index] for index in indices]

    def kept_labels(self) -> list[Any]:
        """The same before the dataset's ``target_transform``."""
        kept = find_targets(self.dataset)
        return self.labels(range(len(self))) if kept is None else kept

    def name_classes(self) -> None:
        """Take over the dataset's names of its classes, if its samples have their numbers.

        Raises:
            ValueError: parts of a ``ConcatDataset`` name their classes differently.
        """
        names = find_classes(self.dataset)
        self.is_renumbered = names is not None and self._changes_labels(len(names))
        self.names = None if self.is_renumbered else names

    def _changes_labels(self, classes: int) -> bool:
        """Whether a ``target_transform`` makes another label of any of the classes."""
        for change in filter(None, map(_target_transform, _parts(self.dataset))):
            try:
                if any(plain_label(change(label)) != label for label in range(classes)):
                    return True
            except Exception:  # the user's own function, for labels of another kind
                return True
        return False

    def _changed(self, index: int, label: Any) -> Any:
        change = _target_transform(locate(self.dataset, index)[0])
        return change(label) if change else label

    def _strip(self, dataset: Any, nested: bool) -> Any:
        """The dataset, or a copy whose transforms change nothing and note how they are called."""
        if isinstance(dataset, Table):
            return dataset if nested else self._strip_table(dataset)
        changed: dict[str, Any] = {}
        transform, joint = (getattr(dataset, name, None) for name in ("transform", "transforms"))
        if callable(transform):
            changed["transform"] = self._watched(transform, nested)
        if callable(joint):
            changed["transforms"] = self._watched_joint(joint, nested)
        self._stripped |= bool(changed)
        if isinstance(dataset, ConcatDataset):
            changed["datasets"] = [self._strip(part, nested) for part in dataset.datasets]
        for name, inner in vars(dataset).items() if hasattr(dataset, "__dict__") else ():
            if isinstance(inner, Dataset | Table) or name == "dataset":
                bare = self._strip(inner, nested or not isinstance(dataset, Subset))
                changed.update({name: bare} if bare is not inner else {})
        bare = copy.copy(dataset) if changed else dataset
        for name, value in changed.items():
            try:
                setattr(bare, name, value)
            except AttributeError as error:
                kind = type(dataset).__name__
                raise TypeError(
                    f"dataset must let its {name} be set, and {kind} does not ({error}): give the "
                    f"dataset without it, and AugmentedDataset(..., transform=...)."
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
                f"{settings['type']!r}; give dataset.with_format(None)."
            )
        self._stripped = True

        def step(image: Any, row: Row) -> Any:
            sample = row.put(image, row.label)
            batch = transform({name: [sample[name]] for name in columns if name in sample})
            return {name: values[0] for name, values in batch.items()}

        return _Noted(table.with_format(None), lambda: self._steps.append(step))

    def _watched(self, transform: Callable[..., Any], nested: bool) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            images = [key for key, value in named.items() if is_image(value)]
            if len(given) == 1 and not named and isinstance(given[0], Mapping):
                if nested:  # what the outer dataset makes of its result is not known
                    return transform(given[0])
                self._steps.append(lambda image, row: transform(row.put(image, row.label)))
                return given[0]
            if len(given) == 1 and not named:
                self._steps.append(lambda image, row: row.put(transform(image), row.label))
                return given[0]
            if len(given) == 2 and not named:
                self._steps.append(lambda image, row: row.put(*transform(image, row.label)))
                return given
            if not given and len(images) == 1:
                key, = images
                self._steps.append(lambda image, row: row.put(
                    transform(**{**named, key: image})[key], row.label))
                return named
            raise TypeError(
                "a dataset must call its transform with the image, with image and label, or as "
                f"transform(image=image), got {len(given)} arguments and {sorted(named)}."
            )

        return call

    def _watched_joint(self, joint: Callable[..., Any], nested: bool) -> Callable[..., Any]:
        if not (hasattr(joint, "transform") and hasattr(joint, "target_transform")):
            return self._watched(joint, nested)
        # torchvision wraps transform and target_transform into one; labels keep theirs
        image_only, target = getattr(joint, "transform", None), _target_transform(joint)

        def call(image: Any, label: Any) -> tuple[Any, Any]:
            if image_only is not None:
                self._steps.append(lambda image, row: row.put(image_only(image), row.label))
            return image, target(label) if target else label

        return call


class _Noted:
    """A dataset that calls a function before each sample is read."""

    def __init__(self, dataset: Any, note: Callable[[], None]):
        self._dataset, self._note = dataset, note

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        self._note()
        return self._dataset[index]


def _applied(steps: Sequence[Step], image: Any, row: Row) -> Any:
    """The sample that a dataset's transforms make of another image."""
    sample = None
    for step in steps:
        if sample is not None:
            row = read_row(sample, 0)
            image = row.image
        sample = step(image, row)
    return sample if steps else row.put(image, row.label)


def _target_transform(dataset: Any) -> Callable[[Any], Any] | None:
    own = getattr(dataset, "target_transform", None)
    return own or getattr(getattr(dataset, "transforms", None), "target_transform", None)


def as_sized(dataset: Any) -> SizedDataset:
    """The same dataset, checked to be map-style; torch's `Dataset` does not promise a length.

    Raises:
        TypeError: it has no length, or no samples by index.
    """
    if not isinstance(dataset, SizedDataset) or isinstance(dataset, str):
        raise TypeError("dataset must be map-style, with __getitem__ and __len__, got "
                        f"{type(dataset).__name__}.")
    return dataset


def locate(dataset: Any, index: int) -> tuple[Any, int]:
    """The dataset below all subsets and concatenations that holds a sample, and its number."""
    while isinstance(dataset, Subset | ConcatDataset):
        if isinstance(dataset, Subset):
            dataset, index = dataset.dataset, dataset.indices[index]
        else:
            part = bisect_right(dataset.cumulative_sizes, index)
            index -= dataset.cumulative_sizes[part - 1] if part else 0
            dataset = dataset.datasets[part]
    return dataset, index


def occurrences(dataset: Any) -> list[int]:
    """For each sample, how often the same one came before it, as ``Subset(data, [0, 0])`` has it.

    Nothing is read: equal images at different places of a dataset count as different ones.
    """
    if not isinstance(dataset, Subset | ConcatDataset):
        return [0] * len(as_sized(dataset))
    seen: dict[tuple[int, int], int] = {}
    found = []
    for index in range(len(as_sized(dataset))):
        leaf, inner = locate(dataset, index)
        found.append(seen.setdefault((id(leaf), inner), 0))
        seen[id(leaf), inner] += 1
    return found


def find_attribute(dataset: Any, name: str) -> Any:
    """An attribute of a dataset, or of the one that it is a part of."""
    while not hasattr(dataset, name):
        if isinstance(dataset, ConcatDataset):
            dataset = dataset.datasets[0]
        elif hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        else:
            raise AttributeError(f"{type(dataset).__name__} has no {name}.")
    return getattr(dataset, name)


def find_classes(dataset: Any) -> list[str] | None:
    """Names of a dataset's classes, in label order, or None if it keeps none.

    The first name counts where a class has several, as in torchvision's ``ImageNet``.

    Raises:
        ValueError: parts of a ``ConcatDataset`` name their classes differently.
    """
    if isinstance(dataset, ConcatDataset):
        found = [names for names in map(find_classes, dataset.datasets) if names is not None]
        longest = max(found, key=len, default=None)
        for names in found:
            if longest is not None and names != longest[: len(names)]:
                raise ValueError(
                    f"the parts of the ConcatDataset name their classes differently, {names} and "
                    f"{longest}, so that a label has two meanings; give them the same classes, or "
                    "class_names."
                )
        return longest
    if isinstance(dataset, Table):
        keys = _columns(dataset)
        classes = getattr(dataset.features[keys[1]], "names", None) if keys else None
        return None if classes is None else list(classes)
    classes = getattr(dataset, "classes", None)
    if classes is None:
        return find_classes(dataset.dataset) if hasattr(dataset, "dataset") else None
    return [str(name[0] if isinstance(name, tuple) else name) for name in classes]


def find_targets(dataset: Any) -> list[Any] | None:
    """Labels of a dataset, without its images, or None if it keeps no list of them."""
    if isinstance(dataset, Subset):
        inner = find_targets(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [find_targets(part) for part in dataset.datasets]
        return None if None in parts else [label for part in parts for label in part or ()]
    if isinstance(dataset, Table):
        keys = _columns(dataset)
        return None if keys is None else list(dataset.with_format(None)[keys[1]])
    for name in ("targets", "labels", "_labels"):
        labels = getattr(dataset, name, None)
        if labels is not None and len(labels) == len(dataset):
            return labels.tolist() if hasattr(labels, "tolist") else list(labels)
    return None


def find_names(dataset: Any) -> list[str] | None:
    """File names of a dataset's images, in torchvision's ``samples``, or None if it keeps none.

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


def _find_files(dataset: Any) -> list[tuple[str, str | None]] | None:
    """The same as pairs of a path and its dataset's root."""
    if isinstance(dataset, Subset):
        inner = _find_files(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_find_files(part) for part in dataset.datasets]
        return None if None in parts else [file for part in parts for file in part or ()]
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, Sequence) or not samples or not all(
        isinstance(sample, tuple) and sample and isinstance(sample[0], str | Path)
        for sample in samples
    ):
        return None
    root = getattr(dataset, "root", None)
    return [(str(path), root) for path, *_ in samples]


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
