"""Real and synthetic samples, each with a record of where it comes from."""

import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import Dataset, Subset

from dreamda_aug.arguments import real, whole
from dreamda_aug.inputs.dataset_reader import as_sized, find_attribute, find_classes
from dreamda_aug.inputs.rows import read_row
from dreamda_aug.inputs.seed_images import SeedImages, open_seed_images
from dreamda_aug.method.seeding import derive_seed


class Origin(NamedTuple):
    """Origin of a sample: a named tuple of numbers, which torch can collate.

    Attributes:
        synthetic: whether it was generated.
        index: index of the real sample, or of the seed image, in the base dataset.
        replica: number of the replica; -1 for real samples.
        epoch: epoch whose perturbation it carries; -1 for real samples. 0 throughout for images on
            disk, and where samples are replaced.
    """

    synthetic: bool
    index: int  # type: ignore[assignment]  # hides tuple.index; nobody searches an origin
    replica: int
    epoch: int


class RealAndSynthetic(Dataset[Any]):
    """Real samples and synthetic ones: the base of `AugmentedDataset` and `StoredDataset`.

    A subclass overrides what raises NotImplementedError here.

    Args:
        dataset: the real samples.
        class_names: what to call their classes; None for the dataset's own names.
        transform: image transform to run last.
        with_origin: samples become ``(image, label, Origin)``; dicts get the key ``origin``.
        replace: probability that a real sample is replaced, in [0, 1], or None for real samples
            first and synthetic ones behind them.
        rng_seed: another one replaces other samples.
        changes: whether synthetic images of another epoch are others.
    """

    def __init__(
        self, dataset: Dataset[Any], class_names: list[str] | None,
        transform: Callable[[Any], Any] | None, with_origin: bool, replace: float | None,
        rng_seed: int, changes: bool,
    ):
        self.replace = None if replace is None else real(
            "replace", replace, "lie in [0, 1] or be None", 0, 1)
        self._dataset = dataset
        self._images: SeedImages = open_seed_images(
            as_sized(dataset), labels="later", class_names=class_names)
        self.transform, self.with_origin = transform, with_origin
        self._rng_seed, self._changes = rng_seed, changes and replace is None
        # in shared memory: persistent workers see a new epoch too, and count together
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._served = torch.zeros((), dtype=torch.int64).share_memory_()

    def _synthetic_count(self) -> int:
        """Number of synthetic images, of all seed images together."""
        raise NotImplementedError

    def _seed_and_replica(self, number: int) -> tuple[int, int]:
        """Index of the seed image and number of the replica of synthetic image ``number``."""
        raise NotImplementedError

    def _replicas(self, index: int) -> Sequence[int]:
        """Numbers of the replicas that a seed image has."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of samples, real and synthetic."""
        return len(self._images) + (0 if self.replace is not None else self._synthetic_count())

    @property
    def epoch(self) -> int:
        """The current epoch; see `set_epoch`."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Give synthetic samples fresh perturbations, or replace others; call it before each epoch.

        Workers that are running already see it too. Inversions stay cached.
        """
        epoch = whole("epoch", epoch, 0, 2**63 - 1)
        if epoch != self.epoch:
            self._served.zero_()
        self._epoch.fill_(epoch)

    def origin(self, index: int) -> Origin:
        """Where sample ``index`` comes from in this epoch; reads and makes nothing."""
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
        replica: int | None = None
        if index >= count:
            index, replica = self._seed_and_replica(index - count)
        elif self.replace is not None and (known := self._replicas(index)):
            which = (self._rng_seed, "replace", self.epoch, index)
            if derive_seed(*which) < self.replace * 2**63:
                replica = known[derive_seed(*which, "replica") % len(known)]
        if replica is None:
            return Origin(False, index, -1, -1)
        return Origin(True, index, replica, self.epoch if self._changes else 0)

    @property
    def real(self) -> "Part":
        """The real samples."""
        return self._part(range(len(self._images)))

    @property
    def synthetic(self) -> "Part":
        """The synthetic samples."""
        return self._part(range(len(self._images), len(self)))

    def _part(self, indices: range) -> "Part":
        if self.replace is not None:
            raise AttributeError("with replace, a sample is real in one epoch and synthetic in "
                                 "another; origin(index) tells which.")
        return Part(self, indices)

    @property
    def targets(self) -> list[Any]:
        """Labels of all samples, real ones first; synthetic ones carry their seed's label."""
        labels = self._images.given_labels
        return [labels[index] if index < len(labels)
                else labels[self._seed_and_replica(index - len(labels))[0]]
                for index in range(len(self))]

    def _count(self, served: int) -> None:
        """Warn, once an epoch, when what changes with it is being served a second time."""
        total = self._synthetic_count() if self.replace is None else len(self)
        before, limit = int(self._served), 1.5 * total
        self._served += served
        if before <= limit < before + served:
            warnings.warn(
                f"the synthetic images of epoch {self.epoch} are being served a second time; call "
                "set_epoch before each epoch for other ones (with Lightning: the callback "
                "dreamda_aug.datasets.lightning.SetEpoch).", stacklevel=4,
            )

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
