"""`adapt`: from a user's images and a diffusion model to LoRA weights that fit them."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor

from dreamda_aug.adaptation.loop import LoopSettings, TrainingLoop, open_processes
from dreamda_aug.adaptation.lora import AdaptedModel, is_named, own_model
from dreamda_aug.adaptation.training_images import read_images
from dreamda_aug.adaptation.training_state import (
    CHECKPOINT,
    Progress,
    check_out,
    data_name,
    finish,
    is_finished,
)
from dreamda_aug.arguments import check_fields, checked, real, whole
from dreamda_aug.files import write_atomically
from dreamda_aug.inputs.prompts import DEFAULT_PROMPT
from dreamda_aug.inputs.seed_images import Labels, open_seed_images
from dreamda_aug.models.adapted import CARD, CLASS_ROWS, FORMAT, LORA, base_identity, read_card
from dreamda_aug.models.load import BUNDLED

# Steps with early stopping, where no number is given: few images stop long before.
DEFAULT_STEPS = 1000
_PIXEL_RATE, _LATENT_RATE = 1e-3, 1e-4
# How often "helped" may be wrong, and how many ways to flip signs are tried to tell.
_LEVEL, _FLIPS = 0.05, 4096


@dataclass(frozen=True)
class AdaptationSettings:
    """The settings of `adapt`.

    Attributes:
        rank: of the LoRA matrices. A low rank, like early stopping, limits memorizing.
        train_steps: optimizer steps at most, or None for 1,000, where early stopping is on.
        learning_rate: of AdamW, after 20 steps of warm-up, or None for 1e-3 with pixel models,
            which are small, and 1e-4 with latent ones, as diffusers' own LoRA scripts have it.
        batch_size: images per denoiser call.
        accumulate: batches per optimizer step.
        prior_weight: weight of the squared distance to the prediction before training, on the same
            noisy image, beside 1 for the squared error; 0 switches it off.
        label_dropout: share of images that are trained without their class or prompt, so that
            guidance still works; for models with an unconditional branch.
        held_out: share of the images to hold out and measure on, in (0, 0.5]; at least 5 images
            (half of fewer than 10), at most 64.
        evaluate_every: steps between two measurements.
        patience: measurements without a new lowest held-out loss after which training stops.
        early_stopping: False trains on every image for exactly ``train_steps`` steps and measures
            nothing.
        gradient_checkpointing: compute activations twice instead of keeping them.
        rng_seed: seed of all randomness.

    Raises:
        ValueError: an attribute breaks its rule.

    Source: LoRA: Hu et al. 2021, arXiv:2106.09685. ``prior_weight``: learning without forgetting,
        Li & Hoiem 2016, arXiv:1606.09282, here with the squared distance of predictions.
        ``label_dropout``: Ho & Salimans 2022, arXiv:2207.12598.
    """

    rank: int = 8
    train_steps: int | None = None
    learning_rate: float | None = None
    batch_size: int = 8
    accumulate: int = 1
    prior_weight: float = 0.1
    label_dropout: float = 0.1
    held_out: float = 0.2
    evaluate_every: int = 25
    patience: int = 5
    early_stopping: bool = True
    gradient_checkpointing: bool = False
    rng_seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("rank", "batch_size", "accumulate", "evaluate_every", "patience"):
            whole(name, getattr(self, name), 1)
        whole("rng_seed", self.rng_seed, 0)
        if self.train_steps is not None:
            whole("train_steps", self.train_steps, 1)
        elif not self.early_stopping:
            raise ValueError("train_steps must be given where early_stopping is False, got None.")
        if self.learning_rate is not None:
            real("learning_rate", self.learning_rate, "lie in (0, 1]", 1e-12, 1.0)
        real("prior_weight", self.prior_weight, "be at least 0", 0.0)
        real("label_dropout", self.label_dropout, "lie in [0, 1]", 0.0, 1.0)
        real("held_out", self.held_out, "lie in (0, 0.5]", 1e-6, 0.5)


@dataclass(frozen=True)
class Adaptation:
    """A finished adaptation.

    Attributes:
        out: its folder, which ``load_model(..., lora=out)`` takes.
        steps: optimizer steps that were made.
        best_step: the step whose weights were kept; 0 is the model without adaptation.
        before: held-out loss of the model without adaptation, or None where none was measured.
        after: held-out loss after ``best_step``.
        chance: what it could have fallen by chance, at a level of 5 %, or None.
        verdict: "helped" where it fell by more than that.
        history: (step, mean training loss since the last measurement, held-out loss).
        left_out: images that could not be read.
        started_from: the class or prompt of the model that each class began as.
    """

    out: Path
    steps: int
    best_step: int
    before: float | None
    after: float | None
    chance: float | None
    verdict: Literal["helped", "did not help", "not measured"]
    history: list[tuple[int, float | None, float]]
    left_out: list[str]
    started_from: dict[str, str]

    def __str__(self) -> str:
        if self.before is None or self.after is None:
            return f"{self.out}: {self.steps} steps, not measured"
        return (f"{self.out}: held-out loss {self.before:.5f} -> {self.after:.5f} at step "
                f"{self.best_step} of {self.steps} (fell by "
                f"{self.before - self.after:.5f}, chance {self.chance:.5f}): {self.verdict}")


@checked
def adapt(
    source: Any,
    model: Any = BUNDLED,
    out: str | Path = "adapted",
    *,
    labels: Labels = "source",
    class_names: Sequence[str] | None = None,
    class_map: Mapping[str, str | int] | None = None,
    prompt: str = DEFAULT_PROMPT,
    split: str | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    progress: bool = False,
    settings: AdaptationSettings | None = None,
    **options: Any,
) -> Adaptation:
    """Train LoRA weights on images, and keep them only if they help on held-out ones.

    The held-out denoising loss is measured before and during training, always with the same noise.
    The step with the lowest loss is kept; step 0 is the model without adaptation. A warning states
    if the loss fell by no more than chance. The same call resumes after an interruption, and
    returns the result of a finished folder.

    A class-conditional model gets the classes of the images, in label order, instead of its own. A
    text-to-image model is trained under their prompts.

    Args:
        source: what `expand` takes: class folders, a list, a dataset, a name; or a folder of
            images without classes, a tensor (N, C, H, W) or a list of images.
        model: what `load_model` takes, a `ModelSpec` or a loaded model, which is not changed.
            LoRA weights are float32 whatever its dtype; with float16, gradients are scaled.
        out: folder to write to: ``pytorch_lora_weights.safetensors``, as diffusers loads it, and
            ``adaptation.json``, the card; for class-conditional models the class embedding.
        labels: ``"source"`` for those of the source, one for each image, or None to train
            under the null class or the empty prompt.
        class_names: the classes in label order, or None for those of the source.
        class_map: for class-conditional models: which of its classes (name or number) a class of
            the images begins as, where the names differ, such as ``{"7": "7 - seven"}``.
        prompt: template with ``{class_name}`` and ``{article}``, for text-to-image models.
        split: of a torchvision, Hugging Face or bundled dataset.
        data_root: folder of torchvision's or Hugging Face's data.
        download: let torchvision download what is missing.
        progress: log what training will take before its first step; then show time left and
            memory: a bar on a terminal, else lines in the log.
        settings: how to train, or None for `AdaptationSettings` with ``options``.
        options: attributes of `AdaptationSettings`, such as ``rank=8`` and ``train_steps=300``.

    Returns:
        What was measured, and where it lies.

    Raises:
        ValueError: an argument breaks its rule, or there are too few images.
        ModelError: the model cannot be loaded or adapted.
        AdaptationError: the folder holds another adaptation, or the loss is NaN.
        ImportError: peft and accelerate are not installed.

    Source: Hu et al. 2021, arXiv:2106.09685; choosing the step by held-out loss is ours.
    """
    if settings is not None and options:
        raise ValueError(f"settings must be given alone, got {', '.join(options)} too.")
    settings = AdaptationSettings(**options) if settings is None else settings
    folder = Path(out)
    check_out(folder, source, {CARD, CHECKPOINT, LORA, CLASS_ROWS})
    processes = open_processes("peft")  # it chooses the device, before the model is loaded
    opened = open_seed_images(source, labels=labels, class_names=class_names, split=split,
                              data_root=data_root, download=download)
    own = own_model(model)
    loop_settings = LoopSettings(
        settings.train_steps or DEFAULT_STEPS,
        settings.learning_rate or (_PIXEL_RATE if own.vae is None else _LATENT_RATE),
        settings.batch_size, accumulate=settings.accumulate, label_dropout=settings.label_dropout,
        evaluate_every=settings.evaluate_every, patience=settings.patience,
        rng_seed=settings.rng_seed)
    base = {"name": data_name(own.name), **base_identity(own.unet)}
    images = read_images(
        opened, own, settings.held_out if settings.early_stopping else 0.0, settings.rng_seed,
        budget=loop_settings.train_steps * settings.batch_size * settings.accumulate
        * processes.num_processes)
    identity = {
        **asdict(settings), "learning_rate": loop_settings.learning_rate,
        "images": images.digest, "classes": images.classes,
        "prompt": prompt if own.condition_kind == "text" else None,
        "class_map": dict(class_map or {}), "base": base["weights"], "dtype": base["dtype"],
        "processes": processes.num_processes, "image_size": list(own.image_size),
    }
    if is_finished(folder / CARD, FORMAT, identity):
        return _read_adaptation(folder)
    if settings.gradient_checkpointing:
        own.unet.enable_gradient_checkpointing()
    if is_named(model) and own.vae is not None and own.device.type != "cpu":
        own.vae.to("cpu")  # it has encoded the images, and is not needed any more
    adapted = AdaptedModel(own, images.classes, prompt, class_map or {}, settings.rank,
                           settings.rng_seed, settings.prior_weight)
    own.channels_last()
    found = TrainingLoop(
        adapted, images, loop_settings, processes, folder, identity, progress).run()
    if processes.is_main_process:
        lora = safetensors.torch.save(adapted.lora_tensors(), {"format": "pt"})
        write_atomically(folder / LORA, lora)
        if adapted.rows is not None:
            rows = safetensors.torch.save({"rows": adapted.rows.embedding()})
            write_atomically(folder / CLASS_ROWS, rows)
        finish(folder / CARD, FORMAT, {
            "base": base,
            "classes": {
                "names": own.class_names,
                "null_class": getattr(own.conditioning, "null_class", None),
                "of_images": images.classes, "started_from": adapted.started_from,
            },
            "loss": _conclude(found),
            "data": {"name": data_name(source), "images": len(images.x_0),
                     "held_out": len(images.held_out), "labels": bool(images.classes)},
            "left_out": images.left_out,
            "seconds": round(found.seconds, 1),
            "parameters": sum(p.numel() for p in adapted.parameters.values()),
            "identity": identity,
        }, "torch", "diffusers", "peft", "accelerate")
    processes.wait_for_everyone()
    return _read_adaptation(folder)


def best_gain(measured: Tensor) -> tuple[float, float]:
    """How far the loss fell at the best step, and how far the best may by chance, at 5 %.

    If training helped no image more than it harmed another, each image could as well have changed
    the other way around. So the signs of the images' changes are flipped in all ways, or in many,
    and the best step is chosen anew each time: the choice is part of what chance may do. Fewer
    than 5 images can show nothing at this level.

    Args:
        measured: loss of each image at each measurement, (M, N), of the same noise and noise
            levels; the first one before training.

    Source: Fisher's randomization test of paired differences, with the maximum over steps as its
        statistic: Westfall & Young 1993, "Resampling-based multiple testing".
    """
    fell = (measured[0] - measured).double()
    count = fell.shape[1]
    if 2**count <= _FLIPS:
        flips = torch.arange(2**count)[:, None] >> torch.arange(count) & 1
    else:
        generator = torch.Generator().manual_seed(0)
        flips = torch.randint(2, (_FLIPS, count), generator=generator)
        flips[0] = 0
    best = ((1 - 2 * flips).double() @ fell.T / count).amax(1)
    by_chance = best.sort(descending=True).values[int(_LEVEL * len(best))]
    return best[0].item(), by_chance.item()


def _conclude(progress: Progress) -> dict[str, Any]:
    """The card's entry ``loss``, with the verdict in it."""
    found: dict[str, Any] = {"steps": progress.step, "history": progress.history}
    if not progress.measured:
        return found | {"verdict": "not measured", "best_step": progress.step, "before": None,
                        "after": None, "chance": None}
    fell, chance = best_gain(torch.tensor(progress.measured))
    best_step, _, after = progress.history[progress.best]
    return found | {"verdict": "helped" if fell > chance else "did not help", "chance": chance,
                    "best_step": best_step, "before": progress.history[0][2], "after": after}


def _read_adaptation(folder: Path) -> Adaptation:
    """The finished adaptation of a folder; warns where it did not help."""
    card = read_card(folder / CARD, FORMAT)
    loss = {**card["loss"], "history": [tuple(entry) for entry in card["loss"]["history"]]}
    found = Adaptation(folder, left_out=card["left_out"],
                       started_from=card["classes"]["started_from"], **loss)
    if found.verdict == "did not help":
        few = " (fewer than 5 images can show no more)" if card["data"]["held_out"] < 5 else ""
        warnings.warn(
            f"adaptation did not help on held-out images: their loss went from {found.before:.5f} "
            f"to {found.after:.5f}, and may fall by {found.chance:.2g} by chance{few}. Step "
            f"{found.best_step} was kept; the model without adaptation may be as good.",
            stacklevel=4)
    return found
