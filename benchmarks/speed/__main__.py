"""What a synthetic image costs: beside diffusers' own pipelines, and beside the released generator.

    python -m benchmarks.speed --arch tiny-sd --out benchmarks/results \\
        --page benchmarks/speed/throughput.md --docs docs/cost.md
    python -m benchmarks.speed --arch sd15 --dtype bfloat16 --out benchmarks/results       # a GPU

sd15, sdxl and sd3 are the architectures of Stable Diffusion 1.5, XL and 3 (medium) with random
weights; tiny-sd, tiny-sdxl and tiny-sd3 are narrow ones of the same make for a CPU; other names are
what load_model takes. All runs share one model in one process and take turns; ratios are between
runs of the same turn.

Beside ours run, on the same weights, scheduler, steps, strength and batch: the image-to-image
pipeline of diffusers (on pixels a plain DDIM loop) and its CycleDiffusionPipeline where it has one.
Presets run with their own steps, beside a plain loop with the cost structure of the authors'
released generator: 100 steps, one sample at a time, the source branch recomputed for each, 4
denoiser rows a step with guidance (2 without).
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import torch

from benchmarks.common.architectures import RANDOM, build
from benchmarks.common.measurement import count_flops, matrix_product_rate
from benchmarks.common.provenance import commit, machine
from benchmarks.speed.arms import FEW_STEPS, RELEASED_STEPS, arms
from benchmarks.speed.bench import Bench, plainly
from benchmarks.speed.page import FORMAT, write_docs, write_page
from benchmarks.speed.rounds import run_rounds
from benchmarks.speed.switches import COMPILE, SWITCHES, compare
from benchmarks.speed.targets import targets
from dreamda_aug import PRESETS, BottleneckNoise
from dreamda_aug.models.unet import UNetModel


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write what was asked for; the record of it all."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    diffusers.utils.logging.set_verbosity_error()
    record = measured(args)
    if args.out:
        keep(record, args)
        if args.page:
            write_page(args.out, args.page)
        if args.docs:
            write_docs(args.out, args.docs)
    return record


def keep(record: dict[str, Any], args: argparse.Namespace) -> None:
    """Write what is known so far."""
    args.out.mkdir(parents=True, exist_ok=True)
    name = Path(args.arch).name + ("_low_memory" if args.low_memory else "")
    (args.out / f"throughput_{name}.json").write_text(json.dumps(record, indent=2) + "\n")


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """All runs of one model; their record is kept after each round."""
    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    model = build(args.arch, args.device, args.low_memory, dtype)
    # the released run's settings; its absolute noise scale belongs to the weights of SD 1.5
    settings = replace(PRESETS["official"], steps=args.steps, noise_scale=1.0,
                       perturbation=BottleneckNoise())
    bench = Bench(model, settings, max(args.batch_sizes), max(args.replicas), args.repeats)
    rate = matrix_product_rate(model.device, model.dtype)
    record = {
        "format": FORMAT, "arch": args.arch, "low_memory": args.low_memory, "quick": args.quick,
        "random_weights": args.arch in RANDOM, "commit": commit(),
        "machine": machine(model.device), "device": model.device.type,
        # how many processes wanted a core: above the number of cores, times prove nothing
        "load": [os.getloadavg()[0]], "cores": os.cpu_count(),
        "dtype": str(model.dtype).removeprefix("torch."), "torch": torch.__version__,
        "diffusers": diffusers.__version__, "steps": args.steps,
        "released_steps": args.released_steps,
        "steps_run": len(bench.synthesizer().schedule), "rounds": 0,
        "replicas": args.replicas, "guided": model.guidable,
        "image_size": list(model.image_size), "matrix_product_rate": rate,
        "parameters": sum(p.numel() for p in model.denoiser.parameters()),
    }  # fmt: skip
    say(f"{args.arch} on {record['machine']}, {record['dtype']}, {record['steps_run']} steps run")
    record |= {"exactness": None, "switches": []}
    with tempfile.TemporaryDirectory() as cache:
        runs = list(arms(bench, Path(cache), args.batch_sizes, args.replicas, args.presets,
                         args.released_steps))
        for rows in run_rounds(runs, args.rounds, model.device, count_flops(model), rate):
            record |= {"arms": rows, "targets": targets(rows), "rounds": record["rounds"] + 1}
            say(f"round {record['rounds']} of {args.rounds}")
            if args.out:
                keep(record, args)
    record["exactness"] = exactness(bench) if isinstance(model, UNetModel) else None
    record["switches"] = [] if args.no_switches else switches(bench, args)
    record["load"].append(os.getloadavg()[0])
    for target in record["targets"]:
        say(f"{target['what']}: {target['median']:.2f}× ({target['low']:.2f} to "
            f"{target['high']:.2f}), goal {'<=' if target['ceiling'] else '>='} {target['goal']}×")
    return record


def exactness(bench: Bench) -> dict[str, float]:
    """Largest difference of a pixel from the plain loop's image, from the same seeds."""
    images, requests = bench.work(1)
    synthesizer, rows = bench.synthesizer(), 4 if bench.model.guidable else 2
    with torch.no_grad():
        plain = plainly(synthesizer, images, requests[0], rows)
        kept = synthesizer.synthesize(images, requests).images
        with patch("dreamda_aug.generation.sampler.STORAGE_DTYPE", torch.float32):
            unrounded = synthesizer.synthesize(images, requests).images
    return {"max_difference": (kept - plain).abs().max().item(),
            "max_difference_in_float32": (unrounded - plain).abs().max().item()}


