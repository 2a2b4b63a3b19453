"""Our paths against a plain loop with the cost structure of the authors' released generator.

    python benchmarks/throughput.py --arch tiny-sd --out benchmarks/results
    python benchmarks/throughput.py --arch sd15 --out benchmarks/results        # a GPU
    python benchmarks/throughput.py --arch sd15 --low-memory --out benchmarks/results

``sd15`` is the architecture of Stable Diffusion 1.5 with random weights, ``tiny-sd`` the same four
levels about twenty times narrower; other names are what `load_backbone` takes. All paths run on one
backbone in one process. *Exact* is the plain loop's algorithm with its number of steps: the same
seeds give the same image, and the difference is measured. *Fast* changes the result.

The plain loop makes one sample at a time and recomputes the source branch for each: 4 U-Net rows a
step with guidance. A backbone without guidance gets it twice: with those 4 rows, and with the 2
that it needs. ``--out`` gets a JSON file, and the folder above it ``throughput.md``, made from all
such files.
"""

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from architectures import ARCHITECTURES, build
from measurement import count_flops, machine, matrix_product_rate, measure
from plain import plain_loop
from switches import COMPILE, SWITCHES, Bench, compare
from throughput_page import FORMAT, write_page

from dreamda_aug import PRESETS, BottleneckNoise, Generator
from dreamda_aug.cache import image_digest
from dreamda_aug.seeding import derive_seed


