"""`AugmentedDataset`: real and synthetic samples together."""

import copy
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dreamda_aug.arguments import checked, whole
from dreamda_aug.calibration.automatic import calibrated
from dreamda_aug.datasets.ahead import Ahead, Freshness
from dreamda_aug.datasets.origins import Origin, RealAndSynthetic, completed
from dreamda_aug.datasets.stored import StoredDataset
from dreamda_aug.generation.dials import Calibration, is_calibrated
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.dataset_fields import find_names, find_targets
from dreamda_aug.inputs.images import has_8_bits, read_pixels
from dreamda_aug.inputs.untransformed import Sample, Untransformed, labels_of, occurrences_of

logger = logging.getLogger(__name__)

# Samples of a dataset without a list of labels that are read before it is calibrated on.
_READ_FOR_LABELS = 512


class AugmentedDataset(RealAndSynthetic):
    """A dataset of N real samples and K synthetic replicas of each: N·(K + 1) samples.

    Samples 0 to N - 1 are the real ones; sample N + i·K + k is replica k of image i. Replica k of
    image i in epoch e is the same picture alone, in any batch and in any worker. Synthetic images
    are made from the *untransformed* base image; the base dataset's own ``transform`` runs after.
    Where the same sample is there several times, as ``Subset(data, [0, 0])`` has it, each gets
    replicas of its own. Equal images at different places of the base dataset get equal ones.

    ``DataLoader`` fetches whole batches at once (``__getitems__``), so the diffusion model sees
    batches too. ``classes``, ``class_to_idx`` and ``targets`` are those of the base dataset. Where
    the synthesizer has no ``class_names``, labels are put into words by the dataset's ``classes``,
    unless a ``target_transform`` changes them.

    Args:
        dataset: a map-style dataset of ``(image, label)``: torchvision's, a ``Subset`` or
            ``ConcatDataset`` of such, or your own; also of ``(image, label, ...)``, or of dicts
            with an image and a label, as Hugging Face's are: samples keep their form. A
            ``transform`` or ``transforms``, or what ``with_transform`` was given, is taken off
            (from a copy) and runs after generation.
        synthesizer: makes the synthetic images; or a `DreamDAugment`, for its synthesizer.
        expansion_ratio: K, synthetic samples per real one, >= 1.
        transform: image transform to run after generation, for datasets of your own that return
            plain images and have no ``transform``.
        with_origin: samples become ``(image, label, Origin)``; dicts get the key ``origin``.
        calibrate: where dials are None, measure them on a sample of the dataset now, in this
            process: once, since the result lies beside the cache. False: take what `calibrate`
            found, or mild defaults.
        ahead: 0: synthetic images are made when they are asked for. N >= 1: a process beside this
            one makes them, up to N epochs ahead, and keeps them in the folder for temporary files
            (``$TMPDIR``; up to N + 2 epochs of images). An image of this epoch that is not ready
            is served as it was in the newest epoch that is; only an image of which nothing is
            ready is made on demand. See `wait`, `freshness` and `close`.

    Attributes:
        real: the N real samples, a ``Subset``.
        synthetic: the N·K synthetic ones, a ``Subset``.
        epoch: the current epoch; see `set_epoch`.
        calibration: where numbers for dials that were None are from; None: there were none.

    Raises:
        ValueError: an argument breaks its rule, samples are not ``(image, label)``, or there
            is no caption for an image.
        TypeError: the dataset is not map-style; or, with ``ahead``, cannot be sent to a process.
    """

    @checked
    def __init__(
        self,
        dataset: Dataset[Any],
        synthesizer: Synthesizer | HasSynthesizer,
        expansion_ratio: int = 5,
        *,
        transform: Callable[[Any], Any] | None = None,
        with_origin: bool = False,
        calibrate: bool = True,
        ahead: int = 0,
    ):
        expansion_ratio = whole("expansion_ratio", expansion_ratio, 1)
        ahead = whole("ahead", ahead, 0)
        self._raw = Untransformed(dataset)
        self._occurrences = occurrences_of(dataset)
        self.synthesizer = as_synthesizer(synthesizer).with_class_names(
            self._raw.names_of_labels())
        captions = self.synthesizer.conditioner.captions
        self._images = (None if captions is None
                        else captions.images(find_names(dataset), len(self._raw)))
        self.calibration: Calibration | None = None
        if calibrate and not is_calibrated(self.synthesizer.requested_settings):
            # now, and not in the workers, which would each do it again
            images = _Opened(self._raw)
            loaded = self.synthesizer
            self.synthesizer, self.calibration = calibrated(
                loaded, images, images.indices, lambda index: loaded.conditioner.condition(
                    images.label_of[index], loaded.model,
                    None if self._images is None else self._images[index]))
        self.expansion_ratio = expansion_ratio
        self.transform = transform
        self.with_origin = with_origin
        # in shared memory: persistent workers see a new epoch too, and count together
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._served = torch.zeros((), dtype=torch.int64).share_memory_()
        self._ahead: Ahead | None = None
        if ahead:
            maker = copy.copy(self)
            maker.transform = None  # the producer stops before it, and it may not be picklable
            self._ahead = Ahead(
                maker, len(self._raw), expansion_ratio, self._epoch, ahead,
                images_per_shard=max(1, self.synthesizer.batch_size // expansion_ratio))

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
        raw = {index: self._raw.sample(index)
               for index in dict.fromkeys(o.index for o in origins)}
        wanted = [o for o in origins if o.synthetic]
        self._count(len(wanted))
        made = iter(self._synthetic(wanted, raw))
        samples = []
        for origin in origins:
            seed = raw[origin.index]
            image = seed.image
            if origin.synthetic:
                origin, image = next(made)
            samples.append(completed(
                seed.finish(image), origin, self.transform, self.with_origin))
        return samples

    def make_values(
        self, images: Sequence[int], epoch: int
    ) -> dict[tuple[int, int], Tensor]:
        """All replicas of some seed images, made now.

        Args:
            images: numbers of the seed images.
            epoch: whose perturbation they get.

        Returns:
            By number of the seed image and of the replica: pixels (1, C, H, W) on the CPU, uint8
            in [0, 255] where the seed image has 8 bits, else float32 in [0, 1].
        """
        raw = {index: self._raw.sample(index) for index in images}
        wanted = [Origin(True, index, replica, epoch)
                  for index in images for replica in range(self.expansion_ratio)]
        images_and_labels = self._arguments(wanted, raw)
        made = self.synthesizer.synthesize_values(*images_and_labels)
        return {(origin.index, origin.replica): _stored(raw[origin.index].image, values)
                for origin, (_, values) in zip(wanted, made, strict=True)}

    def _synthetic(
        self, wanted: Sequence[Origin], raw: Mapping[int, Sample]
    ) -> list[tuple[Origin, Any]]:
        """The synthetic images, each with its origin, which may be older than was asked for."""
        ready: dict[int, tuple[Origin, Any]] = {}
        for place, origin in enumerate(wanted if self._ahead is not None else ()):
            assert self._ahead is not None
            found = self._ahead.take(origin.index, origin.replica, origin.epoch)
            if found is not None:
                seed = read_pixels(raw[origin.index].image)
                ready[place] = origin._replace(epoch=found[0]), seed.restore(found[1])
        lacking = [origin for place, origin in enumerate(wanted) if place not in ready]
        made = iter(self.synthesizer.synthesize(*self._arguments(lacking, raw)) if lacking else [])
        return [ready[place] if place in ready else (origin, next(made))
                for place, origin in enumerate(wanted)]

    def _arguments(self, wanted: Sequence[Origin], raw: Mapping[int, Sample]) -> tuple[Any, ...]:
        """What the synthesizer is called with; all of one epoch."""
        return (
            [raw[o.index].image for o in wanted],
            [raw[o.index].label for o in wanted],
            [o.replica + self.expansion_ratio * self._occurrences[o.index] for o in wanted],
            wanted[0].epoch,
            None if self._images is None else [self._images[o.index] for o in wanted],
        )

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
            if self._ahead is not None:
                logger.info("%s", self.freshness)
                self._ahead.forget()
        self._epoch.fill_(epoch)

    @property
    def freshness(self) -> Freshness | None:
        """How new the synthetic images were that this epoch has served; None without ``ahead``.

        At `set_epoch` it is logged, and counting begins anew.
        """
        return None if self._ahead is None else self._ahead.freshness(self.epoch)

    def wait(self, timeout: float | None = None) -> None:
        """Wait until an image is ready for every synthetic sample; at once without ``ahead``.

        Before the first epoch it saves training from making images itself.

        Args:
            timeout: in seconds; None: as long as it takes.

        Raises:
            TimeoutError: it has taken longer.
            GenerationError: the producer died again and again.
        """
        if self._ahead is not None:
            self._ahead.wait(timeout)

    def close(self) -> None:
        """Stop the producer and delete its images; from now on they are made on demand.

        It happens by itself when the dataset is deleted or the program ends.
        """
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None

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
        find_targets(self._raw.dataset)  # AttributeError, rather than reading every sample
        real = labels_of(self._raw)
        return real + [label for label in real for _ in range(self.expansion_ratio)]


def _stored(seed: Any, values: Tensor) -> Tensor:
    """Pixels as the pool keeps them: exactly what the seed image's type can tell apart."""
    values = values.cpu()
    return (values * 255).round().to(torch.uint8) if has_8_bits(seed) else values


class _Opened:
    """A dataset's images as `calibrated` takes them.

    Where the dataset keeps no list of its labels, some samples are read for theirs.

    Attributes:
        indices: the samples whose labels are known.
        labels: one per sample; None where it was not read.
        label_of: the label of each image that was opened, as training sees it.
    """

    def __init__(self, raw: Untransformed):
        self._raw = raw
        self.label_of: dict[int, Any] = {}
        self.indices: Sequence[int] = range(len(raw))
        try:
            self.labels = find_targets(raw.dataset)
        except AttributeError:
            generator = torch.Generator().manual_seed(0)
            drawn = torch.randperm(len(raw), generator=generator)[:_READ_FOR_LABELS]
            self.indices = sorted(drawn.tolist())
            self.labels = [None] * len(raw)
            for index in self.indices:
                self.labels[index] = raw[index][1]

    def open(self, index: int) -> Any:
        """The image before the dataset's own transform."""
        image, self.label_of[index] = self._raw[index]
        return image
