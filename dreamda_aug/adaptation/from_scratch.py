"""`train`: from a user's own images to a small diffusion model of them."""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision.utils import save_image

from dreamda_aug.adaptation.loop import LoopSettings, TrainingLoop, open_processes, seeded
from dreamda_aug.adaptation.training_images import Noised, noise_levels, read_images
from dreamda_aug.adaptation.training_state import (
    CHECKPOINT,
    check_out,
    data_name,
    finish,
    is_finished,
)
from dreamda_aug.arguments import checked, real, whole
from dreamda_aug.inputs.seed_images import Labels, open_seed_images
from dreamda_aug.method.schedule import Prediction
from dreamda_aug.method.seeding import SOURCE, derive_seed, seeded_normal
from dreamda_aug.method.solvers import Solver
from dreamda_aug.models import ModelSpec
from dreamda_aug.models.adapted import read_card
from dreamda_aug.models.unet import UNetModel, Width, check_image_size, new_pixel_pipeline

logger = logging.getLogger(__name__)

CARD, SHEET, FORMAT = "training.json", "samples.png", "dreamda-model"
_OWN_FILES = {CARD, SHEET, CHECKPOINT, "model_index.json", "unet", "scheduler", "README.md"}
_LEARNING_RATE, _WEIGHT_DECAY, _WARM_UP, _COOLDOWN = 1e-3, 0.01, 200, 0.3
_EVALUATE_EVERY, _PATIENCE = 250, 20
_HELD_OUT, _MOST_HELD_OUT = 0.1, 256
_SHEET_COLUMNS, _SHEET_CLASSES, _SHEET_STEPS, _SHEET_GUIDANCE = 8, 10, 25, 2.0
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
        progress: show time left and memory: a bar on a terminal, else lines in the log.

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
    model = NewModel(image_size, 1 if grey else 3, len(opened.classes), width, on, rng_seed)
    images = read_images(opened, model.average, _HELD_OUT, rng_seed, most=_MOST_HELD_OUT)
    identity = {
        "settings": {name: value for name, value in asdict(settings).items()
                     if name not in ("minutes", "train_steps")},
        "images": images.digest, "classes": images.classes, "image_size": image_size,
        "grey": grey, "width": width, "processes": processes.num_processes,
    }
    if is_finished(folder / CARD, FORMAT, identity):
        logger.warning("%s holds the finished model; delete it to train anew", folder)
        return _read_training(folder)
    parameters = sum(p.numel() for p in model.parameters.values())
    if progress and processes.is_main_process:
        logger.warning(
            "training on %d images, measuring on %d, in %s classes; %.1f million parameters",
            len(images.x_0), len(images.held_out), len(images.classes) or "no", parameters / 1e6)
    found, best = TrainingLoop(model, images, noise_levels(model.average), settings, processes,
                               folder, identity, progress).run()
    model.set_kept(best)
    if processes.is_main_process:
        model.average.pipeline.save_pretrained(folder)
        rows = range(min(len(images.classes), _SHEET_CLASSES)) or [None] * _SHEET_COLUMNS
        samples = model.samples([row for row in rows for _ in range(_SHEET_COLUMNS)])
        save_image(samples, folder / SHEET, nrow=_SHEET_COLUMNS, padding=1)
        finish(folder / CARD, FORMAT, {
            "data": {"name": data_name(source), "images": len(images.x_0),
                     "held_out": len(images.held_out)},
            "class_names": images.classes or None,
            "loss": {"steps": found.step, "best_step": found.best_step, "value": found.best_loss,
                     "history": found.history},
            "minutes": round(found.seconds / 60, 1), "parameters": parameters,
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
    """A pixel model that begins untrained; ``average`` is the one that a user gets.

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
        self._null_class = classes or None
        self._model, self.average = (
            UNetModel(each, "the new model", null_class=self._null_class)
            for each in (pipeline, average))
        for model in (self._model, self.average):
            model.channels_last()
        self._unet.train()
        self.parameters: dict[str, nn.Parameter] = dict(self._unet.named_parameters())
        self.can_drop, self.device, self.dtype = classes > 0, device, self._model.dtype

    def losses(self, noised: Noised, labels: Tensor) -> tuple[Tensor, Tensor]:
        output = self._model.denoise(noised.x_t, noised.t, self._condition(labels))
        error = (output - noised.target).square().mean()
        return error, error

    @torch.no_grad()
    def predict(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.average.denoise(x_t, t, self._condition(labels))

    def after_step(self) -> None:
        self._averaged.update_parameters(self._unet)

    def kept(self) -> dict[str, Tensor]:
        return _copied(self._averaged.module, "")

    def set_kept(self, tensors: Mapping[str, Tensor]) -> None:
        """Set what `kept` returned."""
        self._averaged.module.load_state_dict(tensors)

    def state(self) -> dict[str, Tensor]:
        return {**_copied(self._unet, "raw."), **_copied(self._averaged.module, "average."),
                "averaged": self._averaged.n_averaged.cpu().clone()}

    def set_state(self, tensors: Mapping[str, Tensor]) -> None:
        for module, prefix in ((self._unet, "raw."), (self._averaged.module, "average.")):
            module.load_state_dict({name.removeprefix(prefix): value
                                    for name, value in tensors.items() if name.startswith(prefix)})
        self._averaged.n_averaged.copy_(tensors["averaged"])

    @torch.no_grad()
    def samples(self, labels: Sequence[int | None]) -> Tensor:
        """Guided samples of the averaged model, one for each label, (B, C, H, W) in [0, 1]."""
        model, schedule = self.average, self.average.schedule(_SHEET_STEPS, 1.0)
        rows, null = model.embed(labels), model.embed([None] * len(labels))

        def denoise(x: Tensor, level: int, call: int) -> tuple[Prediction, Prediction]:
            output = model.predict(x, schedule.timesteps[level], rows)
            if self.can_drop:
                free = model.predict(x, schedule.timesteps[level], null)
                output = free + _SHEET_GUIDANCE * (output - free)
            prediction = schedule.predictions(output, x, level)
            return prediction, prediction

        seeds = torch.arange(len(labels), device=self.device)
        x = seeded_normal(seeds, 0, SOURCE, (model.channels, *model.image_size))
        solver = Solver("ddim", schedule, 0.0)
        for step in range(len(schedule)):
            x, _ = solver.step(x, step, denoise)
        return model.decode(x).cpu()

    def _condition(self, labels: Tensor) -> dict[str, Tensor]:
        if self._null_class is None:
            return {}
        return {"class_labels": torch.where(labels < 0, self._null_class, labels).to(self.device)}


def _moving_average(averages: Any, values: Any, updates: Tensor | int) -> None:
    """Exponential moving average whose decay rises to its final value.

    Source: the warm-up of the decay is that of diffusers' ``EMAModel``, with power 3/4.
    """
    decay = min(_EMA_DECAY, 1 - (1 + int(updates)) ** -0.75)
    get_ema_multi_avg_fn(decay)(averages, values, updates)


def _copied(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value.detach().to("cpu", copy=True).contiguous()
            for name, value in module.state_dict().items()}
