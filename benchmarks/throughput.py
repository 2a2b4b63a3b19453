"""Our path against a plain loop with the cost structure of the authors' released generator.

    python benchmarks/throughput.py --arch bundled --out benchmarks/results

Both run on the same backbone in one process, symmetric rule, same number of steps. The plain loop
makes one sample at a time and recomputes the source branch for each: with guidance 4 U-Net rows a
step (source unconditional and conditional, target unconditional and conditional). A backbone
without guidance gets the same loop twice: with those 4 rows, and with the 2 that it needs.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch
from torch import Tensor

from dreamda_aug import BottleneckNoise, Generator, load_backbone
from dreamda_aug.generator import Request
from dreamda_aug.seeding import BOTTLENECK, POSTERIOR, SOURCE, seeded_normal


def plain_loop(generator: Generator, image: Tensor, rows: int, rng_seed: int) -> Tensor:
    """One sample as the released generator makes it: image (1, C, H, W) -> (1, C, H, W)."""
    backbone, schedule, settings = generator.backbone, generator.schedule, generator.settings
    unet, seeds = backbone.unet, torch.tensor([rng_seed], device=backbone.device)
    x_0 = backbone.encode(image)
    shape = tuple(x_0.shape[1:])
    source = schedule.add_noise(x_0, seeded_normal(seeds, 0, SOURCE, shape), 0)
    target = source
    condition = {name: value.expand(rows, *value.shape[1:])
                 for name, value in backbone.embed([None]).items()}
    targets = rows // 2
    step_now = 0

    def perturb(module, inputs, h):
        h = h.clone()
        noise = seeded_normal(seeds, step_now, BOTTLENECK, tuple(h.shape[1:]))
        rms = h[-targets:].square().mean((1, 2, 3), keepdim=True).sqrt()
        h[-targets:] += settings.noise_scale * rms * noise
        return h

    handle = unet.mid_block.register_forward_hook(perturb)
    try:
        for step in range(len(schedule)):
            step_now = step
            x = torch.cat([source] * (rows - targets) + [target] * targets)
            output = backbone.predict(x, schedule.timesteps[step], condition)
            halves = output[: rows - targets], output[-targets:]
            source_out, target_out = (
                half if len(half) == 1
                else half[:1] + settings.guidance_scale * (half[1:] - half[:1]) for half in halves
            )
            last = step == len(schedule) - 1
            alpha_bar = schedule.alpha_bars[step]
            eps = (source - alpha_bar.sqrt() * x_0) / (1 - alpha_bar).sqrt()
            mean, std = schedule.posterior(x_0, eps, step, settings.eta)
            noise = seeded_normal(seeds, step, POSTERIOR, shape)
            next_source = x_0 if last else mean + std * noise
            source_mean, _ = schedule.posterior(
                *schedule.predictions(source_out, source, step), step, settings.eta)
            target_mean, _ = schedule.posterior(
                *schedule.predictions(target_out, target, step), step, settings.eta)
            target = target_mean + next_source - source_mean
            source = next_source
    finally:
        handle.remove()
    return backbone.decode(target)


def timed(function, device: torch.device) -> tuple[Tensor, float]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return result, time.perf_counter() - start


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="bundled", help="'bundled', or what load_backbone takes")
    parser.add_argument("--steps", type=int, default=25, help="0.8 of them are run")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=10, help="K")
    parser.add_argument("--plain-samples", type=int, default=5, help="timed in the plain loop")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 40])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="folder for a JSON file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    backbone = load_backbone(args.arch)
    torch.manual_seed(0)
    images = torch.rand(args.images, backbone.channels, *backbone.image_size)
    settings = dict(steps=args.steps, update_rule="symmetric", noise_scale=1.0,
                    perturbation=BottleneckNoise())
    generator = Generator(backbone, "official", **settings)
    tap = backbone.tap
    results = []

    still = Generator(backbone, "official", **{**settings, "noise_scale": 0.0})
    error = (plain_loop(still, images[:1], 2, 0) - images[:1]).abs().max()
    assert error < 1e-3, f"the plain loop is wrong: without noise it misses by {error}"

    for rows in (4,) if backbone.guidable else (4, 2):
        plain_loop(generator, images[:1], rows, 0)
        before = tap.encoder_rows
        _, seconds = timed(lambda rows=rows: [
            plain_loop(generator, images[i % len(images)][None], rows, i)
            for i in range(args.plain_samples)
        ], backbone.device)
        results.append({
            "path": f"plain loop, {rows} rows", "seconds": seconds / args.plain_samples,
            "rows": (tap.encoder_rows - before) / args.plain_samples,
        })
    requests = [Request(i, None, replica) for i in range(args.images)
                for replica in range(args.replicas)]
    runs = [(f"ours, batch {size}", size) for size in args.batch_sizes]
    runs.append((f"ours, batch {max(args.batch_sizes)}, channels_last", max(args.batch_sizes)))
    for name, batch_size in runs:
        if "channels_last" in name:
            backbone.channels_last()
        ours = Generator(backbone, "official", batch_size=batch_size, **settings)
        ours.augment(images, requests[:1])

        def cold(ours=ours):
            """Inversion, then all replicas of every image."""
            trajectories = ours.invert(images)
            return ours.generate([trajectories[r.image] for r in requests])

        before = tap.encoder_rows
        _, seconds = timed(cold, backbone.device)
        results.append({
            "path": name, "seconds": seconds / len(requests),
            "rows": (tap.encoder_rows - before) / len(requests),
        })
    reference = {r["path"]: r["seconds"] for r in results if r["path"].startswith("plain")}
    print(f"{'path':30s} {'rows':>7s} {'s/sample':>9s}  speed-up over "
          + " / ".join(reference))
    for r in results:
        r["speed_up"] = [seconds / r["seconds"] for seconds in reference.values()]
        print(f"{r['path']:30s} {r['rows']:7.1f} {r['seconds']:9.4f}  "
              + " / ".join(f"{s:.1f}×" for s in r["speed_up"]), flush=True)
    if args.out:
        record = {"arch": args.arch, "device": str(backbone.device), "threads": args.threads,
                  "machine": platform.processor() or platform.machine(),
                  "torch": torch.__version__, "steps": args.steps, "images": args.images,
                  "replicas": args.replicas, "results": results}
        args.out.mkdir(parents=True, exist_ok=True)
        name = Path(args.arch).name
        (args.out / f"throughput_{name}.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
