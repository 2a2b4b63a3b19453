"""Inversion and generation in batches: the one place that runs the reverse loop."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamda_aug.backbones import Backbone, Condition, load_backbone
from dreamda_aug.cache import LatentCache, cache_key, image_digest
from dreamda_aug.calibration import resolve_auto
from dreamda_aug.errors import GenerationError
from dreamda_aug.guards import broken, guard
from dreamda_aug.inversion import Trajectory
from dreamda_aug.recording import record_trajectories, source_condition
from dreamda_aug.sampling import sample
from dreamda_aug.schedule import NoiseSchedule
from dreamda_aug.seeding import derive_seed
from dreamda_aug.settings import Settings, resolve_settings

logger = logging.getLogger(__name__)

# Inversions are always rounded to this, cached or not, so that both give the same images.
STORAGE_DTYPE = torch.float16


@dataclass(frozen=True)
class Request:
    """One synthetic image to make.

    Attributes:
        image: index of the seed image in the batch that is given with the request.
        condition: what generation is told: a prompt, a class index, or None.
        replica: number of the replica, >= 0.
        epoch: number of the epoch, >= 0; another epoch is another perturbation.
    """

    image: int
    condition: Condition = None
    replica: int = 0
    epoch: int = 0


def pad(values: Sequence, count: int) -> list:
    """The values, and the last one repeated, ``count`` in all."""
    return [*values, *[values[-1]] * (count - len(values))]


class Generator:
    """Makes synthetic images from seed images with one diffusion model.

    Args:
        backbone: what `load_backbone` returns, or what it takes.
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
        events: how often guards had to act so far: ``"retried"`` in float32, ``"replaced"`` by the
            seed image, ``"unsafe"`` and therefore replaced.

    Raises:
        ValueError: an argument breaks its rule.
        BackboneError: the backbone cannot be loaded.
    """

    def __init__(
        self,
        backbone="bundled",
        preset: Settings | str = "recommended",
        *,
        cache: LatentCache | None = None,
        batch_size: int = 32,
        rng_seed: int = 0,
        compile: bool | dict[str, Any] = False,
        **overrides,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.backbone: Backbone = backbone if hasattr(backbone, "tap") else load_backbone(backbone)
        self.requested_settings = resolve_settings(preset, **overrides)
        self.settings = resolve_auto(self.requested_settings, self.backbone, cache)
        self.cache = cache
        self.batch_size = batch_size
        self.rng_seed = rng_seed
        self.static_shapes = bool(compile)
        if compile:
            self.backbone.compile(**(compile if isinstance(compile, dict) else {}))
        self.inversions = 0
        self.events: Counter[str] = Counter()
        self.schedule: NoiseSchedule = self.backbone.schedule(
            self.settings.steps, self.settings.strength
        )

    def with_settings(self, settings: Settings) -> "Generator":
        """Another generator on the same backbone and cache."""
        other = Generator(self.backbone, settings, cache=self.cache, batch_size=self.batch_size,
                          rng_seed=self.rng_seed)
        other.static_shapes = self.static_shapes
        return other

    def augment(
        self,
        images: Tensor,
        requests: Sequence[Request],
        digests: Sequence[str] | None = None,
        events: list[str] | None = None,
    ) -> Tensor:
        """Make the requested synthetic images; inversions are cached, memory follows the batch.

        A sample that comes out as NaN or black is made once more in float32; if that does not help,
        or if the pipeline's safety checker rejects it, the seed image takes its place.

        Args:
            images: seed images, (B, C, H, W) in [0, 1], of the backbone's size and channels.
            requests: what to make, any mix of images, conditions and replicas.
            digests: one digest per seed image; None: that of the pixels given here.
            events: filled with what the guards did, one string per request: ``""``, ``"retried"``,
                ``"replaced"`` or ``"unsafe"``.

        Returns:
            Synthetic images, (len(requests), C, H, W), float32 in [0, 1], on the backbone's device.

        Raises:
            ValueError: the images do not fit the backbone.
            GenerationError: memory ran out at batch size 1.
        """
        self._check_images(images)
        digests = digests or [image_digest(image) for image in images]

        found: dict[tuple[int, int], Trajectory] = {}

        def make(batch: slice) -> Tensor:
            nonlocal found
            part = requests[batch]
            sources = [(r.image, r.replica % self.settings.paths) for r in part]
            told = {source: r.condition for source, r in zip(sources, part, strict=True)}
            # replicas of an image may go on in the next batch: keep what this one uses, no more
            found = {source: found[source] for source in told if source in found}
            new = [source for source in told if source not in found]
            made = self._invert(
                images[[i for i, _ in new]], [digests[i] for i, _ in new],
                [path for _, path in new], [told[source] for source in new],
            )
            found.update(zip(new, made, strict=True))
            seeds = [derive_seed(self.rng_seed, digests[r.image], "sample", r.replica, r.epoch)
                     for r in part]
            trajectories, conditions = [found[s] for s in sources], [r.condition for r in part]

            def make_rows(rows: Sequence[int]) -> Tensor:
                return self._generate(*([values[i] for i in rows]
                                        for values in (trajectories, conditions, seeds)))

            made = make_rows(range(len(part)))
            acts = guard(made, images[[r.image for r in part]], self.backbone, make_rows)
            self.events.update(act for act in acts if act)
            if events is not None:
                events.extend(acts)
            return made

        return self._stack(self._in_batches(make, len(requests)))

    def invert(
        self,
        images: Tensor,
        digests: Sequence[str] | None = None,
        paths: Sequence[int] | None = None,
        conditions: Sequence[Condition] | None = None,
    ) -> list[Trajectory]:
        """Invert images, or read their inversions from the cache.

        Args:
            images: (B, C, H, W) in [0, 1], of the backbone's size and channels.
            digests: one per image; None: that of the pixels given here.
            paths: which of the image's source paths, one number per image; None: path 0.
            conditions: only for class-conditional backbones without a null class, which cannot
                invert without the label.

        Returns:
            One trajectory per image, on the CPU.
        """
        self._check_images(images)
        digests = digests or [image_digest(image) for image in images]
        paths = paths or [0] * len(images)
        conditions = conditions or [None] * len(images)
        batches = self._in_batches(lambda batch: self._invert(
            images[batch], digests[batch], paths[batch], conditions[batch]), len(images))
        return [trajectory for batch in batches for trajectory in batch]

    def generate(
        self,
        trajectories: Sequence[Trajectory],
        conditions: Sequence[Condition] | None = None,
        seeds: Sequence[int] | None = None,
        noise_scales: Sequence[float] | None = None,
    ) -> Tensor:
        """Generate one image per trajectory; repeat a trajectory for several replicas of it.

        Args:
            trajectories: what `invert` returned.
            conditions: prompt, class index or None for each; None: unconditional.
            seeds: one per sample, >= 0; None: 0, 1, 2, ...
            noise_scales: one per sample, instead of the settings' noise scale.

        Returns:
            Images (B, C, H, W), float32 in [0, 1], on the backbone's device.

        Raises:
            GenerationError: the U-Net gave NaN, or memory ran out at batch size 1.
        """
        conditions = conditions or [None] * len(trajectories)
        seeds = seeds or list(range(len(trajectories)))
        made = self._stack(self._in_batches(lambda batch: self._generate(
            trajectories[batch], conditions[batch], seeds[batch],
            None if noise_scales is None else noise_scales[batch],
        ), len(trajectories)))
        if count := int(broken(made).sum()):
            raise GenerationError(
                f"{self.backbone.name} gave NaN or infinite pixels in {count} of {len(made)} "
                "images; load the backbone with dtype=torch.float32 or torch.bfloat16."
            )
        return made

    def inversion_key(self, digest: str, path: int, source: Condition) -> str:
        """The cache key of one inversion: everything that it depends on."""
        s = self.settings
        replays = s.adherence > 0
        return cache_key(
            image=digest,
            backbone=self.backbone.fingerprint, image_size=list(self.backbone.image_size),
            in_tiles=getattr(self.backbone, "in_tiles", False),
            inversion=repr(s.inversion) if replays else "none",
            steps=s.steps if replays else 0, strength=s.strength if replays else 0,
            eta=s.eta if replays else 0,
            source=source, path=path, rng_seed=self.rng_seed, dtype=str(STORAGE_DTYPE),
        )

    @torch.no_grad()
    def _invert(self, images, digests, paths, conditions) -> list[Trajectory]:
        sources = [source_condition(self.backbone, self.settings, each) for each in conditions]
        keys = [self.inversion_key(*each) for each in zip(digests, paths, sources, strict=True)]
        found: list[Trajectory | None] = [None] * len(keys)
        if self.cache is not None:
            stored = [self.cache.get(key) for key in keys]
            found = [None if s is None else Trajectory(**{"x_T": None, **s}) for s in stored]
        missing = [i for i, trajectory in enumerate(found) if trajectory is None]
        # replicas make inversions few: with static shapes, small slices waste little on padding
        size = max(1, self.batch_size // 8) if self.static_shapes else max(1, len(missing))
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            rows = pad(part, size) if self.static_shapes else part
            seeds = [derive_seed(self.rng_seed, digests[i], "path", paths[i]) for i in rows]
            made = record_trajectories(self.backbone, self.settings, self.schedule, images[rows],
                                       [sources[i] for i in rows], seeds, STORAGE_DTYPE)
            for i, trajectory in zip(part, made):  # not strict: without the padding
                found[i] = trajectory
                if self.cache is not None:
                    self.cache.put(keys[i], trajectory.tensors())
        self.inversions += len(missing)
        return found

    @torch.no_grad()
    def _generate(self, trajectories, conditions, seeds, noise_scales=None) -> Tensor:
        count = len(seeds)
        scales = [self.settings.noise_scale] * count if noise_scales is None else noise_scales
        inputs = [trajectories, conditions, seeds, scales]
        if self.static_shapes:
            inputs = [pad(values, self.batch_size) for values in inputs]
        latents = sample(self.backbone, self.settings, self.schedule, *inputs,
                         share_first_step=not self.static_shapes)
        return self.backbone.decode(latents[:count])

    def _check_images(self, images: Tensor) -> None:
        expected = (self.backbone.channels, *self.backbone.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must have shape (B, {', '.join(map(str, expected))}) for "
                f"{self.backbone.name}, got {tuple(images.shape)}; DreamDAugment resizes by itself."
            )

    def _stack(self, batches: list[Tensor]) -> Tensor:
        empty = torch.empty(0, self.backbone.channels, *self.backbone.image_size)
        return torch.cat(batches) if batches else empty

    def _in_batches(self, function: Callable[[slice], Any], count: int) -> list:
        """Call ``function`` on slices of at most `batch_size`; halve it when memory runs out."""
        results, start = [], 0
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
