"""How time and memory grow: with the images that are planned, the cache, and the manifest.

A large machine is not needed for it: images are tiny and nobody makes them, so that what is left is
the book-keeping.
"""

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.common.memory import reset_resident_peak, resident_now, resident_peak
from benchmarks.scale.expansion import tiny_model, write_images
from dreamda_aug import Synthesizer
from dreamda_aug.expansion import Expansion
from dreamda_aug.expansion.manifest import (
    MANIFEST,
    ManifestLine,
    library_versions,
    read_manifest,
    settings_to_json,
)
from dreamda_aug.generation.cache import LatentCache, cache_key
from dreamda_aug.generation.sampler import Request, Synthesized
from dreamda_aug.method.settings import PRESETS

# How many entries of a cache are read and written for a figure.
_TRIED = 200
# What one of them holds: an inversion of a few steps of a tiny image.
_SHAPE = (5, 1, 8, 8)


class Stages:
    """Processor time of each stage, and the memory that it took on top of what was there before.

    Attributes:
        seconds: stage -> processor time.
        memory_mb: stage -> peak above the start.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.memory_mb: dict[str, float] = {}
        self._clock = time.process_time

    @contextmanager
    def of(self, stage: str, repeats: int = 1) -> Iterator[None]:
        """Time what is done within, which is ``repeats`` times the same."""
        reset_resident_peak()
        before, started = resident_now(), self._clock()
        yield
        self.seconds[stage] = (self._clock() - started) / repeats
        self.memory_mb[stage] = round((resident_peak() - before) / 2**20, 1)


def planned_images(size: int) -> Stages:
    """Plan, make (by a function that costs nothing), write, check and list so many images."""
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder) / "train", Path(folder) / "out"
        write_images(root, size // 5, classes=20)
        synthesizer = Synthesizer(tiny_model(), "paper", steps=2, noise_scale=1.0, cache=None)
        with stages.of("plan"):
            expansion = Expansion(root, synthesizer, 5)
            _ = expansion.metadata
        expansion.maker.sampler.synthesize = _made_at_once  # type: ignore[method-assign]
        with stages.of("make and write"):
            assert expansion.run(out).stats.made == size // 5 * 5
        with stages.of("check what is there"):
            expansion.run(out)
    return stages


def _made_at_once(images: Tensor, requests: Sequence[Request], digests: Any = None) -> Synthesized:
    made = torch.stack([images[r.image].roll(1 + r.replica, -1) for r in requests])
    return Synthesized(made, [""] * len(requests), [len(requests)] * len(requests))


def cache_entries(size: int) -> Stages:
    """Fill a cache, and use it when it is full."""
    stages, tried = Stages(), min(_TRIED, size // 4)
    tensors = {"x_T": torch.zeros(_SHAPE[1:]), "residuals": torch.zeros(_SHAPE)}
    keys = [cache_key(number=number) for number in range(size + tried)]
    with tempfile.TemporaryDirectory() as folder:
        cache = LatentCache(folder)
        for key in keys[: size - tried]:
            cache.put(key, tensors)
        with stages.of("write an entry", tried):
            for key in keys[size - tried : size]:
                cache.put(key, tensors)
        spread = range(0, size, max(1, size // tried))
        with stages.of("look one up", len(spread)):
            for number in spread:
                assert cache.get(keys[number]) is not None
        with stages.of("look one up that is not there", tried):
            for key in keys[size:]:
                assert cache.get(key) is None
        with stages.of("open it"):
            cache = LatentCache(folder)
        with stages.of("count it"):
            found = cache.sizes()
        full = LatentCache(folder, max_bytes=sum(found))
        full.put(keys[size], tensors)  # counts the folder, and evicts a tenth
        left = full.sizes()
        assert len(left) < size and sum(left) <= sum(found)
        full = LatentCache(folder, max_bytes=sum(left))
        with stages.of("evict a tenth of it"):
            full.put(keys[size + 1], tensors)
        assert sum(full.sizes()) <= sum(left)
    return stages


def manifest_lines(size: int) -> Stages:
    """Read a manifest."""
    stages = Stages()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / MANIFEST
        settings, versions = settings_to_json(PRESETS["paper"]), library_versions()
        digest = hashlib.sha256(b"").hexdigest()
        with open(path, "w") as file:
            for number in range(size):
                line = ManifestLine(
                    id=f"{number // 5:08d}_{number % 5:04d}", file=f"a/{number}.png",
                    class_name="a", label=0, seed_index=number // 5, seed_path=f"a/{number}.png",
                    seed_digest=digest, replica=number % 5, epoch=0, rng_seed=0, condition=None,
                    batch=number // 30, row=number % 30, layout=[[0, 5]] * 6,
                    batch_size=30, settings=settings,
                    model=digest, versions=versions, pixels=digest, distance=0.1,
                    file_digest=digest)
                file.write(line.to_json() + "\n")
        with stages.of("read it"):
            assert sum(1 for _ in read_manifest(folder)) == size
    return stages


# What grows, and the sizes that say something about it.
SUBJECTS: dict[str, tuple[Callable[[int], Stages], tuple[int, ...]]] = {
    "planned images": (planned_images, (1_000, 10_000, 100_000)),
    "cache entries": (cache_entries, (1_000, 10_000, 100_000)),
    "manifest lines": (manifest_lines, (1_000, 10_000, 100_000, 1_000_000)),
}


def measure_growth(largest: int, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Curves of time and memory over size.

    Args:
        largest: sizes above it are left out.
        say: is told every size.

    Returns:
        For each stage of each subject: ``sizes``, ``seconds``, ``memory_mb``, and the ``exponent``
        with which the time grows between the smallest and the largest size: 1 is as fast as the
        size, 0 not at all.
    """
    curves: dict[tuple[str, str], dict[str, Any]] = {}
    for subject, (measure, sizes) in SUBJECTS.items():
        for size in [each for each in sizes if each <= largest] or [largest]:
            stages = measure(size)
            say(f"{size:,} {subject}: " + ", ".join(
                f"{name} {seconds:.3g} s" for name, seconds in stages.seconds.items()))
            for name, seconds in stages.seconds.items():
                curve = curves.setdefault((subject, name), {
                    "subject": subject, "stage": name, "sizes": [], "seconds": [],
                    "memory_mb": []})
                curve["sizes"].append(size)
                curve["seconds"].append(seconds)
                curve["memory_mb"].append(stages.memory_mb[name])
    for curve in curves.values():
        curve["exponent"] = exponent(curve["sizes"], curve["seconds"])
    return list(curves.values())


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The power of the size with which a value grows, from end to end; None for a single size."""
    if len(sizes) < 2 or min(values[0], values[-1]) <= 0:
        return None
    return math.log(values[-1] / values[0]) / math.log(sizes[-1] / sizes[0])
