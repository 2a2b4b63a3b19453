"""The hooks that reach into a diffusion model: perturb its bottleneck, and branch there."""

from typing import Any

import torch
from torch import Tensor, nn

from dreamda_aug.errors import GenerationError
from dreamda_aug.method.perturbation import Perturbation


class BottleneckTap:
    """Hooks on a diffusers U-Net that perturb the bottleneck and branch there.

    The hooks are installed once (one that is added after ``torch.compile`` has run is silently
    ignored) and do what `set` says last; after `clear` the U-Net is the plain one.

    Branching: everything below the bottleneck is the same for all rows that differ only in their
    perturbation, so the U-Net sees each such input once, and the tap hands the decoder several
    rows for it. Tried against the plain U-Net it gives the same output bit for bit.

    The bottleneck is the mid block's output; in U-Nets without one (SSD-1B, BK-SDM Small and Tiny),
    that of the deepest down block. Skip connections stay as they are.

    Args:
        unet: a diffusers ``UNet2DModel`` or ``UNet2DConditionModel``.

    Attributes:
        encoder_rows: batch rows that went through the down path so far; the backbone counts them.
        decoder_rows: the same for the up path.
        fired: whether the bottleneck was reached since `set`.
    """

    def __init__(self, unet: Any):
        self.perturbation: Perturbation | None = None
        self.rows: Tensor | None = None
        self.arguments: dict[str, Tensor] = {}
        self.clean_rows = self.input_rows = 0
        self.encoder_rows = self.decoder_rows = 0
        self.fired = False
        deepest = unet.down_blocks[-1] if unet.mid_block is None else unet.mid_block
        self._handles = [deepest.register_forward_hook(self._on_bottleneck)]
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
            rows: for each row of the decoder, the encoder row whose features it takes, (R,) int64;
                None: row i takes row i.
            clean_rows: number of decoder rows, the first ones, that stay unperturbed.
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

    def _on_bottleneck(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        self.fired = True
        # a down block gives its skip connections too
        if isinstance(output, tuple):
            return (self._perturbed(output[0]), *output[1:])
        return self._perturbed(output)

    def _perturbed(self, h: Tensor) -> Tensor:
        if self.rows is not None:
            h = h[self.rows]
        if self.perturbation is not None:
            clean = h[: self.clean_rows]
            h = torch.cat([clean, self.perturbation(h[self.clean_rows :], **self.arguments)])
        return h

    def _on_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.rows is None:
            return args, kwargs
        # hidden states have branched already; diffusers gives them first, or by name
        kwargs = {k: v if k == "hidden_states" else self._branch(v) for k, v in kwargs.items()}
        return (*args[:1], *(self._branch(value) for value in args[1:])), kwargs

    def _branch(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._branch(v) for v in value)
        if torch.is_tensor(value) and value.ndim > 0 and len(value) == self.input_rows:
            return value[self.rows]
        return value
