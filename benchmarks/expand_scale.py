"""Planning and resuming a folder of 10,000 images takes seconds, and memory stays flat.

    python benchmarks/expand_scale.py --out benchmarks/results

Writes a folder of tiny images, expands it with a tiny random pixel model (what is measured is the
book-keeping, not the model), stops half-way, and goes on.
"""

import argparse
import json
import platform
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from dreamda_aug import AugmentedDataset, DreamDAugment, load_backbone
from dreamda_aug.expansion import Expansion, open_source, write_report

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--images", type=int, default=10_000)
parser.add_argument("--classes", type=int, default=20)
parser.add_argument("--ratio", type=int, default=2)
parser.add_argument("--batch-size", type=int, default=32)
parser.add_argument("--format", choices=("folder", "webdataset"), default="folder")
parser.add_argument("--out", type=Path)
args = parser.parse_args()


class HalfWay(Exception):
    """Stops a run as an interruption would."""


def write_images(root: Path) -> None:
    rng = np.random.default_rng(0)
    for number in range(args.images):
        folder = root / f"class{number % args.classes:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(256, size=(16, 16), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(folder / f"{number}.png")


def tiny_backbone():
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=1, layers_per_block=1, norm_num_groups=4,
        block_out_channels=(8, 16), down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    ).eval()
    return load_backbone(DDPMPipeline(unet, DDPMScheduler(clip_sample=False)), device="cpu")


def peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


torch.set_num_threads(1)
seconds, peak = {}, {}
with tempfile.TemporaryDirectory() as folder:
    root, out = Path(folder) / "train", Path(folder) / "out"
    write_images(root)
    augment = DreamDAugment(tiny_backbone(), "paper", steps=2, noise_scale=1.0, cache=None,
                            batch_size=args.batch_size)
    # one batch in advance: what the model itself needs is not what is measured
    Expansion(root, augment, 1, limit=args.batch_size).run(Path(folder) / "warm")
    peak["model"] = peak_mb()

    def timed(name: str, function):
        started = time.perf_counter()
        result = function()
        seconds[name] = round(time.perf_counter() - started, 2)
        peak[name] = peak_mb()
        print(f"{name}: {seconds[name]} s, peak {peak[name]} MB", flush=True)
        return result

    def plan() -> Expansion:
        return Expansion(open_source(root), augment, args.ratio, image_format=args.format)

    expansion = timed("plan", plan)

    def stop_half_way(progress) -> None:
        if progress.done >= progress.total / 2:
            raise HalfWay

    def first_half() -> None:
        try:
            expansion.run(out, progress=stop_half_way)
        except HalfWay:
            pass

    timed("first half", first_half)

    def resume_only() -> None:
        def stop(progress):
            raise HalfWay

        try:
            plan().run(out, progress=stop)
        except HalfWay:
            pass

    timed("plan and resume half-way, to the first batch", resume_only)
    summary = timed("second half, and merging", lambda: plan().run(out))
    assert summary.whole and summary.tally.made == args.images * args.ratio
    timed("the same command on the finished dataset", lambda: plan().run(out))
    timed("report", lambda: write_report(out))
    from torchvision.datasets import ImageFolder

    data = timed("from_folder", lambda: AugmentedDataset.from_folder(ImageFolder(root), out))
    assert len(data) == args.images * (args.ratio + 1)
    megabytes = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6

record = {
    "images": args.images, "ratio": args.ratio, "batch_size": args.batch_size,
    "format": args.format, "seconds": seconds, "peak_mb": peak,
    "peak_over_model_mb": max(peak.values()) - peak["model"], "output_mb": round(megabytes),
    "torch": torch.__version__, "machine": platform.machine(), "threads": 1,
}
print(json.dumps(record, indent=2))
if args.out:
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / f"expand_scale_{args.format}.json").write_text(json.dumps(record, indent=2) + "\n")
