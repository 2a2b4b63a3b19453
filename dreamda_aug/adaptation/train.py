"""`train`: from a user's own images to a small diffusion model of them."""

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torchvision.utils import save_image

from dreamda_aug.adaptation.checkpoint import CHECKPOINT, check_same
from dreamda_aug.adaptation.images import Labels, TrainingImages, open_pictures, read_images
from dreamda_aug.adaptation.loop import (
    LoopSettings,
    TrainingLoop,
    open_processes,
    peak_memory,
)
from dreamda_aug.adaptation.objective import Noised, add_noise, noise_levels
from dreamda_aug.adaptation.out_folder import check_out
from dreamda_aug.adaptation.result import versions
from dreamda_aug.arguments import checked, real, whole
from dreamda_aug.errors import StorageError
from dreamda_aug.files import parse_json, remove_temporaries, write_atomically
from dreamda_aug.method.schedule import NoiseSchedule
from dreamda_aug.method.seeding import SOURCE, derive_seed, seeded_normal
from dreamda_aug.method.solvers import Prediction, Predictions, Solver
from dreamda_aug.models.pixel_unet import (
    Width,
    image_multiple,
    new_pixel_pipeline,
    save_pipeline,
)
from dreamda_aug.models.unet import PixelModel

logger = logging.getLogger(__name__)

CARD, SHEET = "training.json", "samples.png"
FORMAT, FORMAT_VERSION = "dreamda-model", 1
_OWN_FILES = {CARD, SHEET, CHECKPOINT, "model_index.json", "unet", "scheduler", "README.md"}
_LEARNING_RATE, _WEIGHT_DECAY, _WARM_UP, _COOLDOWN = 1e-3, 0.01, 200, 0.3
_EVALUATE_EVERY, _PATIENCE = 250, 20
_HELD_OUT, _MOST_HELD_OUT = 0.1, 256
_EMA_DECAY = 0.999
_SHEET_COLUMNS, _SHEET_CLASSES, _SHEET_STEPS, _SHEET_GUIDANCE = 8, 10, 25, 2.0


@dataclass(frozen=True)
class TrainedModel:
    """A finished training.

    Attributes:
        root: its folder, which `load_model` takes.
        steps: optimizer steps that were made.
        best_step: the one whose weights were kept.
        loss: held-out loss after ``best_step``.
        history: after which step, training loss since the last measurement, held-out loss.
        class_names: the classes that it knows, in label order; empty: it is unconditional.
        left_out: images that could not be read.
    """

    root: Path
    steps: int
    best_step: int
    loss: float
    history: list[tuple[int, float | None, float]]
    class_names: list[str]
    left_out: list[str]

    def __str__(self) -> str:
        return (f"{self.root}: held-out loss {self.loss:.4f} at step {self.best_step} of "
                f"{self.steps}; look at {self.root / SHEET}")


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

    For images that no pretrained model knows, such as X-rays, microscopy or scans. The weights
    are an exponential moving average; those with the lowest loss on held-out images are kept. The
    same call resumes after an interruption, and returns the result of a finished folder.

    Args:
        source: what `expand` takes: class folders, a list, a dataset, a name; or images without
            classes, which give an unconditional model.
        out: folder to write to: a diffusers pipeline with ``training.json``, its card, and
            ``samples.png``, a row of guided samples for each class.
        image_size: height and width of the model's images, in pixels.
        grey: one channel instead of three.
        width: ``"small"``, ``"medium"`` or ``"large"``: about 1, 2 or 8 million parameters.
        train_steps: optimizer steps at most; training stops earlier where the held-out loss no
            longer falls.
        minutes: time at most; None: no limit.
        batch_size: images per step.
        flip: probability that an image is mirrored; 0.5 only for things that may face both ways.
        labels: ``"source"``: as the source has them; None: there are none; or one for each image.
        class_names: the classes in label order; None: those of the source.
        device: None: CUDA if there is one, else the CPU.
        rng_seed: another one gives another model.
        split: of a torchvision, Hugging Face or bundled dataset.
        data_root: folder of torchvision's or Hugging Face's data.
        download: let torchvision download what is missing.
        progress: draw a progress bar on a terminal, and log the expected time and memory.

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
        rng_seed=whole("rng_seed", rng_seed, 0, 2**63 - 1))
    image_size = whole("image_size", image_size, 8, 1024)
    multiple = image_multiple(image_size, width)
    if image_size % multiple:
        raise ValueError(
            f"image_size must be a multiple of {multiple} for {width} models, got {image_size}; "
            f"use {image_size // multiple * multiple} or {-(-image_size // multiple) * multiple}.")
    folder = Path(out)
    check_out(folder, source, _OWN_FILES)
    pictures = open_pictures(source, labels, class_names, split=split, data_root=data_root,
                             download=download)
    processes = open_processes()
    model = _NewModel(image_size, 1 if grey else 3, len(pictures.classes), width,
                      _pick_device(device), settings.rng_seed)
    images = read_images(pictures, model.average, _HELD_OUT, settings.rng_seed,
                         most=_MOST_HELD_OUT)
    identity = {
        "settings": {name: value for name, value in asdict(settings).items()
                     if name not in ("minutes", "train_steps")},
        "images": images.digest, "classes": images.classes, "image_size": image_size,
        "grey": grey, "width": width, "processes": processes.num_processes,
    }
    if (folder / CARD).exists():
        check_same(folder, _read_card(folder)["identity"], identity)
        return read_training(folder)
    schedule = noise_levels(model.average, 1000)
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    if progress and processes.is_main_process:
        logger.warning("%s", _expectation(model, images, schedule, settings))
    found, best = TrainingLoop(
        model, images, schedule, settings, processes, folder, identity, progress).run()
    model.set_kept(best)
    if processes.is_main_process:
        _write(folder, model, {
            "format": FORMAT, "format_version": FORMAT_VERSION,
            "data": {"name": _name_of(source), "images": len(images.x_0),
                     "held_out": len(images.held_out)},
            "class_names": images.classes or None,
            "loss": {"steps": found.step, "best_step": found.best_step, "value": found.best_loss,
                     "history": found.history},
            "minutes": round(found.seconds / 60, 1),
            "parameters": sum(p.numel() for p in model.parameters.values()),
            "left_out": images.left_out, "versions": versions(), "identity": identity,
        })
    processes.wait_for_everyone()
    return read_training(folder)


