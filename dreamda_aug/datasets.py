"""`AugmentedDataset`: real and synthetic samples together."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from dreamda_aug.transforms import DreamDAugment
from dreamda_aug.untransformed import Untransformed

if TYPE_CHECKING:
    from dreamda_aug.stored import StoredDataset


class Origin(NamedTuple):
    """Where a sample comes from; collates like any named tuple of numbers.

    Attributes:
        synthetic: whether it was generated.
        index: index of the real sample, or of the seed image, in the base dataset.
        replica: number of the replica; -1 for real samples.
        epoch: epoch whose perturbation it carries; -1 for real samples.
    """

    synthetic: bool
    index: int
    replica: int
    epoch: int


class RealAndSynthetic(Dataset):
    """Real samples first, then synthetic ones: what `AugmentedDataset` and its stored twin share.

    A subclass sets ``_raw``, the real dataset as `Untransformed`, has ``epoch``, and tells in
    ``_seed_and_replica`` which seed image and replica a synthetic sample is.
    """

    _raw: Untransformed
    epoch: int

    def _seed_and_replica(self, number: int) -> tuple[int, int]:
        """Index of the seed image and number of the replica of synthetic sample ``number``."""
        raise NotImplementedError

    def origin(self, index: int) -> Origin:
        """Where sample ``index`` comes from; reads and makes nothing."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is outside a dataset of {len(self)} samples.")
        index, count = int(index) % len(self), len(self._raw)
        if index < count:
            return Origin(False, index, -1, -1)
        image, replica = self._seed_and_replica(index - count)
        return Origin(True, image, replica, self.epoch)

    @property
    def real(self) -> Subset:
        return Subset(self, range(len(self._raw)))

    @property
    def synthetic(self) -> Subset:
        return Subset(self, range(len(self._raw), len(self)))

    @property
    def classes(self) -> list[str]:
        return find_attribute(self._raw.dataset, "classes")

    @property
    def class_to_idx(self) -> dict[str, int]:
        return find_attribute(self._raw.dataset, "class_to_idx")


