"""AMST as a PyTorch Lightning module, labeling fresh images batch by batch.

    pip install lightning
    python examples/amst_lightning.py

Bundled Fashion-MNIST images: 5 labeled per class, the others unlabeled. With a dataset that
makes synthetic images (``AugmentedDataset(...).synthetic``) in place of ``unlabeled`` nothing
else changes. Less than a minute on two cores.
"""

import lightning
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, Subset
from torchvision.transforms import v2

from dreamda_aug.amst import AMSTWrapper, StrongView, VotingRule
from dreamda_aug.bundled import CLASSES, FashionMNISTSample


class AMST(lightning.LightningModule):
    """Pretrains for some epochs, then trains with labels made for every batch.

    Args:
        classifier: images -> logits.
        pretraining_epochs: epochs of the first stage.
        lr: learning rate.
    """

    def __init__(self, classifier: nn.Module, pretraining_epochs: int, lr: float = 2e-3) -> None:
        super().__init__()
        strong = StrongView(magnitude=0.5, cutout=0.3)
        voting = VotingRule(confidence_threshold=0.8)
        self.wrapper = AMSTWrapper(classifier, strong=strong, voting=voting)
        self.pretraining_epochs, self.lr = pretraining_epochs, lr

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.wrapper(images)

    def training_step(self, batch: dict, _: int) -> torch.Tensor:
        images, targets = batch["labeled"]
        if self.current_epoch < self.pretraining_epochs:
            return self.wrapper.pretraining_loss(images, targets)
        synthetic, _ = batch["unlabeled"]
        losses = self.wrapper.losses(images, targets, synthetic)
        self.log("accepted_share", losses.accepted_share, prog_bar=True)
        return losses.total

    def validation_step(self, batch: list, _: int) -> None:
        images, targets = batch
        logits = self(images)
        self.log("loss", F.cross_entropy(logits, targets))
        self.log("accuracy", (logits.argmax(1) == targets).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> tuple[list, list]:
        groups = self.wrapper.parameter_groups(self.lr)
        optimizer = torch.optim.AdamW(groups, weight_decay=1e-3)
        # Labels are worth most where the learning rate has come down, at the end of pretraining.
        schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
            optimizer, self.pretraining_epochs, T_mult=2
        )
        return [optimizer], [schedule]


def small_cnn() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2), *block(32, 64),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, len(CLASSES)),
    )  # fmt: skip


def main() -> None:
    lightning.seed_everything(0)
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    train = FashionMNISTSample("train", transform=to_tensor)
    by_class = [[i for i, label in enumerate(train.targets) if label == c] for c in range(10)]
    labeled = Subset(train, [i for places in by_class for i in places[:5]])
    unlabeled = Subset(train, [i for places in by_class for i in places[5:]])
    steps, size = 30, 32
    loaders = {
        name: DataLoader(
            data,
            batch_size=size,
            sampler=RandomSampler(data, replacement=True, num_samples=steps * size),
        )
        for name, data in (("labeled", labeled), ("unlabeled", unlabeled))
    }
    model = AMST(small_cnn(), pretraining_epochs=6)
    trainer = lightning.Trainer(
        max_epochs=16, accelerator="auto", logger=False, enable_checkpointing=False,
        check_val_every_n_epoch=4, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, CombinedLoader(loaders, mode="max_size_cycle"))
    test = FashionMNISTSample("test", transform=to_tensor)
    trainer.validate(model, DataLoader(test, batch_size=100))
    classifier = model.wrapper.to_classifier()
    print(f"a plain {type(classifier).__name__} again: save it, export it, serve it")


if __name__ == "__main__":
    main()
