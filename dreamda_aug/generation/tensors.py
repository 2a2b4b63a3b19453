"""Inversion and generation of tensors in batches: the one place that runs the reverse loop."""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from dreamda_aug.arguments import whole
from dreamda_aug.errors import GenerationError
from dreamda_aug.generation.cache import LatentCache
from dreamda_aug.generation.dials import resolve_calibrated
from dreamda_aug.generation.guards import broken, guard
from dreamda_aug.generation.recording import (
    inversion_keys,
    record_trajectories,
    source_condition,
)
from dreamda_aug.generation.sampling import sample
from dreamda_aug.generation.watch import Watch
from dreamda_aug.inputs.pixels import image_digest
from dreamda_aug.method.inversion import Trajectory
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.method.settings import Settings, resolve_settings
from dreamda_aug.models import Condition, DiffusionModel, as_model
from dreamda_aug.progress import bar

logger = logging.getLogger(__name__)

# Inversions are always rounded to this, cached or not, so that both give the same images.
STORAGE_DTYPE = torch.float16

_T = TypeVar("_T")


@dataclass(frozen=True)
class Request:
    """One synthetic image to make.

    Attributes:
        image: index of the seed image in the batch that is given with the request.
        condition: what generation is conditioned on: a prompt, a class index, or None.
        replica: number of the replica, >= 0.
        epoch: number of the epoch, >= 0; another epoch is another perturbation.
    """

    image: int
    condition: Condition = None
    replica: int = 0
    epoch: int = 0


class Synthesized(NamedTuple):
    """What `TensorSynthesizer.synthesize` made.

    Attributes:
        images: (B, C, H, W), float32 in [0, 1], on the model's device.
        events: what the guards did, one string per image: ``""``, ``"retried"``, ``"replaced"``
            or ``"unsafe"``; see `guard`.
    """

    images: Tensor
    events: list[str]


def pad(values: Sequence[_T], count: int) -> list[_T]:
    """The values, and the last one repeated, ``count`` in all."""
    return [*values, *[values[-1]] * (count - len(values))]


