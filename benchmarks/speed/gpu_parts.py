"""The parts of the plan for a GPU: ``python -m benchmarks.speed.gpu_parts PART --out FOLDER``."""

import argparse
import json
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.common.architectures import build, sample_images
from benchmarks.common.measurement import measure
from benchmarks.speed.bench import Bench
from benchmarks.speed.gpu_plan import LIMITS, ROOT
from benchmarks.speed.switches import COMPILE, compare
from dreamda_aug import PRESETS, AugmentedDataset, BottleneckNoise, Settings, Synthesizer
from dreamda_aug.generation.tensors import TensorSynthesizer

DTYPES = ("float32", "float16", "bfloat16")


def main(arguments: list[str] | None = None) -> None:
    """Run one part and write what it found."""
    parser = argparse.ArgumentParser("python -m benchmarks.speed.gpu_parts", description=__doc__)
    parser.add_argument("part", choices=list(LIMITS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args(arguments)
    kind, _, arch = args.part.partition("_")
    if kind == "speed":
        found = speed(("toy-sd" if arch == "sd15" else f"tiny-{arch}") if args.toy else arch,
                      args.device, args.toy, args.out)
    else:
        found = {"exactness": exactness, "memory": memory, "compile": compiled,
                 "spawn": spawn_workers, "tests": tests}[kind](args.device, args.toy)
    (args.out / f"{args.part}.result.json").write_text(json.dumps(found))


def speed(arch: str, device: str, toy: bool, out: Path) -> dict[str, Any]:
    """Beside diffusers' pipelines: rows, time, share of the matrix-product rate, energy."""
    from benchmarks.speed.__main__ import main as measure_speed

    record = measure_speed([
        "--arch", arch, "--device", device, "--dtype", "float32" if toy else "bfloat16", "--steps",
        "3" if toy else "10", "--rounds", "1" if toy else "2", "--batch-sizes",
        *(["1"] if toy else ["1", "8"]), "--replicas", "2" if toy else "10", "--presets",
        *(["official", "--released-steps", "3"] if toy else
          ["official", "recommended", "fast", "few"]), "--no-switches", "--out",
        str(out)])
    return {"targets": record["targets"]}


def settings(toy: bool, **dials: Any) -> Settings:
    """The released run's settings, with fewer steps."""
    return replace(PRESETS["official"], steps=3 if toy else 20, noise_scale=1.0,
                   perturbation=BottleneckNoise(), **dials)


def exactness(device: str, toy: bool) -> list[dict[str, Any]]:
    """In each dtype: does replay without noise lead back, and is a sample the same in a batch?"""
    found = []
    for name in ("float32",) if toy else DTYPES:
        model = build("toy-sd" if toy else "sd15", device, dtype=getattr(torch, name))
        images = sample_images(model, 4)
        # without guidance the model is asked just what it was asked for the record
        quiet = TensorSynthesizer(model, replace(settings(toy, guidance_scale=1.0),
                                                    noise_scale=0.0))
        back = quiet.generate(quiet.invert(images))
        with torch.no_grad():
            round_trip = model.decode(model.encode(images))
        noisy = TensorSynthesizer(model, settings(toy))
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


def memory(device: str, toy: bool) -> list[dict[str, Any]]:
    """Peak memory of one sample at batch size 1, with and without ``low_memory``."""
    found = []
    for low in (False, True):
        model = build("toy-sd" if toy else "sd15", device, low_memory=low)
        bench = Bench(model, settings(toy), batch_size=1, replicas=1, repeats=1)
        synthesizer = bench.synthesizer()
        bench.run(synthesizer)
        measured = measure(lambda b=bench, s=synthesizer: b.run(s), model.device)
        found.append({"low_memory": low, "peak_bytes": measured.peak_bytes,
                      "seconds": measured.seconds, "dtype": str(model.dtype)})
        del model, bench, synthesizer
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    return found


def compiled(device: str, toy: bool) -> dict[str, Any]:
    """torch.compile against eager: time, memory, difference."""
    model = build("toy-sd" if toy else "sd15", device)
    bench = Bench(model, settings(toy), 2 if toy else 8, 2, 1 if toy else 3,
                  compiled=model.compiled(backend="eager" if toy else "inductor"))
    return compare(bench, COMPILE[0])


def spawn_workers(device: str, toy: bool) -> dict[str, Any]:
    """Spawned workers, and a process that makes images ahead: do they make the same images?"""
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(images, torch.zeros(6))

    def made(**options: Any) -> AugmentedDataset:
        synthesizer = Synthesizer(preset="paper", steps=4, cache=None, device=device, batch_size=12)
        return AugmentedDataset(data, synthesizer, 2, calibrate=False, **options)

    def batches(dataset: AugmentedDataset, workers: int) -> torch.Tensor:
        loader = DataLoader(dataset.synthetic, 4, num_workers=workers,
                            multiprocessing_context="spawn" if workers else None)
        return torch.cat([batch[0] for batch in loader])

    plain = batches(made(), 0)
    ahead = made(ahead=1)
    ahead.wait(300)
    from_pool = batches(ahead, 0)
    told = str(ahead.freshness)
    ahead.close()
    return {"workers_max_difference": (batches(made(), 1 if toy else 2) - plain).abs().max().item(),
            "ahead_max_difference": (from_pool - plain).abs().max().item(), "freshness": told}


def tests(device: str, toy: bool) -> dict[str, Any]:
    """The test suite on a machine with a GPU, where models are loaded onto it by default."""
    what = ["tests/method/test_schedule.py"] if toy else ["tests", "-n", "12", "--timeout=300"]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}",
             *what], cwd=ROOT, capture_output=True, text=True)
        suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
        failed = [f"{case.get('classname')}.{case.get('name')}" for case in suite.iter("testcase")
                  if case.find("failure") is not None or case.find("error") is not None]
    return {**{name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors",
                                                          "skipped")},
            "failed": failed, "code": done.returncode, "said": done.stdout[-30000:]}


if __name__ == "__main__":
    main()
