"""Whether images are of the kind that a diffusion model was trained on."""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from dreamda_aug.bundled import FashionMNISTSample
from dreamda_aug.inputs.pixels import fit_to
from dreamda_aug.method.seeding import SOURCE, seeded_normal
from dreamda_aug.models import BUNDLED, DiffusionModel

# Noise levels at which images are denoised, as strengths.
_LEVELS = (0.2, 0.4, 0.6)
_STEPS = 100
_BATCH = 32
# How much worse than known images others are denoised before they are called foreign. With the
# bundled model, unseen images of its own kind lie at 0.9, handwritten digits at 1.5, photographs
# at 1.6.
FOREIGN_RATIO = 1.3
# Fewer images say too little.
_ENOUGH = 8


@torch.no_grad()
def denoising_errors(model: DiffusionModel, images: Tensor) -> Tensor:
    """How badly a model restores images from noise that it is given, without a condition.

    Args:
        model: the diffusion model.
        images: (N, C, H, W) in [0, 1], of its size.

    Returns:
        Root mean square error of the predicted clean latents, mean over noise levels, (N,) float32
        on the CPU. The same image has the same error in any batch, but for its last bits.

    Source: ours; the training loss itself, at fixed levels and with fixed noise.
    """
    schedules = [model.schedule(_STEPS, level) for level in _LEVELS]
    found = []
    for batch in images.split(_BATCH):
        x_0 = model.encode(batch)
        seed = torch.zeros(1, dtype=torch.int64, device=x_0.device)
        noise = seeded_normal(seed, 0, SOURCE, tuple(x_0.shape[1:]))
        condition = model.embed([None] * len(x_0))
        errors = torch.zeros(len(x_0), device=x_0.device)
        for schedule in schedules:
            x_t = schedule.add_noise(x_0, noise, 0)
            output = model.predict(schedule.model_input(x_t, 0), schedule.timesteps[0],
                                      condition)
            clean, _ = schedule.predictions(output, x_t, 0)
            errors += (clean - x_0).flatten(1).square().mean(1).sqrt() / len(schedules)
        found.append(errors.cpu())
    return torch.cat(found)


def foreignness(model: DiffusionModel, images: Tensor, known: Tensor) -> float | None:
    """How much worse images are denoised than known ones: ratio of the medians of their errors.

    Args:
        model: the diffusion model.
        images: (N, C, H, W) in [0, 1], of its size.
        known: images of the kind that it was trained on, likewise.

    Returns:
        Above `FOREIGN_RATIO`, the images are of another kind; None: they are too few to say.

    Source: ours.
    """
    if len(images) < _ENOUGH:
        return None
    return float(denoising_errors(model, images).median()
                 / denoising_errors(model, known).median())


class FirstImages:
    """The first images that the bundled model is given: where they are foreign, it says so once."""

    def __init__(self) -> None:
        self._were_seen = self._has_warned = False
        self._images: dict[str, Tensor] = {}

    def look(self, model: DiffusionModel, images: Tensor, digests: Sequence[str]) -> None:
        """Collect images, one at a time or many, and look at them when they are enough.

        Args:
            model: the model; only the bundled one is judged.
            images: (N, C, H, W) in [0, 1], of its size.
            digests: tells equal images, one each.
        """
        if self._were_seen or model.name != BUNDLED:
            return
        self._images.update(zip(digests, images, strict=True))
        if len(self._images) >= _ENOUGH:
            self.are_foreign(model, torch.stack(list(self._images.values())), stacklevel=4)

    def are_foreign(self, model: DiffusionModel, images: Tensor, stacklevel: int) -> bool:
        """Whether the bundled model has never seen such images; the first time, a warning says so.

        Args:
            model: the bundled model.
            images: (N, C, H, W) in [0, 1], of its size; the first `_BATCH` are looked at.
            stacklevel: of the warning, from the caller.
        """
        known = FashionMNISTSample("train").data[::6, None].float() / 255
        ratio = foreignness(model, images[:_BATCH], fit_to(known, model))
        if ratio is None:
            return False
        self._were_seen = True
        self._images.clear()
        if ratio <= FOREIGN_RATIO:
            return False
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"these images are unlike what the bundled model was trained on, small grey "
                f"pictures of clothes: it restores them {ratio:.1f} times worse. It serves to try "
                "the library out. For photographs take a model of natural images, such as "
                "--model stable-diffusion-v1-5/stable-diffusion-v1-5; for images of a field of "
                "its own, adapt it with `dreamda adapt`, or train one with "
                "`dreamda train`.", stacklevel=stacklevel + 1)
        return True
