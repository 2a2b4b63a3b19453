"""Each switch that makes generation cheaper, on and off in one run."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import NamedTuple
from unittest.mock import patch

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor

from benchmarks.common.architectures import sample_images
from benchmarks.common.measurement import measure
from benchmarks.common.plain import plain_rows
from benchmarks.speed.bench import Bench
from dreamda_aug.inputs.pixels import image_digest
from dreamda_aug.method.seeding import derive_seed

Sides = tuple[Callable[[], Tensor], Callable[[], Tensor]]


class Switch(NamedTuple):
    """One row of the table.

    Attributes:
        name: what is on.
        instead: what runs when it is off.
        sides: gives the two runs, on and off; or None where the model has no such switch.
        gpu_only: whether it changes nothing on a CPU.
    """

    name: str
    instead: str
    sides: Callable[[Bench], Sides | None]
    gpu_only: bool = False


def compare(bench: Bench, switch: Switch) -> dict:
    """Time both sides in turn; say how far their images are apart."""
    row = {"switch": switch.name, "instead": switch.instead}
    device = bench.model.device
    if switch.gpu_only and device.type != "cuda":
        return {**row, "skipped": "GPU only, not measured yet"}
    sides = switch.sides(bench)
    if sides is None:
        return {**row, "skipped": "left out, or not a switch of this model"}
    on, off = sides
    start = time.perf_counter()  # not processor time: a compiler has processes of its own
    first = on().float()
    warm_up = time.perf_counter() - start
    distance = (first - off().float()).abs()
    times, peaks = ([], []), ([], [])
    for _ in range(bench.repeats):
        for side, function in enumerate((on, off)):
            measured = measure(function, device)
            times[side].append(measured.seconds)
            peaks[side].append(measured.peak_bytes)
    return {
        **row,
        "seconds_on": median(times[0]), "seconds_off": median(times[1]),
        "ratio": median(times[1]) / median(times[0]), "first_seconds_on": warm_up,
        "peak_bytes_on": max(peaks[0]), "peak_bytes_off": max(peaks[1]),
        "max_difference": distance.max().item(), "mean_difference": distance.mean().item(),
    }


def cached_inversion(bench: Bench) -> Sides:
    synthesizer = bench.synthesizer()
    images, requests = bench.work(bench.batch_size)
    digests = [image_digest(image) for image in images]
    rows = [request.image for request in requests]
    sample_seeds = [
        derive_seed(synthesizer.rng_seed, digests[r.image], "sample", r.replica, r.epoch)
        for r in requests
    ]

    def off() -> Tensor:
        trajectories = synthesizer.invert(images[rows])
        return synthesizer.generate(trajectories, [r.condition for r in requests], sample_seeds)

    return lambda: bench.run(synthesizer), off


def branching(bench: Bench) -> Sides:
    on = bench.synthesizer(update_rule="asymmetric")
    off = bench.synthesizer(plain_rows(bench.model), update_rule="asymmetric")
    return lambda: bench.run(on), lambda: bench.run(off)


def batches(bench: Bench) -> Sides:
    on, off = bench.synthesizer(), bench.synthesizer(batch_size=1)
    return lambda: bench.run(on), lambda: bench.run(off, bench.batch_size)


def channels_last(bench: Bench) -> Sides:
    synthesizer, unet = bench.synthesizer(), bench.model.unet
    before = _memory_format(unet)

    def run(memory_format: torch.memory_format) -> Tensor:
        unet.to(memory_format=memory_format)
        try:
            return bench.run(synthesizer)
        finally:
            unet.to(memory_format=before)

    return lambda: run(torch.channels_last), lambda: run(torch.contiguous_format)


def fused_attention(bench: Bench) -> Sides:
    synthesizer = bench.synthesizer()
    attentions = [m for m in bench.model.unet.modules() if isinstance(m, Attention)]

    def run(processor) -> Tensor:
        before = [attention.processor for attention in attentions]
        for attention in attentions:
            attention.set_processor(processor)
        try:
            return bench.run(synthesizer)
        finally:
            for attention, old in zip(attentions, before, strict=True):
                attention.set_processor(old)

    return lambda: run(AttnProcessor2_0()), lambda: run(AttnProcessor())


def fused_projections(bench: Bench) -> Sides | None:
    unet = bench.model.denoiser
    if not isinstance(unet, UNet2DConditionModel):
        return None
    synthesizer = bench.synthesizer()

    def on() -> Tensor:
        unet.fuse_qkv_projections()
        try:
            return bench.run(synthesizer)
        finally:
            unet.unfuse_qkv_projections()
            # diffusers leaves the fused weights behind, which would be weights like others
            for module in unet.modules():
                if isinstance(module, Attention):
                    module.fused_projections = False
                    for name in ("to_qkv", "to_kv"):
                        if hasattr(module, name):
                            delattr(module, name)

    return on, lambda: bench.run(synthesizer)


def chunked_decode(bench: Bench) -> Sides | None:
    model = bench.model
    if model.vae is None:
        return None
    with torch.no_grad():
        latents = model.encode(sample_images(model, 1)).repeat(bench.batch_size, 1, 1, 1)

    @torch.no_grad()
    def run(size: int) -> Tensor:
        with patch.object(model, "decode_batch", size):
            return model.decode(latents)

    return lambda: run(min(8, bench.batch_size // 2 or 1)), lambda: run(bench.batch_size)


def no_host_sync(bench: Bench) -> Sides:
    synthesizer, model = bench.synthesizer(), bench.model
    predict = model.predict

    def waiting(*args) -> Tensor:
        output = predict(*args)
        output.flatten()[0].item()
        return output

    def off() -> Tensor:
        with patch.object(model, "predict", waiting):
            return bench.run(synthesizer)

    return lambda: bench.run(synthesizer), off


def pinned_copies(bench: Bench) -> Sides:
    synthesizer = bench.synthesizer()

    def plainly(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
        return torch.stack(list(tensors)).to(device)

    def off() -> Tensor:
        with patch("dreamda_aug.generation.sampling._to_device", plainly):
            return bench.run(synthesizer)

    return lambda: bench.run(synthesizer), off


def partial_guidance(bench: Bench) -> Sides | None:
    if not bench.model.guidable:
        return None
    on, off = bench.synthesizer(guidance_interval=(0.2, 0.8)), bench.synthesizer()
    return lambda: bench.run(on), lambda: bench.run(off)


def fewer_steps(bench: Bench) -> Sides:
    on, off = bench.synthesizer(steps=max(2, bench.settings.steps // 4)), bench.synthesizer()
    return lambda: bench.run(on), lambda: bench.run(off)


def compiled(bench: Bench) -> Sides | None:
    if bench.compiled is None:
        return None
    on, off = bench.synthesizer(bench.compiled), bench.synthesizer()
    return lambda: bench.run(on), lambda: bench.run(off)


def compiled_single(bench: Bench) -> Sides | None:
    if bench.compiled is None:
        return None
    on, off = bench.synthesizer(bench.compiled, 1), bench.synthesizer(batch_size=1)
    return lambda: bench.run(on, 1), lambda: bench.run(off, 1)


def halved_batch(bench: Bench) -> Sides | None:
    if bench.batch_size == 1:
        return None
    on, off = bench.synthesizer(batch_size=bench.batch_size // 2), bench.synthesizer()
    return lambda: bench.run(on, bench.batch_size), lambda: bench.run(off)


def _memory_format(unet) -> torch.memory_format:
    weight = next(p for p in unet.parameters() if p.ndim == 4 and p.shape[1] > 1)
    is_last = weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


# A seed image's source path is inverted with one unguided row, once: the released generator's two
# source rows per sample are in the plain loop.
SWITCHES = [
    Switch("cached inversion", "every sample inverts its image", cached_inversion),
    Switch("branching at the bottleneck (asymmetric rule)", "every decoder row has its encoder row",
           branching),
    Switch("batches across images, labels and replicas", "one sample at a time", batches),
    Switch("channels_last", "contiguous weights", channels_last),
    Switch("SDPA, fused attention", "attention matrix in memory", fused_attention),
    Switch("query, key and value in one product", "in three", fused_projections),
    Switch("chunked VAE decode (decoding only)", "all latents at once", chunked_decode),
    Switch("no host sync (precomputed tables)", "one number is read back at every step",
           no_host_sync, gpu_only=True),
    Switch("pinned asynchronous copies", "copies from pageable memory", pinned_copies,
           gpu_only=True),
    Switch("guidance from 20 % to 80 % of the steps", "guidance at every step", partial_guidance),
    Switch("a quarter of the steps, same strength", "all steps", fewer_steps),
    Switch("half the batch, as after running out of memory", "the whole batch", halved_batch),
]
COMPILE = [
    Switch("torch.compile, static shapes", "eager", compiled),
    Switch("torch.compile, one image per call", "eager, one image per call", compiled_single),
]
