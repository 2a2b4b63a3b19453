"""A task made so small that it runs in a minute, to try its reader, arms and settings."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks.accuracy.runs import Setup
from benchmarks.accuracy.tasks import Images, Task, stratified

CLASSES = 2


@dataclass(frozen=True)
class FewImages:
    """Reads the first classes of a task, and a few images of each.

    Attributes:
        read: the task's own reader.
        per_class: the largest number of images of a class, in either part.
    """

    read: Callable[[Path], tuple[Images, Images]]
    per_class: int = 20

    def __call__(self, place: Path) -> tuple[Images, Images]:
        parts = []
        for part in self.read(place):
            part = part[part.labels < CLASSES]
            parts.append(part[stratified(part.labels, self.per_class, 0)])
        return tuple(parts)


def smoke(setup: Setup) -> Setup:
    """The shrunken task, with a random model where none is given."""
    task, model = setup.task, setup.model
    if model is None and not task.model:
        model = str(tiny_model(task, setup.state / "tiny_model"))
    smaller = replace(
        task, read=FewImages(task.read), classes=CLASSES, shots=((2, 3),), steps=8, batch_size=6,
        validation_images=20, reverse_steps=3, guidances=task.guidances[:1],
        weak_views=task.weak_views[:1], classical=task.classical[:1], seen=0,
        unlabeled=min(task.unlabeled, 10), judge=task.judge and "trained",
    )  # fmt: skip
    return replace(setup, task=smaller, model=model)


def tiny_model(task: Task, folder: Path) -> Path:
    """A random pixel U-Net of the task's image size, saved as a pipeline folder."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=task.image_size, in_channels=task.channels, out_channels=task.channels,
        layers_per_block=1, block_out_channels=(8, 16), norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        num_class_embeds=task.classes + 1 if task.class_conditional else None,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler(clip_sample=False)).save_pretrained(folder)
    if task.class_conditional:  # as `dreamda train` does; one more class means "none"
        names = [str(number) for number in range(task.classes)]
        (folder / "training.json").write_text(json.dumps({"class_names": names}))
    return folder
