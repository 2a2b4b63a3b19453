"""What all timed runs have in common."""

from dataclasses import dataclass, replace

from torch import Tensor

from benchmarks.common.architectures import sample_images
from benchmarks.common.plain import plain_loop
from dreamda_aug import Settings, Synthesizer
from dreamda_aug.generation.cache import LatentCache
from dreamda_aug.generation.sampler import Request, Sampler
from dreamda_aug.inputs.pixels import image_digest
from dreamda_aug.method.seeding import derive_seed
from dreamda_aug.models import DiffusionModel


@dataclass(frozen=True)
class Bench:
    """The model, the settings, and how much is timed.

    Attributes:
        model: the diffusion model.
        settings: of exact mode.
        batch_size: synthetic images per U-Net call.
        replicas: K, synthetic images per seed image.
        repeats: how often each side is timed; the median counts.
        compiled: the same diffusion model on the same weights, compiled; None: left out.
    """

    model: DiffusionModel
    settings: Settings
    batch_size: int
    replicas: int
    repeats: int
    compiled: DiffusionModel | None = None

    def synthesizer(
        self, model: DiffusionModel | None = None, batch_size: int = 0,
        cache: LatentCache | None = None, **changes
    ) -> Sampler:
        """One without a cache on disk, unless one is given."""
        made = Synthesizer(model or self.model, replace(self.settings, **changes),
                           batch_size=batch_size or self.batch_size, cache=cache)
        # as Synthesizer(compile=True) sets it, which would compile once more for each
        return replace(made.sampler, static_shapes=model is not None and model is self.compiled)

    def work(self, samples: int) -> tuple[Tensor, list[Request]]:
        """Seed images, and requests for their replicas."""
        condition = {"text": "a photo", "class": 0, "none": None}[self.model.condition_kind]
        requests = [Request(i // self.replicas, condition, i % self.replicas)
                    for i in range(samples)]
        return sample_images(self.model, requests[-1].image + 1), requests

    def run(self, synthesizer: Sampler, samples: int = 0) -> Tensor:
        """Invert and generate: synthetic images, (samples, C, H, W); 0: one batch of them."""
        return synthesizer.synthesize(*self.work(samples or self.batch_size)).images


def plainly(
    synthesizer: Sampler, images: Tensor, request: Request, rows: int
) -> Tensor:
    """What the plain loop makes of one request, (1, C, H, W)."""
    image = images[request.image]
    return plain_loop(synthesizer, image[None], rows, request.condition,
                      *seeds_of(synthesizer, image, request))


def seeds_of(
    synthesizer: Sampler, image: Tensor, request: Request
) -> tuple[int, int]:
    """Path seed and sample seed, as `Sampler.synthesize` derives them."""
    digest = image_digest(image)
    return (derive_seed(synthesizer.rng_seed, digest, "path", 0),
            derive_seed(synthesizer.rng_seed, digest, "sample", request.replica, request.epoch))
