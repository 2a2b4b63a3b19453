"""`train`: from a user's own images to a small diffusion model of them."""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.utils import save_image

from dreamda_aug.adaptation.loop import LoopSettings, TrainingLoop, open_processes
from dreamda_aug.adaptation.training_images import Noised, read_images
from dreamda_aug.adaptation.training_state import (
    CHECKPOINT,
    check_out,
    data_name,
    finish,
    is_finished,
)
from dreamda_aug.arguments import checked, real, whole
from dreamda_aug.generation.sampling import Run
from dreamda_aug.inputs.seed_images import Labels, open_seed_images
from dreamda_aug.method.inversion import Trajectory
from dreamda_aug.method.seeding import derive_seed, seeded
from dreamda_aug.method.settings import PRESETS
from dreamda_aug.models import ModelSpec
from dreamda_aug.models.adapted import read_card
from dreamda_aug.models.conditioning import Condition
from dreamda_aug.models.unet import UNetModel, Width, check_image_size, new_pixel_pipeline

logger = logging.getLogger(__name__)

CARD, SHEET, FORMAT = "training.json", "samples.png", "dreamda-model"
_OWN_FILES = {CARD, SHEET, CHECKPOINT, "model_index.json", "unet", "scheduler", "README.md"}
_LEARNING_RATE, _WEIGHT_DECAY, _WARM_UP, _COOLDOWN = 1e-3, 0.01, 200, 0.3
_EVALUATE_EVERY, _PATIENCE = 250, 20
_HELD_OUT, _MOST_HELD_OUT = 0.1, 256
_SHEET_COLUMNS, _SHEET_CLASSES = 8, 10
_EMA_DECAY = 0.999


@dataclass(frozen=True)
class TrainedModel:
    """A finished training.

    Attributes:
        out: its folder, which `load_model` takes.
        steps: optimizer steps that were made.
        best_step: the step whose weights were kept.
        loss: held-out loss after ``best_step``.
        history: (step, mean training loss since the last measurement, held-out loss).
        class_names: the classes that it is conditioned on, in label order; empty for an
            unconditional model.
        left_out: images that could not be read.
    """

    out: Path
    steps: int
    best_step: int
    loss: float
    history: list[tuple[int, float | None, float]]
    class_names: list[str]
    left_out: list[str]

    def __str__(self) -> str:
        return (f"{self.out}: held-out loss {self.loss:.4f} at step {self.best_step} of "
                f"{self.steps}; samples: {self.out / SHEET}")


@checked
def train(
    source: Any,
    out: str | Path = "model",
    *,
    image_size: int = 32,
    grey: bool = False,
    width: Width = "medium",
    train_steps: int = 20_000,
    minutes: float | None = None,
    batch_size: int = 64,
    flip: float = 0.0,
    labels: Labels = "source",
    class_names: Sequence[str] | None = None,
    device: torch.device | str | None = None,
    rng_seed: int = 0,
    split: str | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    progress: bool = False,
) -> TrainedModel:
    """Train a pixel diffusion model on images, conditioned on their classes.

    For images that no pretrained model was trained on, such as X-rays, microscopy or scans. The
    weights are an exponential moving average; those with the lowest loss on held-out images are
    kept. The same call resumes after an interruption, and returns the result of a finished folder.

    Args:
        source: what `expand` takes: class folders, a list, a dataset, a name; or images without
            classes, which give an unconditional model.
        out: folder to write to: a diffusers pipeline with ``training.json``, its card, and
            ``samples.png``, a row of guided samples for each class.
        image_size: height and width of the model's images, in pixels.
        grey: one channel instead of three.
        width: ``"small"``, ``"medium"`` or ``"large"``: about 1, 2 or 8 million parameters.
        train_steps: optimizer steps at most; training stops earlier if the held-out loss no
            longer falls.
        minutes: time at most, all runs together, or None for no limit.
        batch_size: images per step.
        flip: probability that an image is mirrored; 0.5 only for things that may face both ways.
        labels: ``"source"`` for those of the source, one for each image, or None for none.
        class_names: the classes in label order, or None for those of the source.
        device: where to train, or None for CUDA if there is a GPU and the CPU otherwise.
        rng_seed: seed of all randomness.
        split: of a torchvision, Hugging Face or bundled dataset.
        data_root: folder of torchvision's or Hugging Face's data.
        download: let torchvision download what is missing.
        progress: log what training will take before its first step; then show time left and
            memory: a bar on a terminal, else lines in the log.

    Returns:
        What was measured, and where the model lies.

    Raises:
        ValueError: an argument breaks its rule, or there are too few images.
        AdaptationError: the folder holds something else, or the loss is NaN.
        ImportError: accelerate is not installed.

    Source: ours; the objective is that of DDPM, arXiv:2006.11239, in v-prediction.
    """
    settings = LoopSettings(
        train_steps=whole("train_steps", train_steps, 1), learning_rate=_LEARNING_RATE,
        minutes=math.inf if minutes is None else real("minutes", minutes, "be above 0", 1e-6),
        warm_up=_WARM_UP, cooldown=_COOLDOWN, weight_decay=_WEIGHT_DECAY,
        batch_size=whole("batch_size", batch_size, 1), evaluate_every=_EVALUATE_EVERY,
        patience=_PATIENCE, flip=real("flip", flip, "lie in [0, 1]", 0, 1),
        rng_seed=whole("rng_seed", rng_seed, 0))
    check_image_size(whole("image_size", image_size, 8, 1024), width)
    on = torch.device(ModelSpec(device=device).device or (
        "cuda" if torch.cuda.is_available() else "cpu"))
    folder = Path(out)
    check_out(folder, source, _OWN_FILES)
    processes = open_processes()
    opened = open_seed_images(source, labels=labels, class_names=class_names, split=split,
                              data_root=data_root, download=download)
    new = NewModel(image_size, 1 if grey else 3, len(opened.classes), width, on, rng_seed)
    images = read_images(opened, new.model, _HELD_OUT, rng_seed, most=_MOST_HELD_OUT)
    identity = {
        **{name: value for name, value in asdict(settings).items()
           if name not in ("minutes", "train_steps")},
        "images": images.digest, "classes": images.classes, "image_size": image_size,
        "grey": grey, "width": width, "processes": processes.num_processes,
    }
    if is_finished(folder / CARD, FORMAT, identity):
        logger.warning("%s holds the finished model; delete it to train anew", folder)
        return _read_training(folder)
    found = TrainingLoop(new, images, settings, processes, folder, identity, progress).run()
    best_step, _, loss = found.history[found.best]
    if processes.is_main_process:
        new.model.pipeline.save_pretrained(folder)
        rows = range(min(len(images.classes), _SHEET_CLASSES)) or [None] * _SHEET_COLUMNS
        samples = new.samples([row for row in rows for _ in range(_SHEET_COLUMNS)])
        save_image(samples, folder / SHEET, nrow=_SHEET_COLUMNS, padding=1)
        finish(folder / CARD, FORMAT, {
            "data": {"name": data_name(source), "images": len(images.x_0),
                     "held_out": len(images.held_out)},
            "class_names": images.classes or None,
            "loss": {"steps": found.step, "best_step": best_step, "value": loss,
                     "history": found.history},
            "minutes": round(found.seconds / 60, 1),
            "parameters": sum(p.numel() for p in new.parameters.values()),
            "left_out": images.left_out, "identity": identity,
        }, "torch", "diffusers", "accelerate")
    processes.wait_for_everyone()
    return _read_training(folder)


