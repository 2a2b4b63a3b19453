"""Fresh images every epoch, and a warning where an epoch is served twice."""

import warnings

import pytest
import torch
from torch.utils._pytree import tree_leaves
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset

from dreamda_aug import AugmentedDataset, Synthesizer


@pytest.fixture
def data(bundled):
    synthesizer = Synthesizer(bundled, "paper", steps=2, strength=1.0, cache=None, noise_scale=2.0)
    images = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    return AugmentedDataset(TensorDataset(images, torch.arange(3)), synthesizer, 2)


def test_an_epoch_that_is_served_twice_is_a_warning(data):
    loader = DataLoader(data.synthetic, batch_size=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(loader)
        data.set_epoch(1)
        list(loader)
    with pytest.warns(UserWarning, match="epoch 1 are being served a second time; call set_epoch"):
        list(loader)


@pytest.mark.parametrize("wrap", [
    lambda loader, _: [DataLoader([0]), DataLoader(ConcatDataset([loader.dataset]), 6)],
    lambda loader, combined: combined({"a": [loader], "b": DataLoader([0])}, "max_size"),
], ids=["list", "CombinedLoader"])
def test_the_lightning_callback_gives_every_epoch_fresh_images(data, wrap):
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.utilities import CombinedLoader

    from dreamda_aug.datasets.lightning import SetEpoch

    seen = []

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def training_step(self, batch):
            seen.append(next(each for each in tree_leaves(batch) if each is not None
                             and each.ndim == 4))
            return self.layer(torch.ones(1, 1)).sum()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[SetEpoch()], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer.fit(Model(), wrap(DataLoader(data.synthetic, batch_size=6), CombinedLoader))
    assert data.epoch == 1
    assert (seen[0] != seen[1]).any()
