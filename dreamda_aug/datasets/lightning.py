"""A Lightning callback; the only module that imports Lightning."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch.callbacks import Callback

from dreamda_aug.datasets.origins import Part, RealAndSynthetic


class SetEpoch(Callback):
    """Gives every training epoch fresh synthetic images: calls ``set_epoch`` at its start.

    Finds `AugmentedDataset`, or a part of it, in the trainer's training loader or loaders, also
    inside a ``Subset`` or ``ConcatDataset``.
    """

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Tell every augmented dataset the trainer's current epoch."""
        loaders = trainer.train_dataloader
        for loader in loaders if isinstance(loaders, list | tuple) else [loaders]:
            for dataset in _augmented(getattr(loader, "dataset", None)):
                dataset.set_epoch(trainer.current_epoch)


def _augmented(dataset: Any) -> Iterator[RealAndSynthetic | Part]:
    if isinstance(dataset, RealAndSynthetic | Part):
        yield dataset
    elif hasattr(dataset, "datasets"):
        for part in dataset.datasets:
            yield from _augmented(part)
    elif hasattr(dataset, "dataset"):
        yield from _augmented(dataset.dataset)
