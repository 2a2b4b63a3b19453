"""Datasets without their image transforms, which run after generation instead."""

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.utils.data import ConcatDataset, Dataset, Subset

from dreamda_aug.inputs.dataset_fields import Table, as_sized, find_classes, find_targets
from dreamda_aug.inputs.labels import plain_label
from dreamda_aug.inputs.rows import Row, is_image, read_row

# What a dataset does to another image and the row whose image it replaces: the whole sample.
Finish = Callable[[Any, Row], Any]
Transform = Callable[..., Any]


class Sample(NamedTuple):
    """A sample before its image transform.

    Attributes:
        image: as it was before the transform.
        label: as the dataset gives it.
        finish: from another image in its place to what the dataset would have returned.
    """

    image: Any
    label: Any
    finish: Callable[[Any], Any]


class Untransformed:
    """A dataset without its image transform, which a sample's ``finish`` runs when it is wanted.

    The transform is what a dataset calls as ``self.transform`` or ``self.transforms``, be it an
    attribute or a method, of torchvision's or albumentations' kind; or what was given to
    ``with_transform`` or ``set_transform`` of a Hugging Face dataset. It is run where the dataset
    itself has called it, and in the way that it has.

    Raises:
        TypeError: the dataset is not map-style.
    """

    def __init__(self, dataset: Dataset[Any]):
        self.dataset = dataset
        self._sized = as_sized(dataset)
        self._leaves: list[_Leaf] = []
        self._leaf_of = _split(dataset, self._leaves)

    def __reduce__(self) -> tuple[type["Untransformed"], tuple[Dataset[Any]]]:
        return Untransformed, (self.dataset,)  # split again: closures cannot be pickled

    def __len__(self) -> int:
        return len(self._sized)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        sample = self.sample(index)
        return sample.image, sample.label

    def sample(self, index: int) -> Sample:
        """Read a sample.

        Raises:
            ValueError: image and label are not found in it.
        """
        leaf, inner = self._leaf_of(index)
        found, finish = leaf.read(inner)
        row = read_row(found, index)
        finish = finish or _put
        if leaf.finish_pair is None and leaf.is_uniform and not isinstance(found, Mapping):
            leaf.finish_pair = finish if len(found) == 2 else None
        return Sample(row.image, row.label, lambda image: finish(image, row))

    def finish(self, index: int, image: Any, label: Any) -> Any:
        """What a sample's ``finish`` gives, where possible without reading the sample.

        Args:
            index: number of the sample.
            image: what takes the place of its image.
            label: its label, as `labels_of` has it.
        """
        leaf, _ = self._leaf_of(index)
        if leaf.finish_pair is not None:
            return leaf.finish_pair(image, Row(image, label, _pair))
        return self.sample(index).finish(image)

    def change_label(self, index: int, label: Any) -> Any:
        """A label as the dataset keeps it to one as its samples have it."""
        leaf, _ = self._leaf_of(index)
        return leaf.target_transform(label) if leaf.target_transform else label


    def names_of_labels(self) -> list[str] | None:
        """The dataset's names of its classes, where samples have the labels that they name.

        Returns:
            None where it keeps no names, or a ``target_transform`` changes labels.
        """
        names = find_classes(self.dataset)
        changed = any(leaf.changes_label(label) for leaf in self._leaves
                      for label in range(len(names or ())))
        return None if changed else names


def labels_of(raw: Untransformed) -> list[Any]:
    """Labels as samples have them; items are read only where the dataset keeps no list."""
    try:
        kept = find_targets(raw.dataset)
    except AttributeError:
        return [raw[i][1] for i in range(len(raw))]
    return [raw.change_label(index, label) for index, label in enumerate(kept)]


def kept_labels_of(raw: Untransformed) -> list[Any]:
    """Labels as the dataset keeps them, before its ``target_transform``."""
    try:
        return find_targets(raw.dataset)
    except AttributeError:
        return [raw[i][1] for i in range(len(raw))]


def occurrences_of(dataset: Dataset[Any]) -> list[int]:
    """For each sample, how often the same one came before it, as ``Subset(data, [0, 0])`` has it.

    Nothing is read: equal images at different places of a dataset count as different ones.
    """
    if not isinstance(dataset, Subset | ConcatDataset):
        return [0] * len(as_sized(dataset))
    seen: dict[tuple[int, int], int] = {}
    found = []
    for place in _places(dataset):
        found.append(seen.setdefault(place, 0))
        seen[place] += 1
    return found