def _read_training(folder: Path) -> TrainedModel:
    """The finished training of a folder."""
    card = read_card(folder / CARD, FORMAT)
    loss = card["loss"]
    return TrainedModel(
        folder, loss["steps"], loss["best_step"], loss["value"],
        [tuple(entry) for entry in loss["history"]], card["class_names"] or [], card["left_out"])


class NewModel:
    """A pixel model that begins untrained; ``model``, its moving average, is what a user gets.

    ``classes`` is how many it is conditioned on, 0 for an unconditional model.
    """

    def __init__(
        self, image_size: int, channels: int, classes: int, width: Width, device: torch.device,
        rng_seed: int,
    ):
        with seeded(derive_seed(rng_seed, "weights"), device):
            pipeline = new_pixel_pipeline(image_size, channels, classes, width).to(device)
        self._unet = pipeline.unet.requires_grad_(True)
        self._averaged = AveragedModel(self._unet, multi_avg_fn=_moving_average)
        average = type(pipeline)(self._averaged.module.eval(), pipeline.scheduler)
        self._raw, self.model = (UNetModel(each, "the new model", null_class=classes or None)
                                 for each in (pipeline, average))
        for model in (self._raw, self.model):
            model.channels_last()
        self._unet.train()
        self.parameters: dict[str, nn.Parameter] = dict(self._unet.named_parameters())
        both = nn.ModuleDict({"raw": self._unet, "average": self._averaged})
        self.state: dict[str, Tensor] = both.state_dict()
        self.kept: dict[str, Tensor] = self._averaged.module.state_dict()
        self.conditions: list[Condition] = [*range(classes), None]

    def losses(self, noised: Noised, condition: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        output = self._raw.denoise(noised.x_t, noised.t, condition)
        error = (output - noised.target).square().mean()
        return error, error

    def after_step(self) -> None:
        self._averaged.update_parameters(self._unet)

    def samples(self, labels: Sequence[int | None]) -> Tensor:
        """Images of the preset "samples", one for each label, (B, C, H, W) in [0, 1]."""
        settings = PRESETS["samples"].with_dials()
        run = Run(self.model, settings, self.model.schedule(settings.steps, settings.strength))
        blank = Trajectory(x_0=torch.zeros(self.model.channels, *self.model.image_size))
        latents = run.sample([blank] * len(labels), labels, range(len(labels)))
        return self.model.decode(latents).cpu()


def _moving_average(averages: Any, values: Any, updates: Tensor | int) -> None:
    """Exponential moving average whose decay rises to its final value.

    Source: the warm-up of the decay is that of diffusers' ``EMAModel``, with power 3/4.
    """
    decay = min(_EMA_DECAY, 1 - (1 + int(updates)) ** -0.75)
    get_ema_multi_avg_fn(decay)(averages, values, updates)
