"""Real samples first, then synthetic ones, each with a record of where it comes from."""

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch.utils.data import Dataset, Subset

from dreamda_aug.inputs.dataset_reader import as_sized, find_attribute, find_classes
from dreamda_aug.inputs.rows import read_row
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images


class Origin(NamedTuple):
    """Where a sample comes from; collates like any named tuple of numbers.

    Attributes:
        synthetic: whether it was generated.
        index: index of the real sample, or of the seed image, in the base dataset.
        replica: number of the replica; -1 for real samples.
        epoch: epoch whose perturbation it carries; -1 for real samples.
    """

    synthetic: bool
    index: int  # type: ignore[assignment]  # hides tuple.index; nobody searches an origin
    replica: int
    epoch: int


class RealAndSynthetic(Dataset[Any]):
    """Real samples first, then synthetic ones: the base of `AugmentedDataset` and `StoredDataset`.

    A subclass overrides what raises NotImplementedError here.

    Args:
        dataset: the real samples.
        class_names: what to call their classes; None for the dataset's own names.
        transform: image transform to run last.
        with_origin: samples become ``(image, label, Origin)``; dicts get the key ``origin``.
    """

    def __init__(
        self, dataset: Dataset[Any], class_names: list[str] | None,
        transform: Callable[[Any], Any] | None, with_origin: bool,
    ):
        self._dataset = dataset
        self._images: SeedImages = open_seed_images(
            as_sized(dataset), labels="later", class_names=class_names)
        self.transform, self.with_origin = transform, with_origin

    def __len__(self) -> int:
        """Number of samples, real and synthetic."""
        raise NotImplementedError

    @property
    def epoch(self) -> int:
        """The epoch whose perturbation synthetic samples carry."""
        raise NotImplementedError

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose perturbation synthetic samples carry."""
        raise NotImplementedError

    def _seed_and_replica(self, number: int) -> tuple[int, int]:
        """Index of the seed image and number of the replica of synthetic sample ``number``."""
        raise NotImplementedError

    def origin(self, index: int) -> Origin:
        """Where sample ``index`` comes from; reads and makes nothing."""
        try:
            index = operator.index(index)
        except TypeError:
            raise TypeError(
                f"index must be an integer, got {index!r}; for several samples use "
                "torch.utils.data.Subset."
            ) from None
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a dataset of {len(self)} samples.")
        index, count = index % len(self), len(self._images)
        if index < count:
            return Origin(False, index, -1, -1)
        image, replica = self._seed_and_replica(index - count)
        return Origin(True, image, replica, self.epoch)

    @property
    def real(self) -> "Part":
        """The real samples."""
        return Part(self, range(len(self._images)))

    @property
    def synthetic(self) -> "Part":
        """The synthetic samples."""
        return Part(self, range(len(self._images), len(self)))

    @property
    def classes(self) -> list[str]:
        classes = find_classes(self._dataset)
        if classes is None:
            raise AttributeError(f"{type(self._dataset).__name__} has no classes.")
        return classes

    @property
    def class_to_idx(self) -> dict[str, int]:
        class_to_idx: dict[str, int] = find_attribute(self._dataset, "class_to_idx")
        return class_to_idx

    def _completed(self, sample: Any, origin: Origin) -> Any:
        """The base dataset's sample after the last transform, with its origin if wanted."""
        if self.transform is not None:
            row = read_row(sample, origin.index)
            sample = row.put(self.transform(row.image), row.label)
        if not self.with_origin:
            return sample
        return {**sample, "origin": origin} if isinstance(sample, Mapping) else (*sample, origin)


class Part(Subset[Any]):
    """The real or the synthetic samples of a dataset; a new epoch reaches the whole dataset."""

    dataset: RealAndSynthetic

    @property
    def epoch(self) -> int:
        """The epoch of the whole dataset."""
        return self.dataset.epoch

    def set_epoch(self, epoch: int) -> None:
        """As in `AugmentedDataset`."""
        self.dataset.set_epoch(epoch)
