"""Our paths against a plain loop with the cost structure of the authors' released generator.

    python -m benchmarks.speed --arch tiny-sd --out benchmarks/results \\
        --page benchmarks/speed/throughput.md
    python -m benchmarks.speed --arch sd15 --out benchmarks/results              # a GPU
    python -m benchmarks.speed --arch sd15 --low-memory --out benchmarks/results

sd15 is the architecture of Stable Diffusion 1.5 with random weights, tiny-sd the same four levels
about twenty times narrower; other names are what load_backbone takes. All paths run on one
backbone in one process. Exact mode is the plain loop's algorithm with its number of steps: the
same seeds give the same image, and the difference is measured. Fast mode changes the result.

The plain loop makes one sample at a time and recomputes the source branch for each: 4 U-Net rows a
step with guidance. For a backbone without guidance it is timed twice: with those 4 rows, and with
the 2 that it needs.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.architectures import ARCHITECTURES, build
from benchmarks.common.measurement import count_flops, matrix_product_rate
from benchmarks.common.provenance import machine
from benchmarks.speed.bench import Bench
from benchmarks.speed.page import FORMAT, write_page
from benchmarks.speed.switches import COMPILE, SWITCHES, Switch, compare
from benchmarks.speed.throughput import PathTimer
from dreamda_aug import PRESETS, BottleneckNoise


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, and write what was asked for; the record of it all."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    backbone = build(args.arch, args.device, args.low_memory)
    # the released run's settings; its absolute noise scale belongs to the weights of SD 1.5
    settings = replace(PRESETS["official"], steps=args.steps, noise_scale=1.0,
                       perturbation=BottleneckNoise())
    bench = Bench(backbone, settings, max(args.batch_sizes), args.replicas, args.repeats)
    timer = PathTimer(bench, count_flops(backbone),
                      matrix_product_rate(backbone.device, backbone.dtype))
    record = {
        "format": FORMAT, "arch": args.arch, "low_memory": args.low_memory, "quick": args.quick,
        "random_weights": args.arch in ARCHITECTURES,
        "machine": machine(backbone.device), "device": backbone.device.type,
        "dtype": str(backbone.dtype).removeprefix("torch."), "torch": torch.__version__,
        "steps": args.steps, "steps_run": len(bench.synthesizer().schedule),
        "replicas": args.replicas, "guided": backbone.guidable,
        "image_size": list(backbone.image_size),
        "matrix_product_rate": timer.matrix_product_rate, "flops": timer.flops._asdict(),
        "unet_parameters": sum(p.numel() for p in backbone.unet.parameters()),
        "paths": [], "switches": [],
    }
    say(f"{args.arch} on {record['machine']}, {record['dtype']}, {record['steps_run']} steps run, "
        f"matrix product {record['matrix_product_rate'] / 1e9:.0f} GFLOP/s, "
        f"U-Net {sum(timer.flops) / 1e9:.3g} GFLOP a row")

    def add_path(row: dict[str, Any]) -> None:
        say_path(row)
        record["paths"].append(row)

    def add_switch(bench: Bench, switch: Switch) -> None:
        row = compare(bench, switch)
        say_switch(row)
        record["switches"].append(row)

    for rows in (4,) if backbone.guidable else (4, 2):
        add_path(timer.time_plain_loop(rows, args.plain_samples))
    for size in args.batch_sizes:
        add_path(timer.time_path(f"exact, batch {size}", bench.synthesizer(batch_size=size)))
    if not args.low_memory:
        for switch in SWITCHES:
            add_switch(bench, switch)
        backbone.channels_last()
        how = "channels_last"
        if not args.no_compile:
            how = "channels_last and compiled"
            bench = replace(bench, compiled=backbone.compiled(backend=args.compile_backend))
            timer.bench = bench
        add_switch(bench, COMPILE)
        exact = bench.synthesizer(bench.compiled)
        add_path(timer.time_path(f"exact, batch {bench.batch_size}, {how}", exact))
        fast = dict(steps=max(2, args.steps // 4), guidance_interval=(0.2, 0.8))
        few = dict(steps=4, guidance_scale=1.0)
        for name, changes in (("a quarter of the steps, guidance on 60 % of them", fast),
                              ("4 steps without guidance, as few-step models run", few)):
            add_path(timer.time_path(f"fast, {name}, batch {bench.batch_size}, {how}",
                                     bench.synthesizer(bench.compiled, **changes), exact))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        name = Path(args.arch).name + ("_low_memory" if args.low_memory else "")
        (args.out / f"throughput_{name}.json").write_text(json.dumps(record, indent=2) + "\n")
        if args.page:
            write_page(args.out, args.page)
    return record


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with defaults that depend on the device filled in."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.speed", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--arch", default="bundled", help="sd15, tiny-sd, bundled, a folder, ...")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int,
                        help="0.8 of them are run; default: 100 as released, 25 on a CPU")
    parser.add_argument("--replicas", type=int, default=10, help="K")
    parser.add_argument("--batch-sizes", type=int, nargs="+",
                        help="default: 1 2 4 ... 64, on a CPU 1 8 32; switches use the largest")
    parser.add_argument("--plain-samples", type=int, default=3, help="timed in the plain loop")
    parser.add_argument("--repeats", type=int, default=3, help="of each side of a switch")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--compile-backend", default="inductor")
    parser.add_argument("--low-memory", action="store_true", help="batch size 1, no switches")
    parser.add_argument("--quick", action="store_true", help="a smoke test; proves no speed")
    parser.add_argument("--out", type=Path, help="folder for a JSON file")
    parser.add_argument("--page", type=Path,
                        help="Markdown file to write from all JSON files in --out")
    args = parser.parse_args(arguments)
    if args.page and not args.out:
        parser.error("--page is written from the JSON files in --out; give --out too.")
    on_cpu = not args.device.startswith("cuda")
    if args.quick:
        args.replicas, args.plain_samples, args.repeats = 3, 1, 1
    args.steps = args.steps or (5 if args.quick else 25 if on_cpu else 100)
    sizes = [1, 4] if args.quick else [1, 8, 32] if on_cpu else [2**i for i in range(7)]
    args.batch_sizes = [1] if args.low_memory else args.batch_sizes or sizes
    return args


def say_path(row: dict[str, Any]) -> None:
    say(f"{row['path']}: {row['seconds']:.4g} s/sample, {row['encoder_rows']:.1f} rows, "
        f"{' / '.join(f'{s:.1f}×' for s in row['speed_up'])}, "
        f"{row['share_of_matrix_product_rate']:.0%}, {row['peak_bytes'] / 1e9:.2f} GB")


def say_switch(row: dict[str, Any]) -> None:
    say(f"{row['switch']}: " + (row.get("skipped") or f"{row['ratio']:.2f}× faster, images differ "
                                f"by at most {row['max_difference']:.1g}"))


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
