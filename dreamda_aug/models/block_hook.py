"""The hooks that reach into a diffusion transformer: perturb the tokens behind one block."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dreamda_aug.errors import GenerationError
from dreamda_aug.models.hook import BottleneckHook, Reached


@dataclass(frozen=True)
class ImageTokens:
    """Where the image's tokens lie in a sequence that may hold text tokens too.

    Attributes:
        count: how many there are.
        start: place of the first one, an integer or one for each row, (B,) int64. A sequence of
            exactly ``count`` tokens holds nothing else, whatever ``start`` says.
    """

    count: int
    start: int | Tensor = 0


class BlockHook(BottleneckHook):
    """Hooks on a diffusers transformer that perturb the image tokens behind one block.

    Branching needs two calls of the transformer, since its own code between the blocks counts on
    one batch size: one with the input rows, which ends at the hook, and one with the rows behind
    it, in which the blocks up to the hook are not computed but recalled. So what lies outside them
    (patch, time and text embeddings) runs twice, and every block once. The model makes the two
    calls within `recording` and `recalling`.

    Args:
        stages: lists of blocks in the order in which they run. A block hands its output to the
            next one; what else reads it, is said by ``has_long_skips``.
        stage: which of them holds the hooked block.
        index: which block of that list it is.
        has_long_skips: whether blocks behind the hook read outputs of earlier blocks too; such
            outputs stay as they are.
    """

    def __init__(
        self, stages: Sequence[Sequence[nn.Module]], stage: int, index: int,
        has_long_skips: bool = False,
    ):
        super().__init__()
        self.image_tokens = ImageTokens(0)
        self._mode: Literal["plain", "record", "recall"] = "plain"
        self._recorded: dict[nn.Module, Any] = {}
        # not a module list: the hook owns no weights
        self._tapped = stages[stage][index]
        before = [*(block for each in stages[:stage] for block in each), *stages[stage][:index]]
        self._before = before
        kept = before if has_long_skips else [each[-1] for each in stages[:stage] if len(each)]
        # what stands in for a block whose own output nothing but the next block reads
        self._stands_in: dict[nn.Module, nn.Module] = {}
        for block in before:
            if block not in kept:
                own = next(each for each in stages if block in each)
                self._stands_in[block] = self._tapped if own is stages[stage] else own[-1]
        following = [*stages[stage][index + 1 :],
                     *(block for each in stages[stage + 1 :] for block in each)]
        self._next = following[0] if following else self._tapped
        self._handles = [block.register_forward_hook(self._on_kept) for block in kept]
        self._handles.append(self._tapped.register_forward_hook(self._on_tapped))

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Within it, a call of the transformer ends at the hook, and is remembered."""
        self._mode, self._recorded = "record", {}
        try:
            yield
        except Reached:
            pass
        finally:
            self._mode = "plain"

    @contextmanager
    def recalling(self) -> Iterator[None]:
        """Within it, blocks up to the hook give what was recorded, in the rows behind the hook."""
        self._mode, recalled = "recall", 0

        def recall(block: nn.Module) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                nonlocal recalled
                recalled += 1
                return self._recorded[self._stands_in.get(block, block)]
            return forward

        blocks = [*self._before, self._tapped]
        try:
            if self._tapped not in self._recorded:
                self.check_fired()
            with forwards({block: recall(block) for block in blocks}):
                yield
            if recalled != len(blocks):
                raise GenerationError(
                    f"the transformer recalled {recalled} of {len(blocks)} blocks before the hook, "
                    "and computed the others again: it runs compiled or cached. Load the model "
                    "from a plain pipeline, and compile through the library: compile=True."
                )
        finally:
            self._mode, self._recorded = "plain", {}

    @contextmanager
    def stopping_behind(self, found: list[Tensor]) -> Iterator[None]:
        """Within it, a call ends behind the block that follows the hook; its image tokens go to
        ``found``."""
        def stop(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            tokens, _ = _split(output)
            found.append(self._image(tokens))
            raise Reached

        hook = self._next.register_forward_hook(stop)
        try:
            yield
        except Reached:
            pass
        finally:
            hook.remove()

    def _on_kept(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        if self._mode == "record":
            self._recorded[module] = output
        return self._branch(output) if self._mode == "recall" else output

    def _on_tapped(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
        self.fired = True
        if self._mode == "record":
            self._recorded[module] = output
            raise Reached
        if self._mode == "recall":
            output = self._branch(output)
        if self.perturbation is None:
            return output
        tokens, others = _split(output)
        tokens = self._with_image(tokens, self._perturbed(self._image(tokens)))
        return tokens if others is None else (*others, tokens)

    def _places(self, tokens: Tensor) -> Tensor | slice | None:
        """Where the image's tokens lie in (R, N, C); None: everywhere."""
        count, start = self.image_tokens.count, self.image_tokens.start
        if tokens.shape[1] == count:
            return None
        if isinstance(start, int):
            return slice(start, start + count)
        places = start[:, None] + torch.arange(count, device=start.device)
        return places[..., None].expand(-1, -1, tokens.shape[2])

    def _image(self, tokens: Tensor) -> Tensor:
        places = self._places(tokens)
        if places is None:
            return tokens
        return tokens[:, places] if isinstance(places, slice) else tokens.gather(1, places)

    def _with_image(self, tokens: Tensor, image: Tensor) -> Tensor:
        places = self._places(tokens)
        if places is None:
            return image
        if isinstance(places, slice):
            return torch.cat([tokens[:, : places.start], image, tokens[:, places.stop :]], dim=1)
        return tokens.scatter(1, places, image)


@contextmanager
def forwards(replacements: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within it, modules compute something else in place of their ``forward``; hooks stay."""
    own = {module: vars(module).get("forward") for module in replacements}
    try:
        for module, forward in replacements.items():
            module.forward = forward
        yield
    finally:
        for module, before in own.items():
            if before is None:
                vars(module).pop("forward", None)
            else:
                module.forward = before


def _split(output: Any) -> tuple[Tensor, tuple[Any, ...] | None]:
    """A block's image stream, which comes last, and what else it gives; None: nothing else."""
    if isinstance(output, tuple):
        return output[-1], output[:-1]
    return output, None
