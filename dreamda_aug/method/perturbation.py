"""What is added to the bottleneck of a diffusion model."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from dreamda_aug.arguments import check_fields
from dreamda_aug.method.seeding import BOTTLENECK, seeded_normal


@runtime_checkable
class Perturbation(Protocol):
    """Anything that changes bottleneck features; see `BottleneckNoise` for ours."""

    def __call__(
        self, h: Tensor, seeds: Tensor, step: Tensor, unconditional: Tensor, scale: Tensor
    ) -> Tensor:
        """h' of every row; arguments as in `BottleneckNoise.__call__`."""
        ...


@dataclass(frozen=True)
class BottleneckNoise:
    """Gaussian noise on the bottleneck: h' = h + scale · n, fresh at every step.

    Attributes:
        relative: whether the scale is relative to RMS(h) of each row, so that it means about the
            same for every model [ours]; in a transformer, whose channels differ by orders of
            magnitude, of each row and channel. The authors' code has absolute scales.
        shared: one noise for the conditional and unconditional row of a sample [ours]. False draws
            them independently, as the authors' code does; guidance then amplifies the difference
            by sqrt((w - 1)² + w²), about 9.9 at w = 7.5.

    Source: DreamDA, arXiv:2403.12803, method figure.
    """

    relative: bool = True
    shared: bool = True

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(
        self, h: Tensor, seeds: Tensor, step: Tensor, unconditional: Tensor, scale: Tensor
    ) -> Tensor:
        """Perturb every row.

        Args:
            h: bottleneck features, (R, C, H, W), or a transformer's image tokens, (R, N, C).
            seeds: the sample seed of each row, (R,) int64; or of each sample, (N,), where all have
                R / N rows that share their noise, the first rows of all samples coming first.
            step: number of the reverse step, 0-d int64.
            unconditional: which rows are the unconditional branch of guidance, (R,) bool.
            scale: noise scale of each row, (R,) float32; 0 leaves a row as it is.

        Returns:
            h', in the shape and dtype of ``h``.
        """
        if not self.shared:
            # another key for the unconditional rows is another, independent noise
            seeds = seeds ^ (unconditional * (1 << 61))
        noise = seeded_normal(seeds, step, BOTTLENECK, tuple(h.shape[1:]))
        if len(noise) < len(h):
            noise = noise.repeat(len(h) // len(noise), *[1] * (h.ndim - 1))
        factor = scale.view(-1, *[1] * (h.ndim - 1))
        if self.relative:
            places = (1, 2, 3) if h.ndim == 4 else (1,)
            factor = factor * h.float().square().mean(dim=places, keepdim=True).sqrt()
        return h + (factor * noise).to(h.dtype)
