"""A Lightning callback; the only module that imports Lightning."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lightning.pytorch.callbacks import Callback

from dreamda_aug.datasets.parts import RealAndSynthetic


class SetEpoch(Callback):
    """Calls ``set_epoch`` at the start of every training epoch, for fresh synthetic images.

    It finds `AugmentedDataset`, or a part of it, in the trainer's training loader, in a list, dict
    or ``CombinedLoader`` of loaders, and inside a ``Subset`` or ``ConcatDataset``.
    """

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Give every augmented dataset the trainer's current epoch."""
        for dataset in _augmented(trainer.train_dataloader):
            dataset.set_epoch(trainer.current_epoch)


def _augmented(found: Any) -> Iterator[RealAndSynthetic]:
    """The augmented datasets in a loader or a dataset, or in a collection of them."""
    inner: Iterable[Any] = ()
    if isinstance(found, RealAndSynthetic):
        yield found
    elif isinstance(found, Mapping | list | tuple):
        inner = found.values() if isinstance(found, Mapping) else found
    elif hasattr(found, "datasets") or hasattr(found, "dataset"):
        inner = getattr(found, "datasets", None) or [found.dataset]
    for each in inner:
        yield from _augmented(each)
