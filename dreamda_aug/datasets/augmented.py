"""`AugmentedDataset`: real and synthetic samples together."""

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from dreamda_aug.arguments import checked, whole
from dreamda_aug.calibration.automatic import calibrated, looks_at_images
from dreamda_aug.datasets.parts import Origin, RealAndSynthetic
from dreamda_aug.datasets.prefetch import Freshness, Prefetcher, Replicas
from dreamda_aug.datasets.stored import StoredDataset
from dreamda_aug.generation.dials import Calibration
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.dataset_reader import find_targets, occurrences
from dreamda_aug.inputs.pixels import Pixels
from dreamda_aug.inputs.samples import SeedImage

logger = logging.getLogger(__name__)

# Samples of a dataset without a list of labels that are read before it is calibrated on.
_READ_FOR_LABELS = 512


class AugmentedDataset(RealAndSynthetic):
    """A dataset of N real samples and K synthetic replicas of each: N·(K + 1) samples.

    Samples 0 to N - 1 are the real ones; sample N + i·K + k is replica k of image i. With
    ``replace`` there are N samples: sample i is image i, or with this probability a replica of it.

    Replica k of image i in epoch e is the same picture alone, in any batch and in any worker.
    Synthetic images are made from the *untransformed* base image; the base dataset's own
    ``transform`` runs after generation. A sample that occurs several times, as in ``Subset(data,
    [0, 0])``, gets different replicas each time; equal images under different indices get equal
    ones.

    ``DataLoader`` fetches whole batches (``__getitems__``), so the diffusion model runs in batches
    too. ``classes``, ``class_to_idx`` and ``targets`` are those of the base dataset. If the
    synthesizer has no ``class_names``, the dataset's ``classes`` name the labels, unless a
    ``target_transform`` changes them.

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
        calibrate: whether to calibrate dials that are None on a sample of the dataset now, once:
            the result is stored beside the cache. False takes what `calibrate` found, or mild
            defaults.
        prefetch_epochs: 0 to make synthetic images on demand. With N >= 1, a background process
            makes them up to N epochs ahead, and stores them in the temporary folder (``$TMPDIR``;
            up to N + 2 epochs of images). An image that is not ready is served from the newest
            epoch that is, or made on demand if there is none. See `wait`, `freshness` and `close`.
        replace: probability that a sample is replaced by a replica, in [0, 1], or None for real and
            synthetic samples together. The synthesizer's ``rng_seed``, the epoch and the index
            determine which samples are replaced, and by which of the K replicas of epoch 0. With
            ``prefetch_epochs`` each replica is made once, and kept.

    Attributes:
        real: the N real samples, a ``Subset``; not with ``replace``.
        synthetic: the N·K synthetic ones, a ``Subset``; not with ``replace``.
        epoch: the current epoch; see `set_epoch`.
        calibration: the calibration of dials that were None, or None if there were none.

    Raises:
        ValueError: an argument breaks its rule, samples are not ``(image, label)``, an image is
            none that `read_pixels` takes, a label is no class where the model needs one, or there
            is no caption for an image.
        TypeError: the dataset is not map-style, or holds boxes, masks or the like; or, with
            ``prefetch_epochs``, cannot be sent to a process.
    """

    _is_live = True
    from_folder = StoredDataset
    """Real samples, and synthetic ones that `expand` wrote; loads no diffusion model."""

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
        prefetch_epochs: int = 0,
        replace: float | None = None,
    ):
        self.expansion_ratio = whole("expansion_ratio", expansion_ratio, 1)
        prefetch_epochs = whole("prefetch_epochs", prefetch_epochs, 0)
        synthesizer = as_synthesizer(synthesizer)
        super().__init__(dataset, transform, with_origin, replace, synthesizer.rng_seed,
                         synthesizer.conditioner.class_names)
        self._set_replicas([range(self.expansion_ratio)] * len(self._images))
        self._occurrences = occurrences(dataset)
        self.synthesizer = synthesizer.with_class_names(self._images.names)
        captions = self.synthesizer.conditioner.captions
        self._captions = None if captions is None else captions.images(
            self._images.file_names, len(self._images))
        self.calibration: Calibration | None = None
        if calibrate and looks_at_images(self.synthesizer):
            # now, and not in the workers, which would each do it again
            self._calibrate()
        self._prefetcher: Prefetcher | None = None
        if prefetch_epochs:
            maker = copy.copy(self)
            maker.transform = None  # the producer stops before it, and it may not be picklable
            epoch, ahead = self._epoch, prefetch_epochs
            if replace is not None:  # there are no others than those of epoch 0
                epoch, ahead = torch.zeros_like(epoch).share_memory_(), 0
            self._prefetcher = Prefetcher(
                maker._make_replicas, len(self._images),
                max(1, self.synthesizer.batch_size // self.expansion_ratio), epoch, ahead)

    def _calibrate(self) -> None:
        conditioner, model = self.synthesizer.conditioner, self.synthesizer.model
        indices: Sequence[int] = range(len(self._images))
        if find_targets(self._dataset) is None:
            drawn = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))
            indices = sorted(drawn[:_READ_FOR_LABELS].tolist())
        part = self._images.subset(indices)
        if not conditioner.needs_label(model):
            try:
                part = part.labeled()
            except ValueError:  # labels of another kind, which only training needs
                part = part.relabeled(None)
        self.synthesizer, self.calibration = calibrated(
            self.synthesizer, part, range(len(part)), lambda index: conditioner.condition(
                part.given_labels[index], model,
                None if self._captions is None else self._captions[indices[index]]))

    def _samples(self, origins: Sequence[Origin]) -> Iterator[tuple[Origin, Any]]:
        seeds = self._open(origin.index for origin in origins)
        found = [self._ready(origin, seeds[origin.index]) for origin in origins]
        made = self._make([each for each, ready in zip(origins, found) if not ready], seeds)
        for origin, ready in zip(origins, found):
            if ready is None:
                pixels, values = made.pop(0)
                ready = origin, pixels.restore(values)
            yield ready[0], seeds[origin.index].put_back(ready[1])

    def _ready(self, origin: Origin, seed: SeedImage) -> tuple[Origin, Any] | None:
        """A real image, or one of the pool with its epoch; or None, to make it now."""
        if not origin.synthetic:
            return origin, seed.image
        found = None if self._prefetcher is None else self._prefetcher.take(*origin[1:])
        return found and (origin._replace(epoch=found[0]), seed.pixels.restore(found[1]))

    def _make_replicas(self, images: Sequence[int], epoch: int) -> Replicas:
        """All replicas of some seed images, by their numbers."""
        wanted = [Origin(True, index, replica, epoch)
                  for index in images for replica in self._replicas[index]]
        return {(origin.index, origin.replica):
                (values.cpu() * 255).round().to(torch.uint8) if pixels.has_8_bits else values.cpu()
                for origin, (pixels, values) in zip(wanted, self._make(wanted, self._open(images)))}

    def _open(self, indices: Iterable[int]) -> dict[int, SeedImage]:
        return {index: self._images.open(index) for index in dict.fromkeys(indices)}

    def _make(
        self, origins: Sequence[Origin], seeds: Mapping[int, SeedImage]
    ) -> list[tuple[Pixels, Tensor]]:
        """Pixels of synthetic images of one epoch, made together, with those of their seeds."""
        conditioner = self.synthesizer.conditioner
        if not origins:
            return []
        if conditioner.class_names is None and conditioner.needs_label(self.synthesizer.model):
            self._images.check_names()
        return self.synthesizer.synthesize_values(
            [seeds[o.index].image for o in origins],
            [seeds[o.index].label for o in origins],
            [o.replica + self.expansion_ratio * self._occurrences[o.index] for o in origins],
            origins[0].epoch, self._captions and [self._captions[o.index] for o in origins])

    def set_epoch(self, epoch: int) -> None:
        before, freshness = self.epoch, self.freshness
        super().set_epoch(epoch)
        if self._prefetcher is not None and self.epoch != before:
            logger.info("%s", freshness)
            self._prefetcher.begin_epoch()

    @property
    def freshness(self) -> Freshness | None:
        """How new the synthetic images served in this epoch were; None without prefetching.

        `set_epoch` logs it and starts counting again.
        """
        return None if self._prefetcher is None else self._prefetcher.freshness(self.epoch)

    @checked
    def wait(self, timeout: float | None = None) -> None:
        """Wait until an image is ready for every synthetic sample; only with prefetching.

        Call it before the first epoch, so that training makes no images itself.

        Args:
            timeout: in seconds, or None for no limit.

        Raises:
            TimeoutError: the images were not ready in time.
            GenerationError: the background process died; `set_epoch` starts it again.
        """
        if self._prefetcher is not None:
            self._prefetcher.wait(timeout)

    def close(self) -> None:
        """Stop the background process and delete its images; later images are made on demand.

        This happens automatically when the dataset is deleted or the program ends.
        """
        if self._prefetcher is not None:
            self._prefetcher.close()
            self._prefetcher = None
