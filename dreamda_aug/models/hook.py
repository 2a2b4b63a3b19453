"""The hooks that reach into a diffusion model: perturb its bottleneck, and branch there."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dreamda_aug.errors import GenerationError
from dreamda_aug.method.perturbation import Perturbation


class Reached(Exception):
    """The block whose output was wanted has run."""


class BottleneckHook:
    """What the hooks on a denoiser do, and what `set` said last; after `clear` it is the plain one.

    The hooks are installed once: one that is added after ``torch.compile`` has run is silently
    ignored. Where they sit is said by `UNetHook` and `BlockHook`.

    Branching: everything before the hook is the same for all rows that differ only in their
    perturbation, so it sees each such input once, and the hook hands several rows to what follows.

    Attributes:
        encoder_rows: batch rows that went through what lies before the hook; the model counts.
        decoder_rows: the same for what lies behind it.
        fired: whether the hook was reached since `set`.
    """

    def __init__(self) -> None:
        self.perturbation: Perturbation | None = None
        self.rows: Tensor | None = None
        self.arguments: dict[str, Tensor] = {}
        self.clean_rows = self.input_rows = 0
        self.encoder_rows = self.decoder_rows = 0
        self.fired = False
        self._handles: list[RemovableHandle] = []

    def set(
        self,
        perturbation: Perturbation | None,
        rows: Tensor | None,
        clean_rows: int,
        input_rows: int,
        **arguments: Tensor,
    ) -> None:
        """Say what the next calls of the denoiser do.

        Args:
            perturbation: what changes h; None: nothing.
            rows: for each row behind the hook, the row before it whose features it takes, (R,)
                int64; None: row i takes row i.
            clean_rows: number of rows behind the hook, the first ones, that stay unperturbed.
            input_rows: how many rows the denoiser is called with.
            arguments: what the perturbation is called with beside the other rows' h.
        """
        self.perturbation, self.rows, self.arguments = perturbation, rows, arguments
        self.clean_rows, self.input_rows = clean_rows, input_rows
        self.fired = False

    def clear(self) -> None:
        """Make the denoiser plain again."""
        self.set(None, None, 0, 0)

    def remove(self) -> None:
        """Take the hooks out of the denoiser."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def check_fired(self) -> None:
        """Raise if the denoiser ran without its hooks."""
        if not self.fired:
            raise GenerationError(
                "the bottleneck hook never fired: the denoiser ran without its hooks, so nothing "
                "was perturbed. Load the model before torch.compile, or reset the compiled "
                "denoiser with torch.compiler.reset()."
            )

    def _perturbed(self, h: Tensor) -> Tensor:
        """h, (R, ...), all but its first rows perturbed."""
        if self.perturbation is None:
            return h
        clean = h[: self.clean_rows]
        return torch.cat([clean, self.perturbation(h[self.clean_rows :], **self.arguments)])

    def _branch(self, value: Any) -> Any:
        """The rows behind the hook of whatever has a row for each input; the rest as it is."""
        if isinstance(value, tuple):
            return tuple(self._branch(v) for v in value)
        if (self.rows is not None and torch.is_tensor(value) and value.ndim > 0
                and len(value) == self.input_rows):
            return value[self.rows]
        return value


class UNetHook(BottleneckHook):
    """Hooks on a diffusers U-Net that perturb the bottleneck and branch there.

    Tried against the plain U-Net, branching gives the same output bit for bit.

    The bottleneck is the mid block's output; in U-Nets without one (SSD-1B, BK-SDM Small and Tiny),
    that of the deepest down block. Skip connections stay as they are.

    Args:
        unet: a diffusers ``UNet2DModel`` or ``UNet2DConditionModel``.
    """

    def __init__(self, unet: Any):
        super().__init__()
        deepest = unet.down_blocks[-1] if unet.mid_block is None else unet.mid_block
        self._handles = [deepest.register_forward_hook(self._on_bottleneck)]
        for block in unet.up_blocks:
            self._handles.append(
                block.register_forward_pre_hook(self._on_decoder, with_kwargs=True)
            )

    def _on_bottleneck(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        self.fired = True
        # a down block gives its skip connections too
        if isinstance(output, tuple):
            return (self._perturbed(self._branch(output[0])), *output[1:])
        return self._perturbed(self._branch(output))

    def _on_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.rows is None:
            return args, kwargs
        # hidden states have branched already; diffusers gives them first, or by name
        kwargs = {k: v if k == "hidden_states" else self._branch(v) for k, v in kwargs.items()}
        return (*args[:1], *(self._branch(value) for value in args[1:])), kwargs
