"""Synthetic images for the accuracy study: made once, kept on disk, continued where they stop."""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from benchmarks.accuracy import interpolation
from benchmarks.accuracy.adapted import ADAPTATION_CODE, ADAPTED_TO
from benchmarks.accuracy.interpolation import interpolate
from benchmarks.accuracy.tasks import Images, Task, read_corpus
from dreamda_aug import Settings, Synthesizer, load_model, method
from dreamda_aug.generation import sampler, sampling
from dreamda_aug.generation.sampler import Request, Sampler
from dreamda_aug.inputs.pixels import fit_back, fit_to
from dreamda_aug.models import DiffusionModel

# What decides the pixels of synthetic images; a changed line means that they are made anew.
GENERATION_CODE = [
    *sorted(Path(method.__file__).parent.glob("*.py")),
    *(Path(module.__file__) for module in (sampling, sampler, interpolation)),
]
SLICE = 128  # images per file
# Seed images (N, C, H, W) in [0, 1] and requests -> synthetic images.
Make = Callable[[Tensor, Sequence[Request]], Tensor]


@dataclass(frozen=True)
class PoolSpec:
    """What synthetic images are asked for.

    Attributes:
        kind: ``"copies"`` of the seed images, ``"replicas"`` of them, samples from ``"noise"``,
            ``"interpolation"`` of two seed images of a class, the prior's own labeled
            ``"corpus"``, or ``"none"``; ``"label_free"``: replicas without a class; or a key of
            `ADAPTED_TO`: replicas by a prior that was adapted.
        replicas: images per seed image; samples from noise are as many in all.
        settings: what images are made with; None where none are made.
    """

    kind: str
    replicas: int = 0
    settings: Settings | None = None

    @property
    def is_made(self) -> bool:
        """Whether a diffusion model makes the images."""
        return self.settings is not None


@dataclass(frozen=True)
class Pool:
    """Images of a pool.

    Attributes:
        pixels: (N, C, H, W) uint8, the replicas of a seed image side by side.
        seed_labels: the labels that the images were made for, (N,) int64; −1: none.
        seconds: processor time that generation took.
    """

    pixels: Tensor
    seed_labels: Tensor
    seconds: float


class Stopped(Exception):
    """The minutes of this call are over; what was finished is kept."""


def code_digest(paths: Sequence[Path]) -> str:
    """SHA-256 over some source files, shortened."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:16]


def ask(spec: PoolSpec, shots: Images, conditional: bool) -> tuple[Tensor, list[Request], Tensor]:
    """Seed images in [0, 1], one request per synthetic image, and the seed labels."""
    labels = shots.labels.repeat_interleave(spec.replicas)
    images = shots.pixels.float() / 255
    conditional = conditional and spec.kind != "label_free"
    conditions = labels.tolist() if conditional else [None] * len(labels)
    if spec.kind == "noise":
        # a grey image is 0 to the model: what little of it survives in x_T changes nothing
        grey = torch.full_like(images[:1], 0.5)
        requests = [Request(0, condition, i) for i, condition in enumerate(conditions)]
        return grey, requests, labels if conditional else torch.full_like(labels, -1)
    requests = [Request(i // spec.replicas, condition, i % spec.replicas)
                for i, condition in enumerate(conditions)]  # fmt: skip
    return images, requests, labels


def pool_folder(state: Path, task: Task, spec: PoolSpec, shots: Images, rng_seed: int,
                model: DiffusionModel) -> Path:  # fmt: skip
    """Where the images of a pool lie: named after everything that they depend on."""
    code = GENERATION_CODE + (ADAPTATION_CODE if spec.kind in ADAPTED_TO else [])
    parts = [spec, rng_seed, model.fingerprint, code_digest(code),
             hashlib.sha256(shots.pixels.numpy().tobytes()).hexdigest()]  # fmt: skip
    key = hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
    return state / "pools" / f"{task.name}-{spec.kind}-{rng_seed}-{key}"


def open_model(task: Task, folder: str | None, device: str) -> DiffusionModel:
    """The task's diffusion model."""
    if not task.model and folder is None:
        raise SystemExit(
            f"{task.name} needs --model FOLDER: write the training images with --export, then "
            "train one on them with `dreamda train`."
        )
    return load_model(folder or task.model, device=device)


def load_pool(state: Path, task: Task, spec: PoolSpec, shots: Images, rng_seed: int,
              model: DiffusionModel | None, deadline: float = float("inf"),
              adapted: Callable[[], DiffusionModel] | None = None) -> Pool:  # fmt: skip
    """Read a pool, making first what is missing of it.

    Args:
        adapted: adapts the model, where the pool's kind asks for that.

    Raises:
        Stopped: ``deadline`` (of ``time.time``) has passed; finished slices are kept.
    """
    if spec.kind == "corpus":
        corpus = read_corpus(task)
        return Pool(corpus.pixels, corpus.labels, 0.0)
    if not spec.is_made:
        pixels = shots.pixels.repeat_interleave(spec.replicas, dim=0)
        return Pool(pixels, shots.labels.repeat_interleave(spec.replicas), 0.0)
    conditional = model.condition_kind == "class"
    images, requests, labels = ask(spec, shots, conditional)
    folder = pool_folder(state, task, spec, shots, rng_seed, model)
    folder.mkdir(parents=True, exist_ok=True)
    make: Make | None = None
    # slices hold whole seed images, so that none is inverted twice
    length = max(1, SLICE // spec.replicas) * spec.replicas
    if spec.kind == "interpolation":
        length = len(requests)  # a partner may lie anywhere
    parts = []
    for start in range(0, len(requests), length):
        path = folder / f"{start:07d}.safetensors"
        if not path.exists():
            if time.time() > deadline:
                raise Stopped
            if make is None:
                maker = adapted() if spec.kind in ADAPTED_TO else model
                make = _make(spec, shots.labels, Synthesizer(
                    maker, spec.settings, rng_seed=rng_seed, cache=None).sampler)
            began = time.process_time()
            made = fit_back(make(fit_to(images, model), requests[start : start + length]).cpu(),
                            images)
            part = {"pixels": (made * 255).round().to(torch.uint8),
                    "seconds": torch.tensor(time.process_time() - began)}
            temporary = path.with_suffix(f".{os.getpid()}.tmp")
            save_file(part, temporary)
            os.replace(temporary, path)
        parts.append(load_file(path))
    return Pool(torch.cat([part["pixels"] for part in parts]), labels,
                sum(part["seconds"].item() for part in parts))  # fmt: skip


def _make(spec: PoolSpec, labels: Tensor, synthesizer: Sampler) -> Make:
    """What makes the images of a pool."""
    if spec.kind == "interpolation":
        return lambda images, requests: interpolate(synthesizer, images, labels, requests)
    return lambda images, requests: synthesizer.synthesize(images, requests).images
