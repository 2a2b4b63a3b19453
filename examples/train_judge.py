"""Train the small Fashion-MNIST classifier that measures label agreement in `dreamda demo`.

    python examples/train_judge.py --root data --out dreamda_aug/weights

It learns from the training images from the 30,001st on, which the bundled model has never seen.
Also writes the few hundred images that come with the package. A minute on one CPU core.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchvision.datasets import FashionMNIST

from dreamda_aug.bundled import build_judge

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--root", type=Path, required=True, help="holds FashionMNIST/raw")
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--epochs", type=int, default=12)
args = parser.parse_args()

torch.manual_seed(0)
splits = {name: FashionMNIST(args.root, train=name == "train") for name in ("train", "test")}
sample = {}
for name, per_class in (("train", 20), ("test", 30)):
    labels = splits[name].targets
    chosen = torch.cat([(labels == c).nonzero()[:per_class, 0] for c in range(10)])
    sample[f"{name}_images"] = splits[name].data[chosen].contiguous()
    sample[f"{name}_labels"] = labels[chosen]
save_file(sample, args.out / "fashion_mnist_images.safetensors")

SEEN_BY_THE_MODEL = 30_000
images = splits["train"].data[SEEN_BY_THE_MODEL:, None].float() / 255
labels = splits["train"].targets[SEEN_BY_THE_MODEL:]
judge = build_judge().train()
steps = args.epochs * (len(images) // 128)
optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.01)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
for step in range(steps):
    if step % (len(images) // 128) == 0:
        order = torch.randperm(len(images))
    rows = order[step % (len(images) // 128) * 128 :][:128]
    batch = images[rows]
    batch = torch.where(torch.rand(len(batch), 1, 1, 1) < 0.5, batch.flip(3), batch)
    loss = F.cross_entropy(judge(batch), labels[rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
judge.eval()
with torch.no_grad():
    answers = torch.cat([judge(b[:, None].float() / 255).argmax(1)
                         for b in splits["test"].data.split(500)])
accuracy = (answers == splits["test"].targets).float().mean().item()
save_file(judge.state_dict(), args.out / "fashion_mnist_judge.safetensors")
print(f"test accuracy {accuracy:.4f}")
