"""Guards of generation: broken, black and unsafe images are mended, counted and reported."""

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dreamda_aug.errors import GenerationError
from dreamda_aug.models import DiffusionModel

logger = logging.getLogger(__name__)

# How many images, or calls, it takes before their share says something.
_ENOUGH = 8


def guard(
    made: Tensor, seeds: Tensor, model: DiffusionModel, redo: Callable[[list[int]], Tensor]
) -> list[str]:
    """Mend broken and unsafe images in place.

    Args:
        made: synthetic images, (B, C, H, W).
        seeds: their seed images, (B, C, H, W), on any device.
        model: made them.
        redo: makes the given rows once more.

    Returns:
        For each image ``""``, ``"retried"`` in float32, ``"replaced"`` by its seed image, or
        ``"unsafe"`` and therefore replaced.
    """
    acts = dict.fromkeys(range(len(made)), "")
    rows = _bad_rows(made, seeds)
    if rows and model.dtype != torch.float32:
        logger.warning("%d images came out as NaN or black: once more in float32", len(rows))
        with model.in_float32():
            made[rows] = redo(rows)
        acts |= dict.fromkeys(rows, "retried")
        rows = _bad_rows(made, seeds)
    unsafe = model.unsafe(made.nan_to_num()).nonzero().flatten().tolist()
    acts |= dict.fromkeys(rows, "replaced") | dict.fromkeys(unsafe, "unsafe")
    replaced = sorted({*rows, *unsafe})
    if replaced:
        logger.warning("%d synthetic images were replaced by their seed image", len(replaced))
        made[replaced] = seeds[replaced].to(made.device, made.dtype)
    return list(acts.values())


def broken(images: Tensor) -> Tensor:
    """Which images (B, C, H, W) hold NaN or infinite pixels, (B,) bool."""
    return ~images.isfinite().flatten(1).all(1)


def _bad_rows(made: Tensor, seeds: Tensor) -> list[int]:
    """Which images are broken, or black while their seed image is not."""
    black = (made.flatten(1).amax(1) <= 0) & (seeds.flatten(1).amax(1) > 0).to(made.device)
    return (broken(made) | black).nonzero().flatten().tolist()


class Watch:
    """Counts failures during generation, and padding rows, and warns once of each.

    Attributes:
        made: how many images were made so far.
        events: how often guards had to act so far, by what they did; see `guard`.
    """

    def __init__(self) -> None:
        self.made = self._calls = self._requested = self._run = 0
        self.events: Counter[str] = Counter()
        self._has_warned = False

    def made_images(self, events: Sequence[str], name: str) -> None:
        """Count what the guards did to images of a model; warn of more than one broken image in
        twenty, and raise `GenerationError` for more than half."""
        before = self.events["replaced"]
        self.made += len(events)
        self.events.update(filter(None, events))
        broken = self.events["replaced"]
        if broken == before or self.made < _ENOUGH or broken <= self.made / 20:
            return
        message = (
            f"{broken} of {self.made} images of {name} came out broken or black and were "
            "replaced by their seed image; check its weights and dtype (use torch.float32 or "
            "torch.bfloat16), and noise_scale.")
        if broken > self.made / 2:
            raise GenerationError(message)
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(message, stacklevel=3)

    def padded(self, count: int, batch_size: int) -> None:
        """Count the images that a call requests, and warn where most rows of batches of one shape
        are padding."""
        self._calls, self._requested = self._calls + 1, self._requested + count
        self._run += -(-count // batch_size) * batch_size
        if self._calls == _ENOUGH and self._run > 2 * self._requested:
            mean = -(-self._requested // self._calls)
            warnings.warn(
                f"a compiled model runs whole batches, here of batch_size={batch_size}, but an "
                f"average call asks for {mean} image(s), and the rest is thrown away; set "
                f"batch_size={mean}.", stacklevel=3)