def read_training(folder: Path) -> TrainedModel:
    """The finished training of a folder.

    Raises:
        FileNotFoundError: the folder has none.
        StorageError: its card is damaged.
    """
    card = _read_card(folder)
    loss = card["loss"]
    return TrainedModel(
        folder, loss["steps"], loss["best_step"], loss["value"],
        [tuple(entry) for entry in loss["history"]], card["class_names"] or [], card["left_out"])


class _NewModel:
    """An untrained model, and the moving average of its weights; see `Trainable`."""

    def __init__(
        self, image_size: int, channels: int, classes: int, width: Width, device: torch.device,
        rng_seed: int,
    ):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(rng_seed, "weights") % 2**63)
            pipeline = new_pixel_pipeline(image_size, channels, classes, width)
        self.pipeline = pipeline.to(device)
        self.classes = classes
        unet = self.pipeline.unet.requires_grad_(True)
        self._averaged = AveragedModel(unet, multi_avg_fn=_moving_average)
        null_class = classes or None
        averaged = type(self.pipeline)(self._averaged.module.eval(), self.pipeline.scheduler)
        self._raw = PixelModel(self.pipeline, "the model in training", null_class=null_class)
        self.average = PixelModel(averaged, "the model in training", null_class=null_class)
        for model in (self._raw, self.average):
            model.channels_last()
        unet.train()
        self.parameters: dict[str, nn.Parameter] = dict(unet.named_parameters())

    @property
    def can_drop(self) -> bool:
        return self.classes > 0

    @property
    def device(self) -> torch.device:
        return self._raw.device

    @property
    def dtype(self) -> torch.dtype:
        return self._raw.dtype

    def losses(self, noised: Noised, labels: Tensor) -> tuple[Tensor, Tensor]:
        output = self._raw.denoise(noised.x_t, noised.t, self._condition(labels))
        error = (output - noised.target).square().mean()
        return error, error

    @torch.no_grad()
    def predict_kept(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.average.denoise(x_t, t, self._condition(labels))

    def predict_before(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return self.predict_kept(x_t, t, labels)

    def after_step(self) -> None:
        self._averaged.update_parameters(self.pipeline.unet)

    def kept(self) -> dict[str, Tensor]:
        return {name: value.detach().to("cpu", copy=True).contiguous()
                for name, value in self._averaged.module.state_dict().items()}

    def set_kept(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the averaged weights."""
        self._averaged.module.load_state_dict(tensors)

    def state(self) -> dict[str, Tensor]:
        raw = {f"raw.{name}": value.detach().to("cpu", copy=True).contiguous()
               for name, value in self.pipeline.unet.state_dict().items()}
        average = {f"average.{name}": value for name, value in self.kept().items()}
        return raw | average | {"averaged": self._averaged.n_averaged.cpu().clone()}

    def set_state(self, tensors: dict[str, Tensor]) -> None:
        self.pipeline.unet.load_state_dict(_below("raw.", tensors))
        self.set_kept(_below("average.", tensors))
        self._averaged.n_averaged.copy_(tensors["averaged"])

    def save(self, folder: Path) -> None:
        """Save the averaged weights as a diffusers pipeline."""
        save_pipeline(self.pipeline, self._averaged.module, folder)

    def _condition(self, labels: Tensor) -> dict[str, Tensor]:
        if not self.classes:
            return {}
        return {"class_labels": torch.where(labels < 0, self.classes, labels).to(self.device)}


@torch.no_grad()
def _moving_average(
    averages: Sequence[Tensor], values: Sequence[Tensor], updates: Tensor | int
) -> None:
    """Exponential moving average whose decay rises to its final value.

    Source: the warm-up of the decay is that of diffusers' ``EMAModel``, with power 3/4.
    """
    decay = min(_EMA_DECAY, 1 - (1 + int(updates)) ** -0.75)
    for average, value in zip(averages, values, strict=True):
        average.lerp_(value, 1 - decay)


@torch.no_grad()
def _sample_sheet(model: PixelModel, classes: int) -> Tensor:
    """A row of guided samples for each class, (rows * columns, C, H, W) in [0, 1]."""
    rows = min(classes, _SHEET_CLASSES) or _SHEET_COLUMNS
    labels = torch.arange(rows).repeat_interleave(_SHEET_COLUMNS).tolist()
    known = model.embed(labels if classes else [None] * len(labels))
    null = model.embed([None] * len(labels))
    schedule = model.schedule(_SHEET_STEPS, 1.0)
    solver = Solver("ddim", schedule, 0.0)
    scale = _SHEET_GUIDANCE if classes else 1.0

    def denoise(x: Tensor, level: int, call: int) -> Predictions:
        t = schedule.timesteps[level]
        output = model.predict(x, t, known)
        if classes:
            unguided = model.predict(x, t, null)
            output = unguided + scale * (output - unguided)
        prediction = Prediction(*schedule.predictions(output, x, level))
        return Predictions(prediction, prediction)

    seeds = torch.arange(len(labels), device=model.device)
    x = seeded_normal(seeds, 0, SOURCE, (model.channels, *model.image_size))
    for step in range(len(schedule)):
        x, _ = solver.step(x, step, denoise)
    return model.decode(x).cpu()


def _expectation(
    model: _NewModel, images: TrainingImages, schedule: NoiseSchedule, settings: LoopSettings
) -> str:
    """What the training will take, from two steps that are not kept."""
    rows = torch.arange(settings.batch_size) % len(images.x_0)
    x_0 = images.x_0[rows].to(model.device)
    noised = add_noise(schedule, x_0, torch.zeros_like(x_0), rows.to(model.device) % len(schedule))
    seconds = 0.0
    for _ in range(2):  # the first one also prepares
        started = time.perf_counter()
        _, loss = model.losses(noised, images.labels[rows])
        loss.backward()
        loss.item()
        seconds = time.perf_counter() - started
    for parameter in model.parameters.values():
        parameter.grad = None
    total = min(settings.train_steps * seconds / 60, settings.minutes)
    return (f"{len(images.x_0)} images to train on and {len(images.held_out)} to measure on, in "
            f"{len(images.classes) or 'no'} classes; "
            f"{sum(p.numel() for p in model.parameters.values()) / 1e6:.1f} million parameters; "
            f"{seconds:.2f} s a step, about {total:.0f} minutes at most; "
            f"{peak_memory(model.device)} of memory so far")


def _write(folder: Path, model: _NewModel, card: dict[str, Any]) -> None:
    """The model; the card is written last, and says that the rest is complete."""
    model.save(folder)
    save_image(_sample_sheet(model.average, model.classes), folder / SHEET,
               nrow=_SHEET_COLUMNS, padding=1)
    write_atomically(folder / CARD, (json.dumps(card, indent=2) + "\n").encode())
    (folder / CHECKPOINT).unlink(missing_ok=True)


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / CARD
    card = parse_json(path.read_bytes(), str(path))
    if card.get("format") != FORMAT or card.get("format_version") != FORMAT_VERSION:
        raise StorageError(
            f"{path}: expected {FORMAT} {FORMAT_VERSION}, found {card.get('format')} "
            f"{card.get('format_version')}; choose another folder.")
    return card


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items()
            if name.startswith(prefix)}


def _name_of(source: Any) -> str:
    """What the images are called in the card, without a path of this machine."""
    return Path(source).name if isinstance(source, str | Path) else type(source).__name__


def _pick_device(device: torch.device | str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))

