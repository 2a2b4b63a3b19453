"""What a transform keeps that sees no label: the bundled model without a class, beside with one.

    python -m benchmarks.label_free

Fashion-MNIST test images that the model has never seen, judged by the classifier that comes with
the package. ``dreamda_aug.generation.dials.WITHOUT_LABELS`` is chosen from these rows.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import RESULTS
from benchmarks.common.provenance import commit, machine_and_torch
from dreamda_aug import Synthesizer
from dreamda_aug.bundled import CLASSES, FashionMNISTSample, fashion_mnist_judge
from dreamda_aug.calibration.judge import given_judge
from dreamda_aug.calibration.search import Measurement

# Name -> strength, replay, noise scale.
LABELED = {"with its class, as calibrated": (0.85, 0.0, 1.0)}
LABEL_FREE = {
    "without a class, the same dials": (0.85, 0.0, 1.0),
    **{f"replay {r:g}, strength {s:g}, noise {n:g}": (s, r, n) for s, r, n in (
        (0.5, 1.0, 1.0), (1.0, 1.0, 1.0), (0.7, 1.0, 2.0), (0.7, 1.0, 4.0), (0.1, 0.0, 1.0),
        (0.2, 0.0, 1.0), (0.3, 0.0, 1.0), (0.5, 0.0, 1.0), (0.2, 0.0, 0.0), (0.3, 0.0, 0.0))},
}


def measure(per_class: int, expansion_ratio: int) -> list[dict]:
    """A row for each setting: class kept, distance from the seed image, diversity."""
    data = FashionMNISTSample("test")
    rows = [i for i in range(len(data)) if i % (len(data) // len(CLASSES)) < per_class]
    images, labels = data.data[rows][:, None].float() / 255, torch.tensor(data.targets)[rows]
    found = []
    for settings, conditions in ((LABELED, [CLASSES[label] for label in labels]),
                                 (LABEL_FREE, None)):
        for name, (strength, replay, noise_scale) in settings.items():
            synthesizer = Synthesizer(
                "bundled", cache=None, strength=strength, replay=replay, noise_scale=noise_scale,
                guidance_scale=1.0 if conditions is None else 2.0)
            measurement = Measurement(synthesizer.sampler, images, conditions,
                                      given_judge(fashion_mnist_judge(), labels), expansion_ratio)
            point, _ = measurement.look(synthesizer.settings)
            found.append({"name": name, **asdict(point)})
            print(table(found[-1:], head=len(found) == 1), end="", flush=True)
    return found


def table(rows: list[dict], head: bool = True) -> str:
    """Rows in Markdown."""
    lines = ["| setting | class kept | distance | diversity |", "|---|---|---|---|"] if head else []
    return "\n".join([*lines, *(
        f"| {row['name']} | {row['agreement']:.1%} | {row['distance']:.3f} "
        f"| {row['diversity']:.3f} |" for row in rows), ""])


def main() -> None:
    """Measure, and write JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.label_free", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-class", type=int, default=10, help="seed images")
    parser.add_argument("--expansion-ratio", type=int, default=2, help="replicas of each")
    parser.add_argument("--out", type=Path, default=RESULTS / "label_free.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.per_class, args.expansion_ratio)
    args.out.write_text(json.dumps({
        "machine": machine_and_torch("cpu"), "commit": commit(), "images": found[0]["images"],
        "expansion_ratio": args.expansion_ratio, "settings": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