class AugmentedDataset(RealAndSynthetic):
    """A dataset of N samples and K synthetic replicas of each: N·(K + 1) samples.

    Samples 0 to N - 1 are the real ones; sample N + i·K + k is replica k of image i. Replica k of
    image i in epoch e is the same picture alone, in any batch and in any worker. Synthetic images
    are made from the *untransformed* base image; the base dataset's own ``transform`` runs after.

    ``DataLoader`` fetches whole batches at once (``__getitems__``), so the diffusion model sees
    batches too. ``classes``, ``class_to_idx`` and ``targets`` are those of the base dataset.

    Args:
        dataset: a map-style dataset of ``(image, label)``: torchvision's, a ``Subset`` or
            ``ConcatDataset`` of such, or your own. A ``transform`` or ``transforms`` attribute is
            taken off (from a copy) and runs after generation.
        augment: makes the synthetic images; its ``p`` plays no role here.
        expansion_ratio: K, synthetic samples per real one, >= 1.
        transform: image transform to run after generation, for datasets of your own that return
            plain images and have no ``transform``.
        with_origin: samples become ``(image, label, Origin)``.

    Attributes:
        real: the N real samples, a ``Subset``.
        synthetic: the N·K synthetic ones, a ``Subset``.
        epoch: the current epoch; see `set_epoch`.

    Raises:
        ValueError: an argument breaks its rule, samples are not ``(image, label)``, or ``augment``
            has no caption for an image.
    """

    def __init__(
        self,
        dataset: Dataset,
        augment: DreamDAugment,
        expansion_ratio: int = 5,
        *,
        transform: Callable[[Any], Any] | None = None,
        with_origin: bool = False,
    ):
        if not isinstance(expansion_ratio, int) or expansion_ratio < 1:
            raise ValueError(f"expansion_ratio must be an integer >= 1, got {expansion_ratio!r}.")
        if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
            raise TypeError(
                f"dataset must be map-style, with __getitem__ and __len__, got "
                f"{type(dataset).__name__}."
            )
        self._raw = Untransformed(dataset)
        captions = augment.conditioner.captions
        self._images = captions and captions.images(find_names(dataset), len(dataset))
        self.augment = augment
        self.expansion_ratio = expansion_ratio
        self.transform = transform
        self.with_origin = with_origin
        # in shared memory: persistent workers see a new epoch too
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    @classmethod
    def from_folder(
        cls,
        real: Dataset,
        folder: str | Path,
        *,
        transform: Callable[[Any], Any] | None = None,
        with_origin: bool = False,
    ) -> "StoredDataset":
        """Real samples and those that `expand` wrote to a folder; loads no diffusion model.

        Args:
            real: the dataset that was expanded, or a ``Subset`` of it: synthetic images of seed
                images outside it are left out, so that no validation image leaks into training.
            folder: what `expand` wrote.
            transform: as above.
            with_origin: as above.

        Returns:
            A dataset with the same samples, attributes and order as an `AugmentedDataset`.
        """
        from dreamda_aug.stored import StoredDataset

        return StoredDataset(real, folder, transform=transform, with_origin=with_origin)

    def __len__(self) -> int:
        return len(self._raw) * (self.expansion_ratio + 1)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """Samples of a batch; the synthetic ones are generated together."""
        origins = [self.origin(index) for index in indices]
        raw = {index: self._raw[index] for index in dict.fromkeys(o.index for o in origins)}
        wanted = [o for o in origins if o.synthetic]
        made = iter(self.augment.synthesize(
            [raw[o.index][0] for o in wanted],
            [raw[o.index][1] for o in wanted],
            [o.replica for o in wanted],
            self.epoch,
            self._images and [self._images[o.index] for o in wanted],
        ) if wanted else [])
        samples = []
        for origin in origins:
            image, label = raw[origin.index]
            image, label = self._raw.transform(
                origin.index, next(made) if origin.synthetic else image, label
            )
            image = self.transform(image) if self.transform else image
            samples.append((image, label, origin) if self.with_origin else (image, label))
        return samples

    def _seed_and_replica(self, number: int) -> tuple[int, int]:
        return divmod(number, self.expansion_ratio)

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Give every synthetic sample a fresh perturbation; call it before each epoch.

        Workers that are running already see it too. Inversions stay cached.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be >= 0, got {epoch}.")
        self._epoch.fill_(epoch)

    @property
    def targets(self) -> list[Any]:
        """Labels of all samples, real ones first; synthetic ones carry their seed's label."""
        real = find_targets(self._raw.dataset)
        return real + [label for label in real for _ in range(self.expansion_ratio)]


def find_attribute(dataset: Dataset, name: str) -> Any:
    """An attribute of a dataset, or of the one that it is a part of."""
    while not hasattr(dataset, name):
        if isinstance(dataset, ConcatDataset):
            dataset = dataset.datasets[0]
        elif hasattr(dataset, "dataset"):
            dataset = dataset.dataset
        else:
            raise AttributeError(f"{type(dataset).__name__} has no {name}.")
    return getattr(dataset, name)


def find_targets(dataset: Dataset) -> list[Any]:
    """Labels of a dataset, without its images; AttributeError where it keeps no list of them."""
    if isinstance(dataset, Subset):
        inner = find_targets(dataset.dataset)
        return [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        return [label for part in dataset.datasets for label in find_targets(part)]
    for name in ("targets", "labels", "_labels"):
        if hasattr(dataset, name):
            labels = getattr(dataset, name)
            return labels.tolist() if hasattr(labels, "tolist") else list(labels)
    raise AttributeError(f"{type(dataset).__name__} has no targets.")


def find_names(dataset: Dataset) -> list[str] | None:
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


def _find_files(dataset: Dataset) -> list[tuple[str, str | None]] | None:
    """The same as pairs of a path and its dataset's root."""
    if isinstance(dataset, Subset):
        inner = _find_files(dataset.dataset)
        return None if inner is None else [inner[i] for i in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [_find_files(part) for part in dataset.datasets]
        return None if None in parts else [file for part in parts for file in part]
    samples = getattr(dataset, "samples", None)
    if not isinstance(samples, Sequence) or not samples or not all(
        isinstance(sample, tuple) and sample and isinstance(sample[0], str | Path)
        for sample in samples
    ):
        return None
    root = getattr(dataset, "root", None)
    return [(str(path), root) for path, *_ in samples]