def main(arguments: list[str] | None = None) -> dict:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    backbone = build(args.arch, args.device, args.low_memory)
    # the released run's settings; its absolute noise scale belongs to the weights of SD 1.5
    settings = replace(PRESETS["official"], steps=args.steps, noise_scale=1.0,
                       perturbation=BottleneckNoise())
    bench = Bench(backbone, settings, max(args.batch_sizes), args.replicas, args.repeats)
    record = {
        "format": FORMAT, "arch": args.arch, "low_memory": args.low_memory, "quick": args.quick,
        "random_weights": args.arch in ARCHITECTURES,
        "machine": machine(backbone.device), "device": backbone.device.type,
        "dtype": str(backbone.dtype).removeprefix("torch."), "torch": torch.__version__,
        "steps": args.steps, "steps_run": len(bench.generator().schedule),
        "replicas": args.replicas, "guided": backbone.guidable,
        "image_size": list(backbone.image_size),
        "matrix_product_rate": matrix_product_rate(backbone.device, backbone.dtype),
        "flops": count_flops(backbone)._asdict(),
        "unet_parameters": sum(p.numel() for p in backbone.unet.parameters()),
    }
    say(f"{args.arch} on {record['machine']}, {record['dtype']}, {record['steps_run']} steps run, "
        f"matrix product {record['matrix_product_rate'] / 1e9:.0f} GFLOP/s, "
        f"U-Net {sum(record['flops'].values()) / 1e9:.3g} GFLOP a row")
    paths = record["paths"] = []
    for rows in (4,) if backbone.guidable else (4, 2):
        paths.append(time_plain_loop(bench, rows, args.plain_samples, record))
    for size in args.batch_sizes:
        paths.append(time_path(bench, f"exact, batch {size}", bench.generator(batch_size=size),
                               record, compare_with_plain=True))
    record["switches"] = []
    if not args.low_memory:
        for switch in SWITCHES:
            record["switches"].append(compare(bench, switch))
            say_switch(record["switches"][-1])
        backbone.channels_last()
        best, how = None, "channels_last"
        if not args.no_compile:
            best, how = copy.copy(backbone), "channels_last and compiled"
            best.compile(backend=args.compile_backend)
            bench = replace(bench, compiled=best)
        record["switches"].append(compare(bench, COMPILE))
        say_switch(record["switches"][-1])
        exact = bench.generator(best)
        paths.append(time_path(bench, f"exact, batch {bench.batch_size}, {how}", exact, record,
                               compare_with_plain=True))
        fast = dict(steps=max(2, args.steps // 4), guidance_interval=(0.2, 0.8))
        few = dict(steps=4, guidance_scale=1.0)
        for name, changes in (("a quarter of the steps, guidance on 60 % of them", fast),
                              ("4 steps without guidance, as few-step models run", few)):
            paths.append(time_path(bench, f"fast, {name}, batch {bench.batch_size}, {how}",
                                   bench.generator(best, **changes), record, exact))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        name = Path(args.arch).name + ("_low_memory" if args.low_memory else "")
        (args.out / f"throughput_{name}.json").write_text(json.dumps(record, indent=2) + "\n")
        say(f"wrote {write_page(args.out)}")
    return record


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
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
    args = parser.parse_args(arguments)
    on_cpu = not args.device.startswith("cuda")
    if args.quick:
        args.replicas, args.plain_samples, args.repeats = 3, 1, 1
    args.steps = args.steps or (5 if args.quick else 25 if on_cpu else 100)
    sizes = [1, 4] if args.quick else [1, 8, 32] if on_cpu else [2**i for i in range(7)]
    args.batch_sizes = [1] if args.low_memory else args.batch_sizes or sizes
    return args


def time_plain_loop(bench: Bench, rows: int, samples: int, record: dict) -> dict:
    """The released generator's cost structure, one sample after another."""
    generator, tap = bench.generator(), bench.backbone.tap
    images, requests = bench.work(samples)

    def run(number: int):
        image, request = images[requests[number].image], requests[number]
        return plain_loop(generator, image[None], rows, request.condition,
                          *seeds_of(generator, image, request))

    with torch.no_grad():
        run(0)
        before = tap.encoder_rows, tap.decoder_rows
        measured = measure(lambda: [run(i) for i in range(samples)], bench.backbone.device)
    return finish({"path": f"plain loop, {rows} rows", "batch_size": 1}, samples, measured, before,
                  bench, record)


def time_path(bench: Bench, name: str, generator: Generator, record: dict,
              exact: Generator | None = None, compare_with_plain: bool = False) -> dict:
    """One of our paths, inversion included.

    Args:
        exact: whose images to compare with.
        compare_with_plain: compare the first image with the plain loop's.
    """
    size, tap = generator.batch_size, bench.backbone.tap
    samples = size * -(-bench.replicas // size)  # whole batches, and all replicas of an image
    bench.run(generator, size)  # a first batch compiles, and prepares kernels
    before = tap.encoder_rows, tap.decoder_rows
    measured = measure(lambda: bench.run(generator, samples), bench.backbone.device)
    row = finish({"path": name, "batch_size": generator.batch_size}, samples, measured, before,
                 bench, record)
    if compare_with_plain:
        (image, *_), (request, *_) = bench.work(1)
        with torch.no_grad():
            plain = plain_loop(generator, image[None], 4 if bench.backbone.guidable else 2,
                               request.condition, *seeds_of(generator, image, request))
            with patch("dreamda_aug.generator.STORAGE_DTYPE", torch.float32):
                unrounded = generator.augment(image[None], [request])
        row["max_difference"] = (measured.result[:1] - plain).abs().max().item()
        row["max_difference_in_float32"] = (unrounded - plain).abs().max().item()
    elif exact is not None:
        reference = bench.run(exact, samples)
        distance = (measured.result - reference).abs()
        row["max_difference"] = distance.max().item()
        row["mean_difference"] = distance.mean().item()
        # what another replica of the same image differs by, for scale
        replicas = reference[: bench.replicas]
        row["mean_difference_of_replicas"] = (replicas[1:] - replicas[:1]).abs().mean().item()
    return row


def seeds_of(generator: Generator, image, request) -> tuple[int, int]:
    """Path seed and sample seed, as `Generator.augment` derives them."""
    digest = image_digest(image)
    return (derive_seed(generator.rng_seed, digest, "path", 0),
            derive_seed(generator.rng_seed, digest, "sample", request.replica, request.epoch))


def finish(row: dict, samples: int, measured, before: tuple[int, int], bench: Bench,
           record: dict) -> dict:
    """Everything per sample."""
    tap, flops = bench.backbone.tap, record["flops"]
    encoder, decoder = tap.encoder_rows - before[0], tap.decoder_rows - before[1]
    rate = (encoder * flops["encoder"] + decoder * flops["decoder"]) / measured.seconds
    seconds = measured.seconds / samples
    reference = [path["seconds"] for path in record["paths"] if path["path"].startswith("plain")]
    row |= {
        "samples": samples, "seconds": seconds, "samples_per_second": 1 / seconds,
        "encoder_rows": encoder / samples, "decoder_rows": decoder / samples,
        "share_of_matrix_product_rate": rate / record["matrix_product_rate"],
        "peak_bytes": measured.peak_bytes,
        "speed_up": [plain / seconds for plain in reference] or [1.0],
    }
    say(f"{row['path']}: {row['seconds']:.4g} s/sample, {row['encoder_rows']:.1f} rows, "
        f"{' / '.join(f'{s:.1f}×' for s in row['speed_up'])}, "
        f"{row['share_of_matrix_product_rate']:.0%}, {row['peak_bytes'] / 1e9:.2f} GB")
    return row


def say_switch(row: dict) -> None:
    say(f"{row['switch']}: " + (row.get("skipped") or f"{row['ratio']:.2f}× faster, images differ "
                                f"by at most {row['max_difference']:.1g}"))


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
