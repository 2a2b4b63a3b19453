"""What is added to the U-Net's bottleneck, and the tap that adds it."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dreamda_aug.errors import GenerationError
from dreamda_aug.seeding import BOTTLENECK, seeded_normal


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
        relative: the scale counts in RMS(h) of each row, so that it means about the same for every
            backbone [ours]; False: absolute, as in the authors' code.
        shared: one noise for the conditional and unconditional row of a sample [ours]. False draws
            them independently, as the authors' code does; guidance then amplifies the difference
            by sqrt((w - 1)² + w²), about 9.9 at w = 7.5.

    Source: DreamDA, arXiv:2403.12803, method figure.
    """

    relative: bool = True
    shared: bool = True

    def __call__(
        self, h: Tensor, seeds: Tensor, step: Tensor, unconditional: Tensor, scale: Tensor
    ) -> Tensor:
        """Perturb every row.

        Args:
            h: bottleneck features, (R, C, H, W).
            seeds: the sample seed of each row, (R,) int64.
            step: number of the reverse step, 0-d int64.
            unconditional: which rows are the unconditional branch of guidance, (R,) bool.
            scale: noise scale of each row, (R,) float32; 0 leaves a row as it is.

        Returns:
            h', (R, C, H, W), in the dtype of ``h``.
        """
        if not self.shared:
            # another key for the unconditional rows is another, independent noise
            seeds = seeds ^ (unconditional * (1 << 61))
        noise = seeded_normal(seeds, step, BOTTLENECK, tuple(h.shape[1:]))
        factor = scale[:, None, None, None]
        if self.relative:
            factor = factor * h.float().square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        return h + (factor * noise).to(h.dtype)


class BottleneckTap:
    """Hooks on a diffusers U-Net that perturb the bottleneck and branch there.

    The hooks are installed once (one that is added after ``torch.compile`` has run is silently
    ignored) and read their orders from this object: `set` gives them, `clear` takes them back. A
    call without orders is the plain U-Net.

    Branching: everything below the bottleneck is the same for all rows that differ only in their
    perturbation, so the U-Net sees each such input once, and the tap hands the decoder several
    rows for it. Tried against the plain U-Net it gives the same output bit for bit.

    Args:
        unet: a diffusers ``UNet2DModel`` or ``UNet2DConditionModel``.

    Attributes:
        encoder_rows: batch rows that went through the down path so far; the backbone counts them.
        decoder_rows: the same for the up path.
        fired: whether the bottleneck was reached since `set`.
    """

    def __init__(self, unet: nn.Module):
        self.perturbation: Perturbation | None = None
        self.rows: Tensor | None = None
        self.arguments: dict[str, Tensor] = {}
        self.clean_rows = self.input_rows = 0
        self.encoder_rows = self.decoder_rows = 0
        self.fired = False
        self._handles = [unet.mid_block.register_forward_hook(self._on_bottleneck)]
        for block in unet.up_blocks:
            self._handles.append(
                block.register_forward_pre_hook(self._on_decoder, with_kwargs=True)
            )

    def set(
        self,
        perturbation: Perturbation | None,
        rows: Tensor | None,
        clean_rows: int,
        input_rows: int,
        **arguments: Tensor,
    ) -> None:
        """Say what the next U-Net calls do.

        Args:
            perturbation: what changes h; None: nothing.
            rows: for each row of the decoder, the encoder row that it continues, (R,) int64; None:
                each continues its own.
            clean_rows: so many of the first decoder rows stay unperturbed.
            input_rows: how many rows the U-Net is called with.
            arguments: what the perturbation is called with beside the other rows' h.
        """
        self.perturbation, self.rows, self.arguments = perturbation, rows, arguments
        self.clean_rows, self.input_rows = clean_rows, input_rows
        self.fired = False

    def clear(self) -> None:
        """Make the U-Net plain again."""
        self.set(None, None, 0, 0)

    def remove(self) -> None:
        """Take the hooks out of the U-Net."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def check_fired(self) -> None:
        """Raise if the U-Net ran without its hooks."""
        if not self.fired:
            raise GenerationError(
                "the bottleneck tap never fired: the U-Net ran without its hooks, so nothing was "
                "perturbed. Load the backbone before torch.compile, or reset the compiled U-Net "
                "with torch.compiler.reset()."
            )

    def _on_bottleneck(self, module: nn.Module, inputs: tuple, h: Tensor) -> Tensor:
        self.fired = True
        if self.rows is not None:
            h = h[self.rows]
        if self.perturbation is not None:
            clean = h[: self.clean_rows]
            h = torch.cat([clean, self.perturbation(h[self.clean_rows :], **self.arguments)])
        return h

    def _on_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if self.rows is None:
            return args, kwargs
        # hidden states have branched already; diffusers gives them first, or by name
        kwargs = {k: v if k == "hidden_states" else self._branch(v) for k, v in kwargs.items()}
        return (*args[:1], *(self._branch(value) for value in args[1:])), kwargs

    def _branch(self, value):
        if isinstance(value, tuple):
            return tuple(self._branch(v) for v in value)
        if torch.is_tensor(value) and value.ndim > 0 and len(value) == self.input_rows:
            return value[self.rows]
        return value
