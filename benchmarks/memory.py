"""Peak memory of a long expansion grows with the batch, not with the dataset.

    python benchmarks/memory.py --out benchmarks/results

Goes through an `AugmentedDataset` of 1,000 seed images and K = 5 on the bundled backbone, with a
cache on disk, and notes the process's peak memory on the way.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader, TensorDataset

from dreamda_aug import AugmentedDataset, DreamDAugment

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--images", type=int, default=1000)
parser.add_argument("--ratio", type=int, default=5)
parser.add_argument("--steps", type=int, default=4, help="few: memory does not depend on them much")
parser.add_argument("--batch-sizes", type=int, nargs="+", default=[16, 64])
parser.add_argument("--out", type=Path)
args = parser.parse_args()

torch.set_num_threads(1)
torch.manual_seed(0)
data = TensorDataset(torch.rand(args.images, 1, 28, 28), torch.zeros(args.images).long())
results = []
for batch_size in args.batch_sizes:  # rising, since the peak never falls
    with tempfile.TemporaryDirectory() as cache:
        augment = DreamDAugment(preset="fast", steps=args.steps, noise_scale=1.0, cache=cache,
                                batch_size=batch_size)
        loader = DataLoader(AugmentedDataset(data, augment, args.ratio).synthetic, batch_size)
        started, peaks = time.perf_counter(), []
        for number, _ in enumerate(loader):
            if number % max(1, len(loader) // 5) == 0:
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        results.append({"batch_size": batch_size, "peak_mb_on_the_way": peaks,
                        "inversions": augment.generator.inversions,
                        "seconds": round(time.perf_counter() - started)})
        print(results[-1], flush=True)
if args.out:
    args.out.mkdir(parents=True, exist_ok=True)
    record = {"images": args.images, "ratio": args.ratio, "results": results}
    (args.out / "memory.json").write_text(json.dumps(record, indent=2) + "\n")
