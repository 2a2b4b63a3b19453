"""Our paths against a plain loop with the cost structure of the authors' released generator."""

from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.common.measurement import Measured, UnetFlops, measure
from benchmarks.common.plain import plain_loop
from benchmarks.speed.bench import Bench
from dreamda_aug.generation.tensors import Request, TensorSynthesizer
from dreamda_aug.inputs.images import image_digest
from dreamda_aug.method.seeding import derive_seed


@dataclass
class PathTimer:
    """Times one path after another; the plain loop comes first, as all are compared with it.

    Attributes:
        bench: the model, the settings, and how much is timed.
        flops: of one row through the U-Net.
        matrix_product_rate: what the machine does at best, in operations per second.
        plain_seconds: per sample of each plain loop that was timed so far.
    """

    bench: Bench
    flops: UnetFlops
    matrix_product_rate: float
    plain_seconds: list[float] = field(default_factory=list)

    def time_plain_loop(self, rows: int, samples: int) -> dict[str, Any]:
        """The released generator's cost structure, one sample after another."""
        synthesizer, tap = self.bench.synthesizer(), self.bench.backbone.tap
        images, requests = self.bench.work(samples)

        def run(number: int) -> Tensor:
            return plainly(synthesizer, images, requests[number], rows)

        with torch.no_grad():
            run(0)
            before = tap.encoder_rows, tap.decoder_rows
            measured = measure(lambda: [run(i) for i in range(samples)],
                               self.bench.backbone.device)
        row = {"path": f"plain loop, {rows} rows", "batch_size": 1}
        row |= self._per_sample(samples, measured, before)
        self.plain_seconds.append(row["seconds"])
        return row

    def time_path(
        self, name: str, synthesizer: TensorSynthesizer, exact: TensorSynthesizer | None = None
    ) -> dict[str, Any]:
        """One of our paths, inversion included.

        Args:
            name: as the table shows it.
            synthesizer: what takes the path.
            exact: whose images to compare with; None: the first image with the plain loop's.
        """
        size, tap = synthesizer.batch_size, self.bench.backbone.tap
        samples = size * -(-self.bench.replicas // size)  # whole batches of all replicas
        self.bench.run(synthesizer, size)  # a first batch compiles, and prepares kernels
        before = tap.encoder_rows, tap.decoder_rows
        measured = measure(lambda: self.bench.run(synthesizer, samples),
                           self.bench.backbone.device)
        row = {"path": name, "batch_size": synthesizer.batch_size}
        row |= self._per_sample(samples, measured, before)
        if exact is None:
            return row | self._difference_from_plain(synthesizer, measured.result[:1])
        return row | self._difference_from_exact(exact, measured.result)

    def _difference_from_plain(
        self, synthesizer: TensorSynthesizer, first: Tensor
    ) -> dict[str, float]:
        images, requests = self.bench.work(1)
        rows = 4 if self.bench.backbone.guidable else 2
        with torch.no_grad():
            plain = plainly(synthesizer, images, requests[0], rows)
            with patch("dreamda_aug.generation.tensors.STORAGE_DTYPE", torch.float32):
                unrounded = synthesizer.synthesize(images, requests).images
        return {"max_difference": (first - plain).abs().max().item(),
                "max_difference_in_float32": (unrounded - plain).abs().max().item()}

    def _difference_from_exact(self, exact: TensorSynthesizer, made: Tensor) -> dict[str, float]:
        reference = self.bench.run(exact, len(made))
        distance = (made - reference).abs()
        # what another replica of the same image differs by, for scale
        replicas = reference[: self.bench.replicas]
        between = (replicas[1:] - replicas[:1]).abs()
        return {"max_difference": distance.max().item(), "mean_difference": distance.mean().item(),
                "mean_difference_of_replicas": between.mean().item()}

    def _per_sample(
        self, samples: int, measured: Measured, before: tuple[int, int]
    ) -> dict[str, Any]:
        tap = self.bench.backbone.tap
        encoder, decoder = tap.encoder_rows - before[0], tap.decoder_rows - before[1]
        operations = encoder * self.flops.encoder + decoder * self.flops.decoder
        seconds = measured.seconds / samples
        return {
            "samples": samples, "seconds": seconds, "samples_per_second": 1 / seconds,
            "encoder_rows": encoder / samples, "decoder_rows": decoder / samples,
            "share_of_matrix_product_rate":
                operations / measured.seconds / self.matrix_product_rate,
            "peak_bytes": measured.peak_bytes,
            "speed_up": [plain / seconds for plain in self.plain_seconds] or [1.0],
        }  # fmt: skip


def plainly(
    synthesizer: TensorSynthesizer, images: Tensor, request: Request, rows: int
) -> Tensor:
    """What the plain loop makes of one request, (1, C, H, W)."""
    image = images[request.image]
    return plain_loop(synthesizer, image[None], rows, request.condition,
                      *seeds_of(synthesizer, image, request))


def seeds_of(
    synthesizer: TensorSynthesizer, image: Tensor, request: Request
) -> tuple[int, int]:
    """Path seed and sample seed, as `TensorSynthesizer.synthesize` derives them."""
    digest = image_digest(image)
    return (derive_seed(synthesizer.rng_seed, digest, "path", 0),
            derive_seed(synthesizer.rng_seed, digest, "sample", request.replica, request.epoch))
