"""The runs that are timed: what others would run, and ours."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.speed.bench import Bench, plainly
from benchmarks.speed.peers import Peer
from dreamda_aug import PRESETS, DreamDAugment, Settings, Synthesizer
from dreamda_aug.generation.cache import LatentCache
from dreamda_aug.models.unet import UNetModel

IMG2IMG = "diffusers img2img"
CYCLE = "diffusers CycleDiffusion"
RELEASED = "released cost structure, {rows} rows"
SYMMETRIC = "a sample, symmetric rule"
ASYMMETRIC = "a sample, asymmetric rule"
TRANSFORM = "DreamDAugment, an image per call"
PRESET = "preset {name}, K = {replicas}"
FEW_STEPS = "few"
# Of the released run, which the presets "paper" and "official" share.
RELEASED_STEPS = PRESETS["official"].steps
# Calls of one image are short: so many make a measurement.
_SINGLE = 4


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        name: what runs; one of this module's names.
        batch_size: images per denoiser call.
        samples: images that ``run`` makes.
        run: makes them, (samples or fewer, C, H, W).
        rows: denoiser rows so far, before and behind the hook.
        replicas: K, of how many samples an inversion serves; 0: it is cached, or there is none.
    """

    name: str
    batch_size: int
    samples: int
    run: Callable[[], object]
    rows: Callable[[], tuple[int, int]]
    replicas: int = 0


def arms(
    bench: Bench, cache: Path, batch_sizes: Sequence[int], replicas: Sequence[int],
    presets: Sequence[str], released_steps: int = RELEASED_STEPS,
) -> Iterator[Arm]:
    """All arms of one model.

    Args:
        bench: model and settings of what is compared with diffusers' pipelines, step by step.
        cache: folder for inversions.
        batch_sizes: rising.
        replicas: numbers K to try with each preset.
        presets: names of presets, and `FEW_STEPS`.
        released_steps: of the released run; with fewer, for a quick try, presets are cut alike.
    """
    peer, hook = Peer(bench.model, bench.settings), bench.model.hook

    def of_peer() -> tuple[int, int]:
        return peer.rows, peer.rows

    def of_hook() -> tuple[int, int]:
        return hook.encoder_rows, hook.decoder_rows

    for size in batch_sizes:
        calls = _SINGLE if size == 1 else 1
        images, requests = replace(bench, replicas=1).work(size)
        yield Arm(IMG2IMG, size, size * calls,
                  _again(lambda images=images: peer.img2img(images), calls), of_peer)
        for name, rule in ((SYMMETRIC, "symmetric"), (ASYMMETRIC, "asymmetric")):
            synthesizer = bench.synthesizer(
                batch_size=size, cache=LatentCache(cache), update_rule=rule)
            yield Arm(name, size, size * calls,
                      _again(lambda s=synthesizer, n=size: bench.run(s, n), calls), of_hook)
    images, requests = bench.work(1)
    known = isinstance(bench.model, UNetModel)  # the released generator knows nothing else
    for rows in () if not known else (4,) if bench.model.guidable else (4, 2):
        plain = bench.synthesizer(steps=released_steps)
        yield Arm(RELEASED.format(rows=rows), 1, 1,
                  lambda s=plain, rows=rows: _without_gradients(s, images, requests[0], rows),
                  of_hook)
    if peer.has_cycle and bench.model.guidable:
        yield Arm(CYCLE, 1, _SINGLE, _again(lambda: peer.cycle(images[:1]), _SINGLE), of_peer)
    yield Arm(TRANSFORM, 1, _SINGLE, _again(_transform(bench, cache), _SINGLE), of_hook)
    for name in presets:
        changed = replace(bench, settings=settings_of(name, bench.settings, released_steps))
        for count in replicas:
            inner = replace(changed, replicas=count)
            for size in batch_sizes:
                synthesizer = inner.synthesizer(batch_size=size)
                samples = size * -(-count // size)  # whole batches of all replicas
                yield Arm(PRESET.format(name=name, replicas=count), size, samples,
                          lambda b=inner, s=synthesizer, n=samples: b.run(s, n), of_hook, count)


def settings_of(name: str, plain: Settings, released_steps: int) -> Settings:
    """A preset, with as many of its steps as the released run has of its own.

    Args:
        name: of a preset; or `FEW_STEPS`: 4 steps without guidance, as distilled models run.
        plain: settings with the place of the noise.
        released_steps: of the released run here.
    """
    if name == FEW_STEPS:
        return replace(plain, steps=4, guidance_scale=1.0)
    preset = PRESETS[name]
    steps = max(2, round(preset.steps * released_steps / RELEASED_STEPS))
    # numbers for what is calibrated on a user's images: as on the bundled model's
    return replace(preset, steps=steps, perturbation=plain.perturbation,
                   noise_scale=0.0 if preset.noise_scale == 0 else 1.0,
                   replay=0.0 if preset.replay is None else preset.replay,
                   strength=0.85 if preset.strength is None else preset.strength)


def _transform(bench: Bench, cache: Path) -> Callable[[], Tensor]:
    images, requests = bench.work(1)
    condition = requests[0].condition
    synthesizer = Synthesizer(bench.model, bench.settings, cache=LatentCache(cache),
                              prompt=lambda label: str(condition), batch_size=1)
    augment = DreamDAugment(synthesizer, p=1.0, labels_getter=lambda sample: torch.tensor([0]))
    image = (images[0] * 255).round().to(torch.uint8)
    return lambda: augment(image, 0)[0]


def _again(run: Callable[[], object], calls: int) -> Callable[[], object]:
    def several() -> object:
        for _ in range(calls):
            made = run()
        return made

    return several


@torch.no_grad()
def _without_gradients(*arguments) -> Tensor:
    return plainly(*arguments)
