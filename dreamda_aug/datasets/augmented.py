"""`AugmentedDataset`: real and synthetic samples together."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from dreamda_aug.arguments import whole
from dreamda_aug.datasets.origins import RealAndSynthetic
from dreamda_aug.datasets.stored import StoredDataset
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.dataset_fields import find_names, find_targets
from dreamda_aug.inputs.untransformed import Untransformed


class AugmentedDataset(RealAndSynthetic):
    """A dataset of N real samples and K synthetic replicas of each: N·(K + 1) samples.

    Samples 0 to N - 1 are the real ones; sample N + i·K + k is replica k of image i. Replica k of
    image i in epoch e is the same picture alone, in any batch and in any worker. Synthetic images
    are made from the *untransformed* base image; the base dataset's own ``transform`` runs after.

    ``DataLoader`` fetches whole batches at once (``__getitems__``), so the diffusion model sees
    batches too. ``classes``, ``class_to_idx`` and ``targets`` are those of the base dataset.

    Args:
        dataset: a map-style dataset of ``(image, label)``: torchvision's, a ``Subset`` or
            ``ConcatDataset`` of such, or your own. A ``transform`` or ``transforms`` attribute is
            taken off (from a copy) and runs after generation.
        synthesizer: makes the synthetic images; or a `DreamDAugment`, for its synthesizer.
        expansion_ratio: K, synthetic samples per real one, >= 1.
        transform: image transform to run after generation, for datasets of your own that return
            plain images and have no ``transform``.
        with_origin: samples become ``(image, label, Origin)``.

    Attributes:
        real: the N real samples, a ``Subset``.
        synthetic: the N·K synthetic ones, a ``Subset``.
        epoch: the current epoch; see `set_epoch`.

    Raises:
        ValueError: an argument breaks its rule, samples are not ``(image, label)``, or there
            is no caption for an image.
        TypeError: the dataset is not map-style.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        synthesizer: Synthesizer | HasSynthesizer,
        expansion_ratio: int = 5,
        *,
        transform: Callable[[Any], Any] | None = None,
        with_origin: bool = False,
    ):
        expansion_ratio = whole("expansion_ratio", expansion_ratio, 1)
        self._raw = Untransformed(dataset)
        self.synthesizer = as_synthesizer(synthesizer)
        captions = self.synthesizer.conditioner.captions
        self._images = (None if captions is None
                        else captions.images(find_names(dataset), len(self._raw)))
        self.expansion_ratio = expansion_ratio
        self.transform = transform
        self.with_origin = with_origin
        # in shared memory: persistent workers see a new epoch too, and count together
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._served = torch.zeros((), dtype=torch.int64).share_memory_()

    @classmethod
    def from_folder(
        cls,
        real: Dataset[Any],
        folder: str | Path,
        *,
        transform: Callable[[Any], Any] | None = None,
        with_origin: bool = False,
    ) -> StoredDataset:
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
        self._count(len(wanted))
        made = iter(self.synthesizer.synthesize(
            [raw[o.index][0] for o in wanted],
            [raw[o.index][1] for o in wanted],
            [o.replica for o in wanted],
            self.epoch,
            None if self._images is None else [self._images[o.index] for o in wanted],
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
        epoch = whole("epoch", epoch, 0, 2**63 - 1)
        if epoch != self.epoch:
            self._served.zero_()
        self._epoch.fill_(epoch)

    def _count(self, served: int) -> None:
        """Warn, once an epoch, when its images are being served a second time."""
        before = int(self._served)
        self._served += served
        limit = 1.5 * len(self._raw) * self.expansion_ratio
        if served and before <= limit < before + served:
            warnings.warn(
                f"the synthetic images of epoch {self.epoch} are being served a second time; call "
                "set_epoch before each epoch for fresh ones (with Lightning: the callback "
                "dreamda_aug.datasets.lightning.SetEpoch).", stacklevel=4,
            )

    @property
    def targets(self) -> list[Any]:
        """Labels of all samples, real ones first; synthetic ones carry their seed's label."""
        real = find_targets(self._raw.dataset)
        return real + [label for label in real for _ in range(self.expansion_ratio)]