class TensorSynthesizer:
    """The part of `Synthesizer` that works on tensors of the model's size and channels.

    Args:
        model: a model, or what `ModelSpec` takes as its source.
        preset: a preset's name or `Settings`.
        cache: where inversions are kept; None: nowhere.
        batch_size: synthetic images per U-Net call; halved by itself when memory runs out.
        rng_seed: another one gives other images throughout.
        compile: run the U-Net through ``torch.compile``, with these options if it is a dict;
            batches are then padded to ``batch_size`` and the first step is not shared between
            replicas, so that shapes never change.
        overrides: single settings that differ from the preset, such as ``noise_scale=2.0``.

    Attributes:
        inversions: how many inversions were computed so far; cached ones do not count.
        watch: counts images and what the guards did.

    Raises:
        ValueError: an argument breaks its rule.
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self,
        model: Any = "bundled",
        preset: Settings | str = "recommended",
        *,
        cache: LatentCache | None = None,
        batch_size: int = 32,
        rng_seed: int = 0,
        compile: bool | dict[str, Any] = False,
        **overrides: Any,
    ):
        batch_size = whole("batch_size", batch_size, 1)
        self.model = as_model(model)
        self.requested_settings = resolve_settings(preset, **overrides)
        self.cache = cache
        self.batch_size = batch_size
        self.rng_seed = rng_seed
        self.static_shapes = bool(compile)
        if self.static_shapes:
            self.model = self.model.compiled(
                **(compile if isinstance(compile, dict) else {}))
        self.inversions = 0
        self.watch = Watch()

    @cached_property
    def settings(self) -> Settings:
        """The settings with numbers for what was calibrated."""
        return resolve_calibrated(self.requested_settings, self.model, self.cache)

    @property
    def schedule(self) -> NoiseSchedule:
        """The steps of a run, as the model's scheduler has them now."""
        s = self.settings
        assert s.strength is not None
        return self.model.schedule(s.steps, s.strength, s.timestep_spacing)

    def with_settings(
        self, settings: Settings, model: DiffusionModel | None = None
    ) -> "TensorSynthesizer":
        """Another one on the same cache, and on the same model where no other is given."""
        other = TensorSynthesizer(self.model if model is None else model, settings,
                                  cache=self.cache, batch_size=self.batch_size,
                                  rng_seed=self.rng_seed)
        other.static_shapes = self.static_shapes
        return other

    def synthesize(
        self, images: Tensor, requests: Sequence[Request], digests: Sequence[str] | None = None
    ) -> Synthesized:
        """Make the requested synthetic images; inversions are cached, memory follows the batch.

        A sample that comes out as NaN or black is made once more in float32; if that does not help,
        or if the pipeline's safety checker rejects it, the seed image takes its place.

        Args:
            images: seed images, (B, C, H, W) in [0, 1], of the model's size and channels.
            requests: what to make, any mix of images, conditions and replicas.
            digests: one digest per seed image; None: that of the pixels given here.

        Returns:
            One synthetic image for each request, and what the guards did to it.

        Raises:
            ValueError: the images do not fit the model.
            GenerationError: memory ran out at batch size 1, or more than half of the images come
                out broken.
        """
        self._check_images(images)
        if self.static_shapes:
            self.watch.filled_up(len(requests), self.batch_size)
        digests = digests or [image_digest(image) for image in images]

        found: dict[tuple[int, int, Condition], Trajectory] = {}

        def make(batch: slice) -> Synthesized:
            nonlocal found
            part = requests[batch]
            # the condition belongs to it: without a null class, an inversion depends on the class
            sources = [(r.image, r.replica % self.settings.paths,
                        source_condition(self.model, self.settings, r.condition)) for r in part]
            condition_of = {source: r.condition
                            for source, r in zip(sources, part, strict=True)}
            # replicas of an image may go on in the next batch: keep what this one uses, no more
            found = {source: found[source] for source in condition_of if source in found}
            new = [source for source in condition_of if source not in found]
            inverted = self._invert(
                images[[i for i, _, _ in new]], [digests[i] for i, _, _ in new],
                [path for _, path, _ in new], [condition_of[source] for source in new],
            )
            found.update(zip(new, inverted, strict=True))
            seeds = [derive_seed(self.rng_seed, digests[r.image], "sample", r.replica, r.epoch)
                     for r in part]
            trajectories, conditions = [found[s] for s in sources], [r.condition for r in part]

            def make_rows(rows: Sequence[int]) -> Tensor:
                return self._generate([trajectories[i] for i in rows],
                                      [conditions[i] for i in rows], [seeds[i] for i in rows])

            made = make_rows(range(len(part)))
            acts = guard(made, images[[r.image for r in part]], self.model, make_rows)
            self.watch.made_images(acts, self.model.name)
            return Synthesized(made, acts)

        batches = self._in_batches(make, len(requests))
        return Synthesized(self._stack([batch.images for batch in batches]),
                           [act for batch in batches for act in batch.events])

    def invert(
        self,
        images: Tensor,
        digests: Sequence[str] | None = None,
        paths: Sequence[int] | None = None,
        conditions: Sequence[Condition] | None = None,
    ) -> list[Trajectory]:
        """Invert images, or read their inversions from the cache.

        Args:
            images: (B, C, H, W) in [0, 1], of the model's size and channels.
            digests: one per image; None: that of the pixels given here.
            paths: which of the image's source paths, one number per image; None: path 0.
            conditions: only for class-conditional models without a null class, which cannot
                invert without the label.

        Returns:
            One trajectory per image, on the CPU.
        """
        self._check_images(images)
        digests = digests or [image_digest(image) for image in images]
        paths = paths or [0] * len(images)
        conditions = conditions or [None] * len(images)
        with bar("inverting", len(images), "images") as shown:
            def invert(batch: slice) -> list[Trajectory]:
                found = self._invert(
                    images[batch], digests[batch], paths[batch], conditions[batch])
                shown.update(len(found))
                return found

            batches = self._in_batches(invert, len(images))
        return [trajectory for batch in batches for trajectory in batch]

    def generate(
        self,
        trajectories: Sequence[Trajectory],
        conditions: Sequence[Condition] | None = None,
        sample_seeds: Sequence[int] | None = None,
        noise_scales: Sequence[float] | None = None,
    ) -> Tensor:
        """Generate one image per trajectory; repeat a trajectory for several replicas of it.

        Args:
            trajectories: what `invert` returned.
            conditions: prompt, class index or None for each; None: unconditional.
            sample_seeds: one per sample, >= 0; None: 0, 1, 2, ...
            noise_scales: one per sample, instead of the settings' noise scale.

        Returns:
            Images (B, C, H, W), float32 in [0, 1], on the model's device.

        Raises:
            GenerationError: the U-Net gave NaN, or memory ran out at batch size 1.
        """
        conditions = conditions or [None] * len(trajectories)
        seeds = sample_seeds or list(range(len(trajectories)))
        made = self._stack(self._in_batches(lambda batch: self._generate(
            trajectories[batch], conditions[batch], seeds[batch],
            None if noise_scales is None else noise_scales[batch],
        ), len(trajectories)))
        if count := int(broken(made).sum()):
            raise GenerationError(
                f"{self.model.name} gave NaN or infinite pixels in {count} of {len(made)} "
                "images; load the model with dtype=torch.float32 or torch.bfloat16."
            )
        return made

    @torch.no_grad()
    def _invert(
        self, images: Tensor, digests: Sequence[str], paths: Sequence[int],
        conditions: Sequence[Condition],
    ) -> list[Trajectory]:
        sources = [source_condition(self.model, self.settings, each) for each in conditions]
        found: list[Trajectory | None] = [None] * len(digests)
        keys: list[str] = []
        if self.cache is not None and digests:
            keys = inversion_keys(self.model, self.settings, self.schedule, self.rng_seed,
                                  digests, paths, sources, STORAGE_DTYPE)
            stored = [self.cache.get(key) for key in keys]
            found = [None if s is None else Trajectory(**{"x_T": None, **s}) for s in stored]
        missing = [i for i, trajectory in enumerate(found) if trajectory is None]
        # replicas make inversions few: with static shapes, small slices waste little on padding
        size = max(1, self.batch_size // 8) if self.static_shapes else max(1, len(missing))
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            rows = pad(part, size) if self.static_shapes else part
            seeds = [derive_seed(self.rng_seed, digests[i], "path", paths[i]) for i in rows]
            with self._own_precision():
                made = record_trajectories(
                    self.model, self.settings, self.schedule, images[rows],
                    [sources[i] for i in rows], seeds, STORAGE_DTYPE)
            for i, trajectory in zip(part, made):  # not strict: without the padding
                found[i] = trajectory
                if self.cache is not None:
                    self.cache.put(keys[i], trajectory.tensors())
        self.inversions += len(missing)
        return [trajectory for trajectory in found if trajectory is not None]

    @torch.no_grad()
    def _generate(
        self, trajectories: Sequence[Trajectory], conditions: Sequence[Condition],
        seeds: Sequence[int], noise_scales: Sequence[float] | None = None,
    ) -> Tensor:
        count = len(seeds)
        assert self.settings.noise_scale is not None
        scales = [self.settings.noise_scale] * count if noise_scales is None else noise_scales
        if self.static_shapes:
            trajectories, conditions = (pad(trajectories, self.batch_size),
                                        pad(conditions, self.batch_size))
            seeds, scales = pad(seeds, self.batch_size), pad(scales, self.batch_size)
        with self._own_precision():
            latents = sample(self.model, self.settings, self.schedule, trajectories, conditions,
                             seeds, scales, share_first_step=not self.static_shapes)
            return self.model.decode(latents[:count])

    def _own_precision(self) -> AbstractContextManager[Any]:
        """Within it, a training loop's autocast does not reach the diffusion model."""
        return torch.autocast(self.model.device.type, enabled=False)

    def _check_images(self, images: Tensor) -> None:
        expected = (self.model.channels, *self.model.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must have shape (B, {', '.join(map(str, expected))}) for "
                f"{self.model.name}, got {tuple(images.shape)}; DreamDAugment resizes by itself."
            )

    def _stack(self, batches: list[Tensor]) -> Tensor:
        empty = torch.empty(0, self.model.channels, *self.model.image_size)
        return torch.cat(batches) if batches else empty

    def _in_batches(self, function: Callable[[slice], _T], count: int) -> list[_T]:
        """Call ``function`` on slices of at most `batch_size`; halve it when memory runs out."""
        results: list[_T] = []
        start = 0
        while start < count:
            stop = min(start + self.batch_size, count)
            try:
                results.append(function(slice(start, stop)))
            except torch.OutOfMemoryError as error:
                if self.batch_size == 1:
                    raise GenerationError(
                        "memory ran out at batch_size 1; use a smaller image_size or dtype."
                    ) from error
                self.batch_size //= 2
                logger.warning("out of memory: going on with batch_size=%d", self.batch_size)
                torch.cuda.empty_cache()
                continue
            start = stop
        return results
