"""Calibrate a preset of the bundled model.

    python examples/calibrate_bundled.py --preset recommended --plot calibration.png

Writes ``weights/calibration``.
"""

import argparse
import warnings
from pathlib import Path

import torch

from dreamda_aug import Synthesizer, calibrate
from dreamda_aug.bundled import WEIGHTS, FashionMNISTSample, fashion_mnist_judge
from dreamda_aug.calibration import automatic
from dreamda_aug.generation.dials import calibration_path
from dreamda_aug.report.pictures import plot_calibration

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--preset", choices=["recommended", "fast"], default="recommended")
parser.add_argument("--per-class", type=int, default=4)
parser.add_argument("--expansion-ratio", type=int, default=2)
parser.add_argument("--plot", type=Path)
args = parser.parse_args()

torch.set_num_threads(1)
sample = FashionMNISTSample("train")
rows = [i for i in range(len(sample)) if i % 20 < args.per_class]
warnings.filterwarnings("ignore", message=".*was not calibrated")
synthesizer = Synthesizer("bundled", args.preset, cache=None)
result = calibrate(
    sample.data[rows][:, None].float() / 255, torch.tensor(sample.targets)[rows],
    conditions=[sample.classes[sample.targets[row]] for row in rows],
    synthesizer=synthesizer, classifier=fashion_mnist_judge(), expansion_ratio=args.expansion_ratio,
    **automatic.GRID,
    progress=lambda point: print(point, flush=True),
)
result.save(calibration_path(WEIGHTS, synthesizer.requested_settings, synthesizer.model))
print(result.summary())
if args.plot:
    plot_calibration(result, args.plot)
