"""The parts of ``python -m benchmarks.gpu``, each a process: ``python -m benchmarks.gpu.parts``."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common.architectures import build, sample_images
from benchmarks.common.measurement import count_flops, matrix_product_rate, measure
from benchmarks.gpu.__main__ import LIMITS, ROOT
from benchmarks.gpu.cifar10 import train_prior
from benchmarks.speed.bench import Bench
from dreamda_aug import PRESETS, AugmentedDataset, BottleneckNoise, Settings, Synthesizer

DTYPES = ("float32", "float16", "bfloat16")
# The tests that ask a GPU something, and are quick there.
TESTS = ("tests/method", "tests/models/test_schedules.py", "tests/models/test_model_kinds.py",
         "tests/benchmarks/families")
# One expansion of 200 images; each process makes its share of the batches.
EXPAND = """
import sys
from dreamda_aug import Synthesizer, expand
made = expand("bundled", sys.argv[1], Synthesizer("bundled", "fast", cache=None,
              device=sys.argv[2]), int(sys.argv[3]), limit=int(sys.argv[4]),
              shard=(int(sys.argv[5]), int(sys.argv[6])))
"""


def main(arguments: list[str] | None = None) -> None:
    """Run one part and write what it found."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu.parts", description=__doc__)
    parser.add_argument("part", choices=list(LIMITS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--seconds", type=float, default=60, help="that it may take")
    for name in ("--out", "--work", "--data"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args(arguments)
    device, tiny = args.device, args.tiny
    found: Any
    if args.part == "exactness":
        found = {"images": exactness(device, tiny), "tests": tests(tiny)}
    elif args.part == "sd15_compiled":
        found = compiled(device, tiny)
    elif args.part == "cifar10":
        # the rest of the time is for reading the images and writing the model
        found = train_prior(args.data, args.work, args.out, device, (args.seconds - 45) / 60, tiny)
    elif args.part == "workers":
        found = {"expand": expand_twice(device, tiny), **spawn_workers(device, tiny)}
    else:
        found = speed(args.part, device, tiny, args.work)
    (args.work / f"{args.part}.json").write_text(json.dumps(found))


def speed(arch: str, device: str, tiny: bool, work: Path) -> dict[str, Any]:
    """Beside diffusers' pipelines: rows a second, share of the matrix-product rate."""
    from benchmarks.speed.__main__ import main as measure_speed

    if tiny:
        arch, sizes = "toy-sd" if arch == "sd15" else f"tiny-{arch}", ["1"]
    else:
        sizes = ["1", "4", "16"] if arch == "sd15" else ["1", "4"]
    # the released run takes 400 rows of one image: for SD 1.5 alone
    presets = ["--presets", "official"] if arch == "sd15" else ["--released-steps", "3"]
    return measure_speed([
        "--arch", arch, "--device", device, "--dtype", "float32" if tiny else "bfloat16",
        "--steps", "3" if tiny else "10", "--rounds", "1" if tiny else "2", "--batch-sizes",
        *sizes, "--replicas", "2" if tiny else "10", *presets,
        *([] if arch == "sd15" else ["--presets", "official"]), "--no-switches",
        "--out", str(work)])


def compiled(device: str, tiny: bool) -> list[dict[str, Any]]:
    """Samples of Stable Diffusion 1.5, its repeated blocks compiled and not."""
    model = build("toy-sd" if tiny else "sd15", device,
                  dtype=torch.float32 if tiny else torch.bfloat16)
    rate, flops = matrix_product_rate(model.device, model.dtype), count_flops(model)
    found = [{"batch_size": size, "compiled": False} for size in ((2,) if tiny else (16, 4, 1))]
    found += [{**row, "compiled": True} for row in found]
    for row in found:
        if row["compiled"]:  # the same call again compiles nothing
            model.denoiser.compile_repeated_blocks(backend="eager" if tiny else "inductor")
        bench = Bench(model, settings(tiny), row["batch_size"], 1, 1)
        synthesizer = bench.synthesizer()
        started = time.perf_counter()
        bench.run(synthesizer)
        row["first_seconds"] = time.perf_counter() - started
        before = model.hook.encoder_rows, model.hook.decoder_rows
        seconds = median(measure(lambda b=bench, s=synthesizer: b.run(s), model.device).seconds
                         for _ in range(1 if tiny else 3))
        encoder, decoder = ((now - then) / (1 if tiny else 3) for now, then in zip(
            (model.hook.encoder_rows, model.hook.decoder_rows), before, strict=True))
        row |= {"seconds": seconds, "rows_per_second": decoder / seconds,
                "share_of_matrix_product_rate":
                    (encoder * flops.encoder + decoder * flops.decoder) / seconds / rate}
    return found


def expand_twice(device: str, tiny: bool) -> dict[str, float]:
    """Seconds of one process that expands, and of two that share the same folder."""
    found = {}
    for processes in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", EXPAND, f"{folder}/out", device,
                       *(("1", "2") if tiny else ("10", "20"))]
            started = time.perf_counter()
            running = [subprocess.Popen([*command, str(number), str(processes)], cwd=ROOT)
                       for number in range(processes)]
            codes = [process.wait() for process in running]
            found[f"seconds_{processes}"] = time.perf_counter() - started
            found[f"codes_{processes}"] = codes
    return found


def settings(tiny: bool, **dials: Any) -> Settings:
    """The released run's settings, with fewer steps."""
    return replace(PRESETS["official"], steps=3 if tiny else 20, noise_scale=1.0,
                   perturbation=BottleneckNoise(), **dials)


def exactness(device: str, tiny: bool) -> list[dict[str, Any]]:
    """In each dtype: does replay without noise lead back, and is a sample the same in a batch?"""
    found = []
    for name in ("float32",) if tiny else DTYPES:
        model = build("toy-sd" if tiny else "sd15", device, dtype=getattr(torch, name))
        images = sample_images(model, 4)
        # without guidance the model is asked just what it was asked for the record
        quiet = Synthesizer(model, settings(tiny, guidance_scale=1.0), noise_scale=0.0,
                            cache=None).sampler
        back = quiet.generate(quiet.invert(images))
        with torch.no_grad():
            round_trip = model.decode(model.encode(images))
        noisy = Synthesizer(model, settings(tiny), cache=None).sampler
        trajectories = noisy.invert(images)
        together = noisy.generate(trajectories, ["a photo"] * 4)
        alone = torch.cat([noisy.generate([each], ["a photo"], [i])
                           for i, each in enumerate(trajectories)])
        found.append({
            "dtype": name,
            "replay_max_difference": (back - round_trip).abs().max().item(),
            "alone_or_in_a_batch_max_difference": (together - alone).abs().max().item(),
            "alone_or_in_a_batch_mean_difference": (together - alone).abs().mean().item(),
            "guard_events": dict(noisy.watch.events),
        })
        del model, quiet, noisy
    return found


def spawn_workers(device: str, tiny: bool) -> dict[str, Any]:
    """Spawned workers, and a process that makes images ahead: do they make the same images?"""
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.zeros(6, dtype=torch.int64))

    def made(**options: Any) -> AugmentedDataset:
        synthesizer = Synthesizer(preset="paper", steps=4, cache=None, device=device, batch_size=12)
        return AugmentedDataset(data, synthesizer, 2, calibrate=False, **options)

    def batches(dataset: AugmentedDataset, workers: int) -> torch.Tensor:
        loader = DataLoader(dataset.synthetic, 4, num_workers=workers,
                            multiprocessing_context="spawn" if workers else None)
        return torch.cat([batch[0] for batch in loader])

    plain = batches(made(), 0)
    ahead = made(prefetch_epochs=1)
    ahead.wait(300)
    from_pool = batches(ahead, 0)
    told = str(ahead.freshness)
    ahead.close()
    from_workers = batches(made(), 1 if tiny else 2)
    return {"workers_max_difference": (from_workers - plain).abs().max().item(),
            "ahead_max_difference": (from_pool - plain).abs().max().item(), "freshness": told}


def tests(tiny: bool) -> dict[str, Any]:
    """Tests that load models onto the GPU, where there is one."""
    what = ["tests/method/test_schedule.py"] if tiny else [*TESTS, "-n", "8"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *what],
        cwd=ROOT, capture_output=True, text=True)
    return {"code": done.returncode, "output": done.stdout[-2000:]}


if __name__ == "__main__":
    main()
