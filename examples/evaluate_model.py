"""Sample from a class-conditional Fashion-MNIST model by guidance scale, and measure it.

    python examples/evaluate_model.py --root data --out dreamda_aug/weights

For each guidance scale: the share of samples that a judge puts into the requested class
(`dreamda_aug.bundled.fashion_mnist_judge`, which has not seen the images that the model was
trained on), Fréchet and kernel distance to real test images on the judge's features, precision and
recall. The distances compare only with the numbers beside them: real training images, as they are
and half of them mirrored (as of a model that was trained on mirrored images), and blurred test
images. Writes ``samples.png`` (a row for each class) and ``evaluation.json``.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets import FashionMNIST
from torchvision.transforms.v2 import functional as tvf
from torchvision.utils import save_image

from dreamda_aug import Synthesizer, load_model
from dreamda_aug.bundled import fashion_mnist_judge
from dreamda_aug.generation.sampler import Request
from dreamda_aug.metrics import (
    classifier_features,
    frechet_distance,
    kernel_distance,
    precision_recall,
)

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--root", type=Path, required=True, help="holds FashionMNIST/raw")
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--model", default="bundled")
parser.add_argument("--samples", type=int, default=1000, help="per guidance scale")
parser.add_argument("--steps", type=int, default=12)
parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5, 2.0, 3.0, 4.0])
args = parser.parse_args()

model = load_model(args.model)
labels = torch.arange(args.samples) % 10


def draw(guidance_scale: float) -> Tensor:
    """Samples from pure noise, one for each label."""
    sampler = Synthesizer(model, "samples", steps=args.steps, guidance_scale=guidance_scale,
                          cache=None).sampler
    grey = torch.full((1, model.channels, *model.image_size), 0.5)
    requests = [Request(0, label, replica=row) for row, label in enumerate(labels.tolist())]
    return sampler.synthesize(grey, requests).images.cpu()


judge = fashion_mnist_judge()
features = classifier_features(judge)
test = FashionMNIST(args.root, train=False).data[:, None].float() / 255
reference = features(test[args.samples :])
warnings.simplefilter("ignore")  # the sample is small, hence the row of real images


def measure(images: Tensor, requested: Tensor | None) -> dict[str, float]:
    """The figures of one set of images."""
    found = features(images)
    shares = precision_recall(reference[: args.samples], found)
    figures = {
        "frechet_distance": round(frechet_distance(reference, found), 2),
        "kernel_distance": round(kernel_distance(reference, found).mean, 3),
        "precision": round(shares.precision, 3), "recall": round(shares.recall, 3),
    }
    if requested is not None:
        kept = judge(images).argmax(1) == requested
        figures["asked_class"] = round(kept.float().mean().item(), 4)
    return figures


training = FashionMNIST(args.root, train=True)
first = slice(0, args.samples)
real = training.data[first, None] / 255
half = torch.cat([real[::2], real[1::2].flip(-1)])
results = {
    "real training images": measure(real, training.targets[first]),
    "half of them mirrored": measure(half, None),
    "blurred test images": measure(tvf.gaussian_blur(test[first], 5, 1.0), None),
}
for scale in args.guidance:
    made = draw(scale)
    results[f"guidance {scale:g}"] = measure(made, labels)
    print(f"guidance {scale:g}: {results[f'guidance {scale:g}']}", flush=True)
    if scale == 2.0:
        sheet = torch.cat([made[labels == label][:20] for label in range(10)])
        save_image(sheet, args.out / "samples.png", nrow=20, padding=1)
record = {"samples": args.samples, "steps": args.steps, "solver": "dpmsolver++",
          "reference": "test images behind the first ones", "features": "judge, 576-d",
          "results": results}
(args.out / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n")
