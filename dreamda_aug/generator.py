"""Inversion and generation in batches: the one place that runs the reverse loop."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dreamda_aug.backbones import Backbone, Condition, load_backbone
from dreamda_aug.cache import LatentCache, cache_key
from dreamda_aug.calibration import resolve_auto
from dreamda_aug.errors import GenerationError
from dreamda_aug.inversion import Trajectory, record
from dreamda_aug.schedule import NoiseSchedule
from dreamda_aug.seeding import SOURCE, STEP, derive_seed, seeded_normal
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


def image_digest(image: Tensor) -> str:
    """SHA-256 of an image's pixels, shape and dtype, in hexadecimal."""
    image = image.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{tuple(image.shape)}{image.dtype}".encode())
    digest.update(image.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


class Generator:
    """Makes synthetic images from seed images with one diffusion model.

    Args:
        backbone: what `load_backbone` returns, or what it takes.
        preset: a preset's name or `Settings`.
        cache: where inversions are kept; None: nowhere.
        batch_size: synthetic images per U-Net call; halved by itself when memory runs out.
        rng_seed: another one gives other images throughout.
        overrides: single settings that differ from the preset, such as ``noise_scale=2.0``.

    Attributes:
        inversions: how many inversions were computed so far; cached ones do not count.

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
        self.inversions = 0
        self.schedule: NoiseSchedule = self.backbone.schedule(
            self.settings.steps, self.settings.strength
        )

    def with_settings(self, settings: Settings) -> "Generator":
        """Another generator on the same backbone and cache."""
        return Generator(self.backbone, settings, cache=self.cache, batch_size=self.batch_size,
                         rng_seed=self.rng_seed)

    @property
    def guided(self) -> bool:
        """Whether generation runs two guidance branches."""
        return self.backbone.guidable and self.settings.guidance_scale > 1

    def augment(
        self, images: Tensor, requests: Sequence[Request], digests: Sequence[str] | None = None
    ) -> Tensor:
        """Make the requested synthetic images; inversions are cached, memory follows the batch.

        Args:
            images: seed images, (B, C, H, W) in [0, 1], of the backbone's size and channels.
            requests: what to make, any mix of images, conditions and replicas.
            digests: one digest per seed image; None: that of the pixels given here.

        Returns:
            Synthetic images, (len(requests), C, H, W), float32 in [0, 1], on the backbone's device.

        Raises:
            ValueError: the images do not fit the backbone.
            GenerationError: the U-Net gave NaN, or memory ran out at batch size 1.
        """
        self._check_images(images)
        digests = digests or [image_digest(image) for image in images]

        def make(batch: slice) -> Tensor:
            part = requests[batch]
            sources = [(r.image, r.replica % self.settings.paths) for r in part]
            unique = list(dict.fromkeys(sources))
            conditions = {r.image: r.condition for r in part}
            found = dict(zip(unique, self._invert(
                images[[i for i, _ in unique]],
                [digests[i] for i, _ in unique],
                [path for _, path in unique],
                [conditions[i] for i, _ in unique],
            ), strict=True))
            seeds = [derive_seed(self.rng_seed, digests[r.image], "sample", r.replica, r.epoch)
                     for r in part]
            return self._generate(
                [found[s] for s in sources], [r.condition for r in part], seeds, None
            )

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
        """
        conditions = conditions or [None] * len(trajectories)
        seeds = seeds or list(range(len(trajectories)))
        return self._stack(self._in_batches(lambda batch: self._generate(
            trajectories[batch], conditions[batch], seeds[batch],
            noise_scales[batch] if noise_scales is not None else None,
        ), len(trajectories)))

    def inversion_key(self, digest: str, path: int, source: Condition) -> str:
        """The cache key of one inversion: everything that it depends on."""
        s = self.settings
        replays = s.adherence > 0
        return cache_key(
            image=digest,
            backbone=self.backbone.fingerprint,
            inversion=repr(s.inversion) if replays else "none",
            steps=s.steps if replays else 0, strength=s.strength if replays else 0,
            eta=s.eta if replays else 0,
            source=source, path=path, rng_seed=self.rng_seed, dtype=str(STORAGE_DTYPE),
        )

    @torch.no_grad()
    def _invert(self, images, digests, paths, conditions) -> list[Trajectory]:
        sources = [self._source_condition(condition) for condition in conditions]
        keys = [self.inversion_key(*each) for each in zip(digests, paths, sources, strict=True)]
        found: list[Trajectory | None] = [None] * len(keys)
        if self.cache is not None:
            stored = [self.cache.get(key) for key in keys]
            found = [None if s is None else Trajectory(**{"x_T": None, **s}) for s in stored]
        missing = [i for i, trajectory in enumerate(found) if trajectory is None]
        if missing:
            seeds = [derive_seed(self.rng_seed, digests[i], "path", paths[i]) for i in missing]
            made = self._compute_inversions(images[missing], seeds, [sources[i] for i in missing])
            for i, trajectory in zip(missing, made, strict=True):
                found[i] = trajectory
                if self.cache is not None:
                    self.cache.put(keys[i], trajectory.tensors())
        return found

    def _compute_inversions(self, images, seeds, sources) -> list[Trajectory]:
        backbone, s, schedule = self.backbone, self.settings, self.schedule
        x_0 = backbone.encode(images)
        self.inversions += len(images)
        if s.adherence == 0:
            x_0 = x_0.to(STORAGE_DTYPE).cpu()
            return [Trajectory(None, None, latent) for latent in x_0]
        condition = backbone.embed(sources)
        backbone.tap.clear()

        def predict(x_t: Tensor, step: int) -> Tensor:
            return backbone.predict(x_t, schedule.timesteps[step], condition)

        seeds = torch.tensor(seeds, device=backbone.device)
        path = s.inversion.source_path(x_0, predict, schedule, s.eta, seeds)
        if not s.inversion.records_residuals:
            return [Trajectory(x_T) for x_T in path[0].to(STORAGE_DTYPE).cpu()]
        x_T, residuals = record(path, predict, schedule, s.eta, STORAGE_DTYPE)
        return [Trajectory(*each) for each in zip(x_T.cpu(), residuals.cpu(), strict=True)]

    @torch.no_grad()
    def _generate(self, trajectories, conditions, seeds, noise_scales) -> Tensor:
        s, schedule, device = self.settings, self.schedule, self.backbone.device
        # replicas of one image start together, so the first step sees each start once
        starts = list(zip(map(id, trajectories), conditions, strict=True))
        first = {start: i for i, start in reversed(list(enumerate(starts)))}
        if s.adherence == 0:
            first = dict(enumerate(range(len(starts))))
            starts = list(first)
        order = {start: row for row, start in enumerate(first)}
        index = torch.tensor([order[start] for start in starts], device=device)
        unique = [trajectories[i] for i in first.values()]
        seeds = torch.tensor(seeds, device=device)
        scales = [s.noise_scale] * len(seeds) if noise_scales is None else noise_scales
        sampler = _Sampler(self, conditions, seeds, scales)
        if s.adherence == 0:
            x_0 = torch.stack([t.x_0 for t in unique]).to(device, torch.float32)
            noise = seeded_normal(seeds, 0, SOURCE, tuple(x_0.shape[1:]))
            x_t = schedule.add_noise(x_0, noise, 0)
            residuals = None
        else:
            x_t = torch.stack([t.x_T for t in unique]).to(device, torch.float32)
            residuals = None
            if unique[0].residuals is not None:
                residuals = torch.stack([t.residuals for t in unique]).to(device)
        rows = torch.tensor(list(first.values()), device=device)
        everyone = torch.arange(len(seeds), device=device)
        for step in range(len(schedule)):
            if step == 0:
                x_0, eps = sampler.predictions(x_t, step, rows, index)
            else:
                x_0, eps = sampler.predictions(x_t, step, everyone, None)
            x_t, std = schedule.posterior(x_0, eps, step, s.eta)
            if residuals is not None:
                x_t = x_t + s.adherence * residuals[index, step].float()
            if s.adherence < 1:
                noise = seeded_normal(seeds, step, STEP, tuple(x_t.shape[1:]))
                x_t = x_t + (1 - s.adherence**2) ** 0.5 * std * noise
        if residuals is not None:
            x_t = x_t + s.adherence * residuals[index, len(schedule)].float()
        images = self.backbone.decode(x_t)
        if not images.isfinite().all():
            raise GenerationError(
                f"{self.backbone.name} gave NaN or infinite pixels in "
                f"{int((~images.isfinite().flatten(1).all(1)).sum())} of {len(images)} images; "
                "load the backbone with dtype=torch.float32 or torch.bfloat16."
            )
        return images

    def _source_condition(self, condition: Condition) -> Condition:
        """What the inversion is told: nothing, where the backbone knows such a branch."""
        if self.backbone.condition_kind == "class" and not self.backbone.guidable:
            return condition
        if self.backbone.condition_kind == "text":
            return self.settings.source_prompt
        return None

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


class _Sampler:
    """One batch's conditions, seeds and scales, laid out for the tap."""

    def __init__(self, generator: Generator, conditions, seeds: Tensor, scales: Sequence[float]):
        self.backbone, self.settings = generator.backbone, generator.settings
        self.schedule, self.guided = generator.schedule, generator.guided
        self.condition = self.backbone.embed(conditions)
        if self.guided:
            self.null = self.backbone.embed([None])
        self.seeds = seeds
        self.noisy = any(scale > 0 for scale in scales)
        self.scales = torch.tensor(scales, device=seeds.device, dtype=torch.float32)

    def predictions(
        self, x: Tensor, step: int, rows: Tensor, index: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The x_0 and eps that the update rule asks for, (N, C, H, W) each.

        Args:
            x: the U-Net's inputs, (U, C, H, W).
            step: number of the reverse step.
            rows: for each input, a sample with its condition, (U,).
            index: for each of the N samples, its input; None: sample i has input i.
        """
        backbone, guided, count = self.backbone, self.guided, len(x)
        samples = torch.arange(count, device=x.device) if index is None else index
        condition = {name: value[rows] for name, value in self.condition.items()}
        if guided:
            condition = {name: torch.cat([self.null[name].expand_as(value), value])
                         for name, value in condition.items()}
        groups = 2 if guided else 1
        perturbed = torch.cat([samples + group * count for group in range(groups)])
        clean = groups * count if self.noisy and self.settings.update_rule == "asymmetric" else 0
        branches = torch.cat([torch.arange(clean, device=x.device), perturbed])
        t = self.schedule.timesteps[step]
        tap = backbone.tap
        tap.set(
            self.settings.perturbation if self.noisy else None,
            branches if clean or index is not None else None,
            clean,
            groups * count,
            seeds=self.seeds.repeat(groups),
            step=t.new_tensor(step),
            unconditional=(torch.arange(groups, device=x.device) < groups - 1)
            .repeat_interleave(len(samples)),
            scale=self.scales.repeat(groups),
        )
        try:
            output = backbone.predict(torch.cat([x] * groups), t, condition)
            tap.check_fired()
        finally:
            tap.clear()
        x_0, eps = self.schedule.predictions(
            self._guide(output[clean:]), x if index is None else x[index], step
        )
        if clean:
            _, eps = self.schedule.predictions(self._guide(output[:clean]), x, step)
            eps = eps if index is None else eps[index]
        return x_0, eps

    def _guide(self, output: Tensor) -> Tensor:
        """Classifier-free guidance, arXiv:2207.12598, eq. 6, in the form that diffusers uses."""
        if not self.guided:
            return output
        unconditional, conditional = output.chunk(2)
        return unconditional + self.settings.guidance_scale * (conditional - unconditional)
