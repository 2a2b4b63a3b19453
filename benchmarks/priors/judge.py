"""Trains the judge that knows the true labels of synthetic digits.

    python -m benchmarks.priors.judge --usps usps.npz --mnist FOLDER

It learns from all training images of USPS and of MNIST, since synthetic images lie between the
two. For USPS in inverse video it learns from both looks: a prior that has seen white digits on
black goes on making them. It measures how many labels are right, and gives "true labels" to the
arm of that name; no other arm sees it.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.transforms.v2 import functional as tvf

from benchmarks.accuracy.classifiers import small_cnn
from benchmarks.accuracy.tasks import TASKS, Images, ReadUSPS, read_idx
from benchmarks.accuracy.views import random_affine
from dreamda_aug.evaluation.training import class_accuracy

BATCH = 128


def main() -> None:
    """Train on both sets as they are, and then with half of the images in inverse video."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--usps", type=Path, required=True, help="npz file")
    parser.add_argument("--mnist", type=Path, required=True, help="folder of the idx files")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--steps", type=int, default=6000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    mnist, mnist_test = (tvf.resize(each.pixels, [16, 16], antialias=True)
                         for each in read_idx(args.mnist))  # fmt: skip
    labels, test_labels = (each.labels for each in read_idx(args.mnist))
    for name in ("usps", "usps_inverse"):
        inverse = name == "usps_inverse"
        usps, usps_test = ReadUSPS(inverse)(args.usps)
        judge = train(usps, Images(mnist, labels), args.steps, both_looks=inverse)
        found = [class_accuracy(judge, part.pixels, part.labels)
                 for part in (usps_test, Images(mnist_test, test_labels))]
        print("{}: USPS test {:.4f}, MNIST test {:.4f}".format(name, *found), flush=True)
        save_file(judge.state_dict(), args.out / f"{name}_judge.safetensors")


def train(usps: Images, mnist: Images, steps: int, both_looks: bool) -> torch.nn.Module:
    """The task's classifier; half of each batch is of each set, and inverted if ``both_looks``."""
    torch.manual_seed(0)
    judge = small_cnn(TASKS["usps"], None).train()
    optimizer = torch.optim.AdamW(judge.parameters(), 3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        picks = [torch.randint(len(part), (BATCH // 2,)) for part in (usps, mnist)]
        batch = torch.cat([part.pixels[rows] for part, rows in zip((usps, mnist), picks)])
        target = torch.cat([part.labels[rows] for part, rows in zip((usps, mnist), picks)])
        images = random_affine(batch.float() / 255)
        if both_looks:
            inverted = torch.rand(len(images), 1, 1, 1) < 0.5
            images = torch.where(inverted, 1 - images, images)
        loss = F.cross_entropy(judge(images), target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return judge.eval()


if __name__ == "__main__":
    main()
