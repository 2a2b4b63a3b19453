"""AMST in a plain PyTorch loop: few labeled images, and many unlabeled ones.

    python examples/amst_plain_loop.py

Takes 5 labeled images per class of the bundled Fashion-MNIST sample. Its other images stand in
for synthetic ones: AMST sees their pixels and never their labels. About a minute on two cores.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import v2

from dreamda_aug.amst import AMSTWrapper, StrongView, VotingRule, WeakView
from dreamda_aug.bundled import CLASSES, FashionMNISTSample


def tensors(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a split, (N, 1, 28, 28) in [0, 1], and their labels."""
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    images, labels = zip(*FashionMNISTSample(split, transform=to_tensor), strict=True)
    return torch.stack(images), torch.tensor(labels)


def small_cnn() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]

    return nn.Sequential(
        *block(1, 16), nn.MaxPool2d(2), *block(16, 32), nn.MaxPool2d(2), *block(32, 64),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, len(CLASSES)),
    )  # fmt: skip


@torch.no_grad()
def accuracy(classifier: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    classifier.eval()
    return (classifier(images).argmax(1) == labels).float().mean().item()


def train(step, parameters, steps: int) -> None:
    """``steps`` optimizer steps on whatever loss ``step()`` returns."""
    optimizer = torch.optim.AdamW(parameters, weight_decay=1e-3)
    # Labels are made at the end of this, so the learning rate has to come down first.
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = step()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


def main() -> None:
    torch.manual_seed(0)
    images, labels = tensors("train")
    test_images, test_labels = tensors("test")
    order = torch.cat([(labels == c).nonzero().squeeze(1) for c in range(10)]).view(10, -1)
    few, rest = order[:, :5].flatten(), order[:, 5:].flatten()
    real, targets = images[few], labels[few]
    synthetic = images[rest]

    def some(count: int, size: int = 32) -> torch.Tensor:
        return torch.randint(count, (size,))

    # For comparison: the same network on the labeled images alone.
    weak, strong = WeakView(), StrongView(magnitude=0.5, cutout=0.3)

    def labeled_alone() -> torch.Tensor:
        i = some(len(real), 64)
        return F.cross_entropy(plain(weak(real[i])), targets[i])

    plain = small_cnn()
    train(labeled_alone, [{"params": plain.parameters(), "lr": 2e-3}], steps=450)
    before = accuracy(plain, test_images, test_labels)
    print(f"labeled images alone: test accuracy {before:.3f}")

    # Stage 1: the auxiliary heads learn from the labeled images.
    voting = VotingRule(confidence_threshold=0.8)
    wrapper = AMSTWrapper(small_cnn(), weak=weak, strong=strong, voting=voting)

    def pretraining() -> torch.Tensor:
        i = some(len(real), 64)
        return wrapper.pretraining_loss(real[i], targets[i])

    train(pretraining, wrapper.parameter_groups(2e-3), steps=150)

    # Stages 2 and 3: they label the others, and the main head learns from what they accept.
    for number in range(2):
        pseudo_labels = wrapper.label(synthetic)
        accepted = pseudo_labels.mask
        right = (pseudo_labels.labels == labels[rest])[accepted].float().mean().item()
        print(f"round {number}: {accepted.float().mean():.0%} accepted, {right:.1%} of them right")

        def training(pseudo_labels=pseudo_labels) -> torch.Tensor:
            i, j = some(len(real)), some(len(synthetic))
            return wrapper.losses(
                real[i], targets[i], synthetic[j], pseudo_labels=pseudo_labels[j]
            ).total

        train(training, wrapper.parameter_groups(2e-3), steps=150)

    after = accuracy(wrapper.to_classifier(), test_images, test_labels)
    print(f"AMST:                  test accuracy {after:.3f}")


if __name__ == "__main__":
    main()
