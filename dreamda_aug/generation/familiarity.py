"""Whether images are of the kind that a diffusion model was trained on."""

import torch
from torch import Tensor

from dreamda_aug.backbones import Backbone
from dreamda_aug.method.seeding import SOURCE, seeded_normal

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
def denoising_errors(backbone: Backbone, images: Tensor) -> Tensor:
    """How badly a model restores images from noise that it is given, without a condition.

    Args:
        backbone: the diffusion model.
        images: (N, C, H, W) in [0, 1], of its size.

    Returns:
        Root mean square error of the predicted clean latents, mean over noise levels, (N,) float32
        on the CPU. The same image has the same error in any batch, but for its last bits.

    Source: ours; the training loss itself, at fixed levels and with fixed noise.
    """
    schedules = [backbone.schedule(_STEPS, level) for level in _LEVELS]
    found = []
    for batch in images.split(_BATCH):
        x_0 = backbone.encode(batch)
        seed = torch.zeros(1, dtype=torch.int64, device=x_0.device)
        noise = seeded_normal(seed, 0, SOURCE, tuple(x_0.shape[1:]))
        condition = backbone.embed([None] * len(x_0))
        errors = torch.zeros(len(x_0), device=x_0.device)
        for schedule in schedules:
            x_t = schedule.add_noise(x_0, noise, 0)
            output = backbone.predict(schedule.model_input(x_t, 0), schedule.timesteps[0],
                                      condition)
            clean, _ = schedule.predictions(output, x_t, 0)
            errors += (clean - x_0).flatten(1).square().mean(1).sqrt() / len(schedules)
        found.append(errors.cpu())
    return torch.cat(found)


def foreignness(backbone: Backbone, images: Tensor, known: Tensor) -> float | None:
    """How much worse images are denoised than known ones: ratio of the medians of their errors.

    Args:
        backbone: the diffusion model.
        images: (N, C, H, W) in [0, 1], of its size.
        known: images of the kind that it was trained on, likewise.

    Returns:
        Above `FOREIGN_RATIO`, the images are of another kind; None: they are too few to say.

    Source: ours.
    """
    if len(images) < _ENOUGH:
        return None
    return float(denoising_errors(backbone, images).median()
                 / denoising_errors(backbone, known).median())
