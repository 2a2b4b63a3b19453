"""Measure what "auto" means for the bundled backbone; writes ``weights/calibration``.

    python examples/calibrate_bundled.py --plot calibration.png
"""

import argparse
import warnings
from pathlib import Path

import torch

from dreamda_aug import Generator, calibrate
from dreamda_aug.bundled import WEIGHTS, FashionMNISTSample, fashion_mnist_judge
from dreamda_aug.calibration import calibration_key
from dreamda_aug.pictures import plot_calibration

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--per-class", type=int, default=4)
parser.add_argument("--replicas", type=int, default=2)
parser.add_argument("--plot", type=Path)
args = parser.parse_args()

torch.set_num_threads(1)
sample = FashionMNISTSample("train")
rows = [i for i in range(len(sample)) if i % 20 < args.per_class]
warnings.filterwarnings("ignore", message=".*was not calibrated")
generator = Generator("bundled", "recommended")
result = calibrate(
    sample.data[rows][:, None].float() / 255, torch.tensor(sample.targets)[rows],
    generator=generator, classifier=fashion_mnist_judge(), replicas=args.replicas,
    noise_scales=(0.0, 1.0, 2.0, 4.0), adherences=(1.0, 0.9, 0.8, 0.6),
    progress=lambda point: print(point, flush=True),
)
name = calibration_key(generator.requested_settings, generator.backbone) + ".json"
result.save(WEIGHTS / "calibration" / name)
print(f"chosen: noise_scale={result.noise_scale}, adherence={result.adherence}")
if args.plot:
    plot_calibration(result, args.plot)
