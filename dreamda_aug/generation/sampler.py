"""Inversion and generation of tensors in batches: the one place that runs the reverse loop."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from dreamda_aug.errors import GenerationError
from dreamda_aug.generation.cache import LatentCache, cache_key
from dreamda_aug.generation.guards import Watch, broken, guard
from dreamda_aug.generation.sampling import Run
from dreamda_aug.inputs.pixels import image_digest
from dreamda_aug.method.inversion import DDIMInversion, Trajectory
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.method.settings import ResolvedSettings
from dreamda_aug.method.solvers import call_levels
from dreamda_aug.models import DiffusionModel
from dreamda_aug.models.conditioning import Condition
from dreamda_aug.models.hook import BottleneckHook

logger = logging.getLogger(__name__)

# Inversions are always rounded to this, cached or not, so that both give the same images.
STORAGE_DTYPE = torch.float16

_T = TypeVar("_T")
# A row of the images, the path, and the condition of the inversion.
_Source = tuple[int, int, Condition]

_locks: WeakKeyDictionary[BottleneckHook, threading.RLock] = WeakKeyDictionary()


def in_turn(model: DiffusionModel) -> threading.RLock:
    """The lock that a thread holds while it uses a model, whose hook has the state of each call."""
    return _locks.setdefault(model.hook, threading.RLock())


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
    """What `Sampler.synthesize` made.

    Attributes:
        images: (B, C, H, W), float32 in [0, 1], on the model's device.
        events: what the guards did, one string per image: ``""``, ``"retried"``, ``"replaced"``
            or ``"unsafe"``; see `guard`.
        batch_sizes: the largest batch that each image was allowed; smaller than requested where
            memory ran out. The last bits of an image depend on the shape of its batch.
    """

    images: Tensor
    events: list[str]
    batch_sizes: list[int]


@dataclass(eq=False)
class Sampler:
    """The part of `Synthesizer` below images and labels: tensors of the model's size and channels.

    `Synthesizer.sampler` makes one, and ``dataclasses.replace`` makes another one on the same
    model. Threads may share samplers and models: each batch waits for its turn.

    Attributes:
        model: the diffusion model.
        settings: how images are inverted and generated.
        cache: where inversions are kept, or None for nowhere.
        batch_size: synthetic images per U-Net call; halved when memory runs out.
        rng_seed: another one gives other images throughout.
        static_shapes: pad batches to ``batch_size`` and share no first step between replicas, so
            that shapes never change, as compiled models want it.
        inversions: how many inversions were computed so far; cached ones do not count.
        watch: counts images and what the guards did.
    """

    model: DiffusionModel
    settings: ResolvedSettings
    cache: LatentCache | None
    batch_size: int
    rng_seed: int
    static_shapes: bool
    inversions: int = field(default=0, init=False)
    watch: Watch = field(default_factory=Watch, init=False)

    @property
    def schedule(self) -> NoiseSchedule:
        """The steps of a run, as the model's scheduler has them now."""
        s = self.settings
        return self.model.schedule(s.steps, s.strength, s.timestep_spacing)

    @property
    def _run(self) -> Run:
        return Run(self.model, self.settings, self.schedule)

    def synthesize(
        self, images: Tensor, requests: Sequence[Request], digests: Sequence[str] | None = None
    ) -> Synthesized:
        """Make the requested synthetic images; inversions are cached, memory follows the batch.

        A sample that comes out as NaN or black is made once more in float32; if that does not help,
        or if the pipeline's safety checker rejects it, the seed image takes its place.

        Args:
            images: seed images, (B, C, H, W) in [0, 1], of the model's size and channels.
            requests: what to make, any mix of images, conditions and replicas.
            digests: one digest per seed image, or None to take that of the pixels given here.

        Returns:
            One synthetic image for each request, and what the guards did to it.

        Raises:
            ValueError: the images do not fit the model.
            GenerationError: memory ran out at batch size 1, or more than half of the images come
                out broken.
        """
        self._check_images(images)
        if not requests:
            return Synthesized(images[:0], [], [])
        if self.static_shapes:
            self.watch.padded(len(requests), self.batch_size)
        digests = digests or [image_digest(image) for image in images]
        found: dict[_Source, Trajectory] = {}

        def make(batch: slice) -> Iterable[tuple[Tensor, str, int]]:
            nonlocal found
            part = requests[batch]
            # the condition belongs to it: without a null class, an inversion depends on the class
            sources = [(r.image, r.replica % self.settings.paths, self._source(r.condition))
                       for r in part]
            # replicas of an image may continue in the next batch: keep what this one uses, no more
            found = {source: found[source] for source in sources if source in found}
            found |= self._invert(images, digests, [
                source for source in dict.fromkeys(sources) if source not in found])
            seeds = [derive_seed(self.rng_seed, digests[r.image], "sample", r.replica, r.epoch)
                     for r in part]

            def make_rows(rows: Sequence[int]) -> Tensor:
                return self._generate([found[sources[i]] for i in rows],
                                      [part[i].condition for i in rows], [seeds[i] for i in rows])

            made = make_rows(range(len(part)))
            acts = guard(made, images[[r.image for r in part]], self.model, make_rows)
            self.watch.made_images(acts, self.model.name)
            return zip(made, acts, [self.batch_size] * len(part), strict=True)

        rows = self._in_batches(make, len(requests))
        return Synthesized(torch.stack([made for made, _, _ in rows]),
                           [act for _, act, _ in rows], [size for _, _, size in rows])

    def invert(
        self, images: Tensor, conditions: Sequence[Condition] | None = None
    ) -> list[Trajectory]:
        """Invert images, or read their inversions from the cache.

        Args:
            images: (B, C, H, W) in [0, 1], of the model's size and channels.
            conditions: only for class-conditional models without a null class, which cannot
                invert without the label.

        Returns:
            One trajectory per image, on the CPU.
        """
        self._check_images(images)
        digests = [image_digest(image) for image in images]
        sources = [(row, 0, self._source(each))
                   for row, each in enumerate(conditions or [None] * len(images))]
        return self._in_batches(
            lambda batch: self._invert(images, digests, sources[batch]).values(), len(images))

    def generate(
        self,
        trajectories: Sequence[Trajectory],
        conditions: Sequence[Condition] | None = None,
        sample_seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """Generate one image per trajectory; repeat a trajectory for several replicas of it.

        Args:
            trajectories: what `invert` returned.
            conditions: prompt, class index or None for each, or None for no conditions.
            sample_seeds: one per sample, >= 0, or None for 0, 1, 2, ...

        Returns:
            Images (B, C, H, W), float32 in [0, 1], on the model's device.

        Raises:
            GenerationError: the U-Net gave NaN, or memory ran out at batch size 1.
        """
        conditions = conditions or [None] * len(trajectories)
        seeds = sample_seeds or list(range(len(trajectories)))
        made = torch.stack(self._in_batches(lambda batch: self._generate(
            trajectories[batch], conditions[batch], seeds[batch]), len(trajectories)))
        if count := int(broken(made).sum()):
            raise GenerationError(
                f"{self.model.name} gave NaN or infinite pixels in {count} of {len(made)} "
                "images; load the model with dtype=torch.float32 or torch.bfloat16.")
        return made

    def rows(self, *, inversions: int, samples: int) -> int:
        """Passes of the whole denoiser that a run takes, without the padding of compiled models.

        They are counted in rows of a batch; a second decoder pass of a row counts as half.

        Args:
            inversions: how many are computed; each batch that a trajectory is used in counts.
            samples: how many are generated.
        """
        s, run, inverting = self.settings, self._run, 0
        levels, guided = call_levels(s.solver, run.schedule), run.guided
        if s.replay > 0:
            inverting += len(run.schedule) if isinstance(s.inversion, DDIMInversion) else 0
            inverting += len(levels) if s.inversion.records_residuals else 0
        encoder = decoder = inverting * inversions
        asymmetric = s.update_rule == "asymmetric" and s.noise_scale > 0
        shares_first = run.can_share_first_step and not self.static_shapes
        for call, level in enumerate(levels):
            branches = 1 + guided[level]
            inputs = branches * (
                min(inversions, samples) if shares_first and call == 0 else samples)
            encoder += inputs
            decoder += branches * samples + (inputs if asymmetric else 0)
        return -(-(encoder + decoder) // 2)

    def _source(self, condition: Condition) -> Condition:
        """What an inversion is conditioned on: nothing, where the model has such a branch."""
        if self.model.condition_kind == "class" and not self.model.guidable:
            return condition
        return self.settings.source_prompt if self.model.condition_kind == "text" else None

    def _invert(
        self, images: Tensor, digests: Sequence[str], sources: Sequence[_Source]
    ) -> dict[_Source, Trajectory]:
        run, cache, found = self._run, self.cache, dict[_Source, Trajectory]()
        keys = self._keys(run.schedule, digests, sources) if cache else {}
        for source, key in keys.items():
            if cache and (stored := cache.get(key)):
                found[source] = Trajectory(**stored)
        missing = [source for source in sources if source not in found]
        # replicas make inversions few: with static shapes, small slices waste little on padding
        size = max(1, self.batch_size // 8) if self.static_shapes else max(1, len(missing))
        for start in range(0, len(missing), size):
            part = missing[start : start + size]
            rows = _pad(part, size) if self.static_shapes else part
            seeds = [derive_seed(self.rng_seed, digests[i], "path", path) for i, path, _ in rows]
            made = run.invert(images[[i for i, _, _ in rows]], [each for _, _, each in rows],
                              seeds, STORAGE_DTYPE)
            for source, trajectory in zip(part, made):  # not strict: without the padding
                found[source] = trajectory
                if cache:
                    cache.put(keys[source], trajectory.tensors())
        self.inversions += len(missing)
        return {source: found[source] for source in sources}

    def _keys(
        self, schedule: NoiseSchedule, digests: Sequence[str], sources: Sequence[_Source]
    ) -> dict[_Source, str]:
        """The cache key of each inversion: everything that it depends on."""
        model, s = self.model, self.settings
        common: dict[str, Any] = {
            "model": model.fingerprint, "image_size": list(model.image_size),
            "in_tiles": model.in_tiles, "rng_seed": self.rng_seed, "dtype": str(STORAGE_DTYPE),
        }
        conditions = {condition for _, _, condition in sources}
        of_condition: dict[Condition, dict[str, str]] = dict.fromkeys(conditions, {})
        if s.replay > 0:  # else nothing is recorded
            common |= {"inversion": repr(s.inversion), "schedule": schedule.digest(),
                       "solver": s.solver, "eta": s.eta}
            of_condition = {each: {"source": model.condition_digest(each)} for each in conditions}
        return {(i, path, each): cache_key(**common, image=digests[i], path=path,
                                           **of_condition[each]) for i, path, each in sources}

    def _generate(
        self, trajectories: Sequence[Trajectory], conditions: Sequence[Condition],
        seeds: Sequence[int],
    ) -> Tensor:
        count, size = len(seeds), self.batch_size
        if self.static_shapes:
            trajectories, conditions, seeds = (
                _pad(trajectories, size), _pad(conditions, size), _pad(seeds, size))
        latents = self._run.sample(trajectories, conditions, seeds, not self.static_shapes)
        return self.model.decode(latents[:count])

    def _check_images(self, images: Tensor) -> None:
        expected = (self.model.channels, *self.model.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ValueError(
                f"images must have shape (B, {', '.join(map(str, expected))}) for "
                f"{self.model.name}, got {tuple(images.shape)}; DreamDAugment resizes by itself.")

    def _in_batches(self, function: Callable[[slice], Iterable[_T]], count: int) -> list[_T]:
        """Results of ``function`` on slices of at most `batch_size`, halved if memory runs out."""
        results: list[_T] = []
        start = 0
        while start < count:
            stop = min(start + self.batch_size, count)
            try:
                # a training loop's autocast does not reach the diffusion model
                with (in_turn(self.model), torch.no_grad(),
                      torch.autocast(self.model.device.type, enabled=False)):
                    results.extend(function(slice(start, stop)))
                start = stop
                continue
            except torch.OutOfMemoryError as error:
                if self.batch_size == 1:
                    raise GenerationError(
                        "memory ran out at batch_size 1; use a smaller image_size or dtype."
                    ) from error
            # out of the except block: until then the error's traceback holds the batch's tensors
            self.batch_size //= 2
            logger.warning("out of memory: continuing with batch_size=%d", self.batch_size)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return results


def _pad(values: Sequence[_T], count: int) -> list[_T]:
    """The values, and the last one repeated, ``count`` in all."""
    return [*values, *[values[-1]] * (count - len(values))]