def switches(bench: Bench, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Each switch, on and off."""
    found = [compare(bench, switch) for switch in SWITCHES]
    if not args.no_compile:
        compiled = bench.model.compiled(backend=args.compile_backend)
        bench = replace(bench, compiled=compiled)
    return [*found, *(compare(bench, switch) for switch in COMPILE)]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with defaults that depend on the device filled in."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--arch", default="bundled", help=f"{', '.join(RANDOM)}, bundled, ...")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--steps", type=int, help="of what is compared with diffusers' pipelines, "
                        "0.8 of them are run; default: 20")
    parser.add_argument("--released-steps", type=int, help="of the released run; with fewer than "
                        "its 100, for a quick try, presets are cut alike")
    parser.add_argument("--batch-sizes", type=int, nargs="+", help="default: 1 8 32")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 10], help="K")
    parser.add_argument("--presets", nargs="+", default=[*PRESETS, FEW_STEPS],
                        choices=[*PRESETS, FEW_STEPS])
    parser.add_argument("--rounds", type=int, default=5, help="how often all runs take their turn")
    parser.add_argument("--repeats", type=int, default=3, help="of each side of a switch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-switches", action="store_true")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--compile-backend", default="inductor")
    parser.add_argument("--low-memory", action="store_true", help="batch size 1, no switches")
    parser.add_argument("--quick", action="store_true", help="a smoke test; proves no speed")
    parser.add_argument("--out", type=Path, help="folder for a JSON file")
    parser.add_argument("--page", type=Path,
                        help="Markdown file to write from all JSON files in --out")
    parser.add_argument("--docs", type=Path, help="Markdown file with marked places, which are "
                        "written anew from all JSON files in --out")
    args = parser.parse_args(arguments)
    if (args.page or args.docs) and not args.out:
        parser.error("--page and --docs are written from the JSON files in --out; give --out too.")
    if args.quick:
        args.replicas, args.rounds, args.repeats = [1, 3], 2, 1
    args.steps = args.steps or (5 if args.quick else 20)
    args.released_steps = args.released_steps or (args.steps if args.quick else RELEASED_STEPS)
    args.batch_sizes = sorted(args.batch_sizes or ([1, 4] if args.quick else [1, 8, 32]))
    if args.low_memory:
        args.batch_sizes, args.no_switches = [1], True
    return args


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
