"""Forward hooks that perturb a denoiser's bottleneck, or a transformer's tokens, and branch there.

Everything before the hook is the same for all rows that differ only in their perturbation, so it
sees each such input once, and the hook hands several rows to what follows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dreamda_aug.errors import GenerationError
from dreamda_aug.method.perturbation import Perturbation


class _Reached(Exception):
    """The block whose output was wanted has run."""


class BottleneckHook:
    """Forward hooks on a denoiser, which do nothing but in the context of `perturbing`.

    The hooks of `UNetHook` and `BlockHook` are installed once: one that is added after
    ``torch.compile`` has run is silently ignored.

    Attributes:
        encoder_rows: batch rows that ran before the hook; the model counts them.
        decoder_rows: batch rows that ran behind it.
    """

    _next: nn.Module  # the first block behind the hook
    _perturbation: Perturbation | None = None
    _rows: Tensor | None = None

    def __init__(self) -> None:
        self.encoder_rows = self.decoder_rows = self._input_rows = 0
        self._handles: list[RemovableHandle] = []
        self._fired = False

    @contextmanager
    def perturbing(
        self, perturbation: Perturbation | None, rows: Tensor | None, clean_rows: int,
        **arguments: Tensor,
    ) -> Iterator[None]:
        """Within it, the denoiser branches at the hook and is perturbed there.

        Args:
            perturbation: changes h, or None for no change.
            rows: for each row behind the hook, the row before it whose features it takes, (R,)
                int64, or None to let row i take row i.
            clean_rows: number of rows behind the hook, the first ones, that stay unperturbed.
            arguments: passed to the perturbation beside h.

        Raises:
            GenerationError: the denoiser ran without its hooks.
        """
        self._perturbation, self._arguments = perturbation, arguments
        self._rows, self._clean_rows, self._fired = rows, clean_rows, False
        try:
            yield
            self._check_fired()
        finally:
            self._perturbation = self._rows = None

    def remove(self) -> None:
        """Remove the hooks from the denoiser."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _check_fired(self) -> None:
        if not self._fired:
            raise GenerationError(
                "the bottleneck hook never fired: the denoiser ran without its hooks, so nothing "
                "was perturbed. Load the model before torch.compile, or reset the compiled "
                "denoiser with torch.compiler.reset().")

    def output_behind(self, call: Callable[[], Any]) -> Tensor:
        """Run the denoiser up to the first block behind the hook, and return that block's output.

        Of a transformer it is that of the image tokens, (R, N, C).
        """
        found: list[Tensor] = []

        def stop(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found.append(self._image(output))
            raise _Reached

        handle = self._next.register_forward_hook(stop)
        try:
            with suppress(_Reached):
                call()
        finally:
            handle.remove()
        return found[0]

    def _image(self, output: Any) -> Tensor:
        """The part of a block's output that belongs to the image."""
        return output

    def _perturbed(self, h: Tensor) -> Tensor:
        """h, (R, ...), all but its first rows perturbed."""
        if self._perturbation is None:
            return h
        clean = h[: self._clean_rows]
        return torch.cat([clean, self._perturbation(h[self._clean_rows :], **self._arguments)])

    def _branch(self, value: Any) -> Any:
        """Rows behind the hook of tensors that have a row for each input; other values as is."""
        if isinstance(value, tuple):
            return tuple(self._branch(v) for v in value)
        if (self._rows is not None and torch.is_tensor(value) and value.ndim > 0
                and len(value) == self._input_rows):
            return value[self._rows]
        return value


class UNetHook(BottleneckHook):
    """Hooks on a diffusers U-Net; branching gives the output of the plain U-Net bit for bit.

    The bottleneck is the mid block's output; in U-Nets without one (SSD-1B, BK-SDM Small and Tiny),
    that of the deepest down block. Skip connections stay unperturbed.

    Args:
        unet: a diffusers ``UNet2DModel`` or ``UNet2DConditionModel``.
    """

    def __init__(self, unet: Any):
        super().__init__()
        deepest = unet.down_blocks[-1] if unet.mid_block is None else unet.mid_block
        self._next = unet.up_blocks[0]
        self._handles = [deepest.register_forward_hook(self._on_bottleneck)]
        self._handles += [block.register_forward_pre_hook(self._on_decoder, with_kwargs=True)
                          for block in unet.up_blocks]

    def _on_bottleneck(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        self._fired = True
        # a down block gives its skip connections too
        h, *skips = output if isinstance(output, tuple) else (output,)
        self._input_rows = len(h)
        h = self._perturbed(self._branch(h))
        return (h, *skips) if isinstance(output, tuple) else h

    def _on_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self._rows is None:
            return args, kwargs
        # hidden states have branched already; diffusers gives them first, or by name
        kwargs = {k: v if k == "hidden_states" else self._branch(v) for k, v in kwargs.items()}
        return (*args[:1], *(self._branch(value) for value in args[1:])), kwargs


class BlockHook(BottleneckHook):
    """Hooks on a diffusers transformer that perturb the image tokens behind one block.

    Branching takes two calls of the transformer, since its own code between the blocks assumes one
    batch size: one with the input rows, which ends at the hook, and one with the rows behind it, in
    which the blocks up to the hook are recalled instead of computed. So patch, time and text
    embeddings run twice, and every block once.

    Args:
        stages: lists of blocks in the order in which they run. A block hands its output to the
            next one.
        hooked: one of these blocks.
        has_long_skips: whether blocks behind the hook also read outputs of earlier blocks; such
            outputs stay unperturbed.

    Attributes:
        image_count: number of image tokens.
        image_start: position of the first one in a sequence that holds text tokens too, an integer
            or one for each row, (B,) int64.
    """

    def __init__(
        self, stages: Sequence[Sequence[nn.Module]], hooked: nn.Module, has_long_skips: bool
    ):
        super().__init__()
        self.image_count = 0
        self.image_start: int | Tensor = 0
        blocks = [block for each in stages for block in each]
        behind = blocks.index(hooked) + 1
        self._hooked, self._next = hooked, (blocks[behind:] or [hooked])[0]
        # under which key each block's output is recorded: without long skips only the next block
        # reads it, so that the last one of each list will do
        self._keys: dict[nn.Module, Any] = {
            block: block if has_long_skips else number
            for number, each in enumerate(stages) for block in each if block in blocks[:behind]}
        self._recorded: dict[Any, Any] | None = None  # while recording
        self._handles = [block.register_forward_hook(self._on_block) for block in self._keys]

    def branched(self, denoise: Callable[[Tensor | slice], Tensor]) -> Tensor:
        """Output of a transformer behind the hook; ``denoise`` calls it with some input rows."""
        if self._rows is None:
            return denoise(slice(None))
        self._recorded = {}
        try:
            with suppress(_Reached):
                denoise(slice(None))
            outputs = {key: self._branch(output) for key, output in self._recorded.items()}
        finally:
            self._recorded = None
        self._check_fired()
        recalled = 0

        def recall(block: nn.Module) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal recalled
                recalled += 1
                return outputs[self._keys[block]]
            return forward

        with forwards({block: recall(block) for block in self._keys}):
            output = denoise(self._rows)
        if recalled != len(self._keys):
            raise GenerationError(
                f"the transformer recalled {recalled} of {len(self._keys)} blocks before the "
                "hook, and computed the others again: it runs compiled or cached. Load the model "
                "from a plain pipeline, and compile through the library: compile=True.")
        return output

    def _on_block(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if self._recorded is not None:
            self._recorded[self._keys[module]] = output
        if module is not self._hooked:
            return output
        self._fired = True
        # a block's image stream comes last
        *others, tokens = output if isinstance(output, tuple) else (output,)
        if self._recorded is not None:
            self._input_rows = len(tokens)
            raise _Reached
        if self._perturbation is None:
            return output
        changed = tokens.scatter(1, self._positions(tokens), self._perturbed(self._image(tokens)))
        return (*others, changed) if isinstance(output, tuple) else changed

    def _image(self, output: Any) -> Tensor:
        tokens = output[-1] if isinstance(output, tuple) else output
        return tokens.gather(1, self._positions(tokens))

    def _positions(self, tokens: Tensor) -> Tensor:
        """Positions of the image's tokens in (R, N, C), as `gather` takes them."""
        start = 0 if tokens.shape[1] == self.image_count else self.image_start
        start = torch.as_tensor(start, device=tokens.device).view(-1, 1)
        positions = start + torch.arange(self.image_count, device=tokens.device)
        return positions[..., None].expand(len(tokens), -1, tokens.shape[2])


@contextmanager
def forwards(replacements: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within it, modules compute something else in place of their ``forward``; hooks stay."""
    before = {module: vars(module).get("forward") for module in replacements}
    try:
        for module, forward in replacements.items():
            module.forward = forward
        yield
    finally:
        for module, own in before.items():
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own
