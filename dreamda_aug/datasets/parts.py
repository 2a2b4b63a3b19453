"""Real and synthetic samples, each with a record of where it comes from."""

import operator
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from dreamda_aug.arguments import real, whole
from dreamda_aug.inputs.dataset_reader import as_sized, find_classes, find_targets
from dreamda_aug.inputs.samples import read_sample
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

    A subclass calls `_set_replicas`, and overrides `_samples`. Arguments are those of
    `AugmentedDataset`, and the synthesizer's ``rng_seed`` and ``class_names``.
    """

    # whether images are made now, others in another epoch
    _is_live = False

    def __init__(
        self, dataset: Dataset[Any], transform: Callable[[Any], Any] | None, with_origin: bool,
        replace: float | None, rng_seed: int, class_names: list[str] | None = None,
    ):
        self.replace = None if replace is None else real(
            "replace", replace, "lie in [0, 1] or be None", 0, 1)
        self._dataset = dataset
        self._images: SeedImages = open_seed_images(
            as_sized(dataset), labels="later", class_names=class_names)
        self.transform, self.with_origin, self._rng_seed = transform, with_origin, rng_seed
        # in shared memory: persistent workers see a new epoch too, and count together
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._served = torch.zeros((), dtype=torch.int64).share_memory_()

    def _set_replicas(self, replicas: Sequence[Sequence[int]]) -> None:
        """Take the numbers of the replicas that each seed image has."""
        self._replicas = replicas
        self._ends = np.cumsum(list(map(len, replicas)))

    def _samples(self, origins: Sequence[Origin]) -> Iterator[tuple[Origin, Any]]:
        """Samples as the base dataset gives them, each with the origin that it has at last."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of samples, real and synthetic."""
        return len(self._images) + (0 if self.replace is not None else int(self._ends[-1]))

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Samples of a batch; synthetic ones that are made now are made together."""
        origins = [self.origin(index) for index in indices]
        if self._is_live or self.replace is not None:
            self._count(origins)
        return [self._completed(sample, origin) for origin, sample in self._samples(origins)]

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
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a dataset of {len(self)} samples.")
        index, number = index % len(self), index % len(self) - len(self._images)
        replica: int | None = None
        if number >= 0:
            index = int(np.searchsorted(self._ends, number, side="right"))
            replica = self._replicas[index][number - int(self._ends[index])]
        elif self.replace is not None and (known := self._replicas[index]):
            which = (self._rng_seed, "replace", self.epoch, index)
            if derive_seed(*which) < self.replace * 2**63:
                replica = known[derive_seed(*which, "replica") % len(known)]
        if replica is None:
            return Origin(False, index, -1, -1)
        is_new = self._is_live and self.replace is None
        return Origin(True, index, replica, self.epoch if is_new else 0)

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
        """Labels of all samples, real ones first; synthetic ones carry their seed's label.

        Raises:
            AttributeError: the dataset keeps no list of them, and would have to be read.
        """
        if self._is_live and find_targets(self._dataset) is None:
            raise AttributeError(f"{type(self._dataset).__name__} has no targets.")
        labels = self._images.given_labels
        return [*labels, *(label for label, replicas in zip(labels, self._replicas, strict=True)
                           for _ in replicas if self.replace is None)]

    def _count(self, origins: Sequence[Origin]) -> None:
        """Warn, once an epoch, when what changes with it is being served a second time."""
        served, total = sum(origin.synthetic for origin in origins), int(self._ends[-1])
        if self.replace is not None:
            served, total = len(origins), len(self)
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
        return {name: number for number, name in enumerate(self.classes)}

    def _completed(self, sample: Any, origin: Origin) -> Any:
        """The base dataset's sample after the last transform, with its origin if wanted."""
        if self.transform is not None:
            row = read_sample(sample, origin.index)
            sample = row.put_back(self.transform(row.image))
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
