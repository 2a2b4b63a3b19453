"""Sample from the bundled backbone and measure how close its samples are to real test images.

    python examples/evaluate_backbone.py --root data --out dreamda_aug/weights

Fréchet and kernel distance are taken on the features of the bundled judge (a small classifier of
the same data), so they compare only with the numbers beside them: real training images against
real test images, and blurred test images. Writes ``samples.png`` and ``evaluation.json``.
"""

import argparse
import json
import warnings
from pathlib import Path

import torch
from diffusers import DDIMPipeline, DDIMScheduler
from torchvision.datasets import FashionMNIST
from torchvision.transforms.v2 import functional as TF
from torchvision.utils import save_image

from dreamda_aug import load_backbone
from dreamda_aug.bundled import fashion_mnist_judge
from dreamda_aug.metrics.comparison import frechet_distance, kernel_distance, precision_recall
from dreamda_aug.metrics.features import classifier_features

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--root", type=Path, required=True, help="holds FashionMNIST/raw")
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--samples", type=int, default=2000)
parser.add_argument("--steps", type=int, default=50)
args = parser.parse_args()

backbone = load_backbone()
pipeline = DDIMPipeline(
    backbone.unet, DDIMScheduler.from_config(backbone.pipeline.scheduler.config))
pipeline.set_progress_bar_config(disable=True)
made = []
for start in range(0, args.samples, 100):
    arrays = pipeline(100, torch.Generator().manual_seed(start), num_inference_steps=args.steps,
                      output_type="np").images
    made.append(torch.from_numpy(arrays).permute(0, 3, 1, 2))
    print(f"{start + 100} of {args.samples} samples", flush=True)
made = torch.cat(made)
save_image(made[:100], args.out / "samples.png", nrow=20, padding=1)

features = classifier_features(fashion_mnist_judge())
sets = {
    "samples": made,
    "real training images": FashionMNIST(args.root, train=True).data[: args.samples, None] / 255,
}
test = FashionMNIST(args.root, train=False).data[:, None].float() / 255
sets["blurred test images"] = TF.gaussian_blur(test[: args.samples], 5, 1.0)
reference = features(test[args.samples :])
record = {"samples": args.samples, "steps": args.steps, "reference": "test images not blurred",
          "features": "bundled judge, 576-d", "results": {}}
warnings.simplefilter("ignore")  # the sample is small; that is what the real row is there for
for name, images in sets.items():
    f = features(images)
    pr = precision_recall(reference[: args.samples], f)
    record["results"][name] = {
        "frechet_distance": round(frechet_distance(reference, f), 2),
        "kernel_distance": round(kernel_distance(reference, f).mean, 3),
        "precision": round(pr.precision, 3), "recall": round(pr.recall, 3),
    }
    print(name, record["results"][name], flush=True)
(args.out / "evaluation.json").write_text(json.dumps(record, indent=2) + "\n")
