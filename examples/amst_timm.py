"""AMST around a timm model, with the stages run by ``SelfTraining``.

    pip install timm
    python examples/amst_timm.py
    python examples/amst_timm.py --model vit_tiny_patch16_224 --pretrained   # needs a download

Bundled Fashion-MNIST images: 5 labeled per class, the others in the pool. About a minute on two
cores with the default model. With --checkpoint FILE, the same command resumes.
"""

import argparse

import timm
import torch
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import v2

from dreamda_aug.amst import AMSTWrapper, RunPlan, SelfTraining, StrongView, VotingRule
from dreamda_aug.bundled import CLASSES, FashionMNISTSample


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="test_resnet", help="name of a timm model")
    parser.add_argument("--pretrained", action="store_true")
    parser.add_argument("--checkpoint", help="file to save to and to resume from")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    torch.manual_seed(0)
    model = timm.create_model(
        args.model, pretrained=args.pretrained, in_chans=1, num_classes=len(CLASSES)
    )
    # timm states the side that a model was made for; models without attention take any.
    side = model.pretrained_cfg["input_size"][-1] if "vit" in args.model else 32
    transform = v2.Compose(
        [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Resize(side, antialias=True)]
    )
    train = FashionMNISTSample("train", transform=transform)
    by_class = [[i for i, label in enumerate(train.targets) if label == c] for c in range(10)]
    labeled = [i for places in by_class for i in places[:5]]
    pool = [i for places in by_class for i in places[5:]]

    strong = StrongView(magnitude=0.5, cutout=0.3)
    wrapper = AMSTWrapper(model, strong=strong, voting=VotingRule(confidence_threshold=0.8))
    backbone_lr = 2e-4 if args.pretrained else 2e-3
    optimizer = torch.optim.AdamW(
        wrapper.parameter_groups(lr=2e-3, backbone_lr=backbone_lr), weight_decay=1e-3
    )
    # A new cosine cycle every epoch: labels are made when the learning rate is low.
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=80)
    training = SelfTraining(
        wrapper,
        Subset(train, labeled),
        Subset(train, pool),
        optimizer,
        scheduler=scheduler,
        plan=RunPlan(pretraining_epochs=2, epochs=2, steps_per_epoch=80),
        truth=[train.targets[i] for i in pool],
    )
    for report in training.run(checkpoint=args.checkpoint):
        print(
            f"epoch {report.epoch}: {report.accepted} of {report.images} accepted, "
            f"{report.accuracy:.1%} of them right"
        )

    classifier = wrapper.to_classifier().eval()
    right = 0
    test = FashionMNISTSample("test", transform=transform)
    with torch.no_grad():
        for images, labels in DataLoader(test, batch_size=100):
            right += (classifier(images).argmax(1) == labels).sum().item()
    print(f"{args.model}: test accuracy {right / len(test):.3f}")


if __name__ == "__main__":
    main()