def _places(dataset: Dataset[Any]) -> list[tuple[int, int]]:
    """Dataset and number of each sample, below all subsets and concatenations."""
    if isinstance(dataset, Subset):
        inner = _places(dataset.dataset)
        return [inner[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [place for part in dataset.datasets for place in _places(part)]
    return [(id(dataset), index) for index in range(len(as_sized(dataset)))]


class _Leaf:
    """A dataset that is no part of another, without its transforms."""

    def __init__(self, dataset: Any):
        self.bare: Any = dataset
        self.target_transform: Transform | None = getattr(dataset, "target_transform", None)
        self._finish: Finish | None = None
        # torchvision's datasets call their transform for every sample, and in the same way
        self.is_uniform = type(dataset).__module__.startswith("torchvision.")
        self.finish_pair: Finish | None = None
        if isinstance(dataset, Table):
            self.bare, self._whole_sample = dataset.with_format(None), _transform_of(dataset)
            return
        self._whole_sample = None
        transform = getattr(dataset, "transform", None)
        joint = getattr(dataset, "transforms", None)
        if transform is None and joint is None:
            self.is_uniform = True
            return
        self.bare = copy.copy(dataset)
        if callable(transform):
            self._replace("transform", self._watched(transform))
        if callable(joint):
            target = getattr(joint, "target_transform", None)
            self.target_transform = self.target_transform or target
            self._replace("transforms", self._watched_joint(joint, target))

    def changes_label(self, label: int) -> bool:
        """Whether the ``target_transform`` makes another label of it."""
        try:
            return (self.target_transform is not None
                    and plain_label(self.target_transform(label)) != label)
        except Exception:  # the user's own function, for labels of another kind
            return True

    def read(self, index: int) -> tuple[Any, Finish | None]:
        """A sample, and what its dataset does with it; None: nothing."""
        self._finish = None
        sample = self.bare[index]
        finish = self._finish
        if self._whole_sample is not None:
            whole = self._whole_sample
            return sample, lambda image, row: whole(row.put(image, row.label))
        return sample, finish

    def _replace(self, name: str, value: Transform) -> None:
        try:
            setattr(self.bare, name, value)
        except AttributeError as error:
            kind = type(self.bare).__name__
            raise TypeError(
                f"dataset must let its {name} be set, and {kind} does not ({error}): give the "
                f"dataset without it, and AugmentedDataset(..., transform=...)."
            ) from error

    def _watched(self, transform: Transform) -> Transform:
        """What stands for a transform: notes how it is called, and changes nothing."""
        def call(*given: Any, **named: Any) -> Any:
            if len(given) == 1 and not named:
                if isinstance(given[0], Mapping):  # the whole sample
                    self._finish = lambda image, row: transform(row.put(image, row.label))
                else:
                    self._finish = lambda image, row: row.put(transform(image), row.label)
                return given[0]
            if len(given) == 2 and not named:
                self._finish = lambda image, row: row.put(*transform(image, row.label))
                return given
            images = [key for key, value in named.items() if is_image(value)]
            if not given and len(images) == 1:
                key, = images
                self._finish = lambda image, row: row.put(
                    transform(**{**named, key: image})[key], row.label)
                return named
            raise TypeError(
                "a dataset must call its transform with the image, with image and label, or as "
                f"transform(image=image), got {len(given)} arguments and {sorted(named)}."
            )

        return call

    def _watched_joint(self, joint: Transform, target: Transform | None) -> Transform:
        """The same for torchvision's ``transforms``, which take image and label."""
        # torchvision wraps transform and target_transform into one; labels keep theirs
        is_pair = hasattr(joint, "transform") and hasattr(joint, "target_transform")
        image_only = getattr(joint, "transform", None)

        def call(image: Any, label: Any) -> tuple[Any, Any]:
            if not is_pair:
                self._finish = lambda image, row: row.put(*joint(image, row.label))
                return image, label
            if image_only is not None:
                self._finish = lambda image, row: row.put(image_only(image), row.label)
            return image, target(label) if target else label

        return call


def _transform_of(table: Table) -> Callable[[Any], Any] | None:
    """What a Hugging Face dataset does to a sample; None: nothing."""
    settings = table.format
    if settings["type"] is None:
        return None
    columns = settings["columns"]
    transform = settings["format_kwargs"].get("transform")
    if settings["type"] != "custom" or not callable(transform):
        raise TypeError(
            f"a Hugging Face dataset must have no format, or one made by with_transform, got "
            f"{settings['type']!r}; give dataset.with_format(None)."
        )

    def apply(sample: Mapping[str, Any]) -> Any:
        batch = transform({name: [sample[name]] for name in columns if name in sample})
        return {name: values[0] for name, values in batch.items()}

    return apply


def _put(image: Any, row: Row) -> Any:
    return row.put(image, row.label)


def _pair(image: Any, label: Any) -> tuple[Any, Any]:
    return image, label


def _split(
    dataset: Dataset[Any], leaves: list[_Leaf]
) -> Callable[[int], tuple[_Leaf, int]]:
    """For each index the dataset that the sample is in at last, and its number there.

    These datasets are added to ``leaves``.
    """
    if isinstance(dataset, Subset):
        leaf_of = _split(dataset.dataset, leaves)
        indices = dataset.indices
        return lambda index: leaf_of(indices[index])
    if isinstance(dataset, ConcatDataset):
        parts, ends = [_split(part, leaves) for part in dataset.datasets], dataset.cumulative_sizes

        def part_of(index: int) -> tuple[_Leaf, int]:
            start = 0
            for end, inner in zip(ends, parts, strict=True):
                if index < end:
                    return inner(index - start)
                start = end
            raise IndexError(index)

        return part_of
    leaf = _Leaf(dataset)
    leaves.append(leaf)
    return lambda index: (leaf, index)
