"""`adapt`: from a user's images and a diffusion model to LoRA weights that fit them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from dreamda_aug.adaptation.checkpoint import CHECKPOINT, check_same
from dreamda_aug.adaptation.conditions import prepare_conditions
from dreamda_aug.adaptation.images import Labels, open_pictures, read_images
from dreamda_aug.adaptation.loop import TrainingLoop, open_processes
from dreamda_aug.adaptation.lora import AdaptedModel, own_model
from dreamda_aug.adaptation.objective import noise_levels
from dreamda_aug.adaptation.out_folder import check_out
from dreamda_aug.adaptation.result import Adaptation, conclude, read_adaptation, versions
from dreamda_aug.adaptation.settings import AdaptationSettings
from dreamda_aug.arguments import checked
from dreamda_aug.files import remove_temporaries, write_atomically
from dreamda_aug.inputs.prompts import DEFAULT_PROMPT
from dreamda_aug.models import BUNDLED, ModelSpec
from dreamda_aug.models.adapted import (
    CARD,
    CLASS_ROWS,
    LORA,
    TOKENS,
    base_identity,
    card_text,
    lora_file,
    read_card,
)
from dreamda_aug.models.latent import LatentModel


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
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    split: str | None = None,
    data_root: str | Path | None = None,
    download: bool = False,
    progress: bool = False,
    settings: AdaptationSettings | None = None,
    **options: Any,
) -> Adaptation:
    """Train LoRA weights on images, and keep them only as far as they help on held-out ones.

    The held-out denoising loss is measured with the same noise at the same noise levels before
    training and after; the step at which it was lowest is kept, be it step 0. Where it fell by no
    more than chance, a warning says so. The same call goes on after an interruption, and returns
    the result of a folder that is finished.

    A class-conditional model then knows the classes of the images, in their label order, instead
    of its own; a text-to-image one knows them under their prompts.

    Args:
        source: what `open_source` takes: class folders, a list, a torchvision dataset, a name;
            or a folder of images without classes, a tensor (N, C, H, W) or a list of images.
        model: what `load_model` takes, a `ModelSpec` or a loaded model; it stays what
            it is.
        out: folder to write to: ``pytorch_lora_weights.safetensors``, as diffusers loads it, and
            ``adaptation.json``, the card; for class-conditional models the class embedding, and
            for learned tokens theirs.
        labels: ``"source"``: as the source has them; None: there are none, and images are trained
            under the null class or the empty prompt; or one for each image.
        class_names: the classes in label order; None: those of the source.
        class_map: for class-conditional models: which of its classes (name or number) a class of
            the images begins as, where the names differ, such as ``{"7": "7 - seven"}``.
        prompt: template with ``{class_name}`` and ``{article}``, for text-to-image models.
        device: as in `ModelSpec`, for a source.
        dtype: likewise, of the frozen weights. LoRA weights are always float32; with float16,
            gradients are scaled.
        split: of `open_source`.
        data_root: likewise.
        download: likewise.
        progress: draw a progress bar on a terminal.
        settings: how to train; None: `AdaptationSettings` with ``options``.
        options: attributes of `AdaptationSettings`, such as ``rank=8`` and ``train_steps=300``.

    Returns:
        What was measured, and where it lies.

    Raises:
        ValueError: an argument breaks its rule, or there are too few images.
        ModelError: the model cannot be loaded or adapted.
        AdaptationError: the folder holds another adaptation, or the loss is NaN.
        ImportError: peft and accelerate are not installed.

    Source: Hu et al. 2021, arXiv:2106.09685; choosing the step by paired held-out loss is ours.
    """
    _check_installed()
    if settings is not None and options:
        raise ValueError(f"settings must be given alone, got {', '.join(options)} too.")
    settings = AdaptationSettings(**options) if settings is None else settings
    folder = Path(out)
    check_out(folder, source, {CARD, CHECKPOINT, LORA, CLASS_ROWS, TOKENS})
    pictures = open_pictures(source, labels, class_names, split=split, data_root=data_root,
                             download=download)
    processes = open_processes()  # it chooses the device, before the model is loaded
    own = own_model(model, device, dtype)
    loop_settings = settings.loop(own.is_pixel_model)
    base = {"name": own.name, **base_identity(own.unet)}
    budget = (loop_settings.train_steps * settings.batch_size * settings.accumulate
              * processes.num_processes)
    images = read_images(
        pictures, own, settings.held_out if settings.early_stopping else 0.0, settings.rng_seed,
        budget=budget)
    identity = {
        "settings": asdict(replace(settings, learning_rate=loop_settings.learning_rate)),
        "images": images.digest, "classes": images.classes,
        "prompt": prompt if own.condition_kind == "text" else None,
        "class_map": dict(class_map or {}), "base": base["weights"], "dtype": base["dtype"],
        "processes": processes.num_processes, "image_size": list(own.image_size),
    }
    if (folder / CARD).exists():
        check_same(folder, read_card(folder)["identity"], identity)
        return read_adaptation(folder)
    conditions = prepare_conditions(own, images.classes, settings, prompt, class_map or {})
    if settings.gradient_checkpointing:
        own.unet.enable_gradient_checkpointing()
    if _is_named(model) and isinstance(own, LatentModel) and own.device.type != "cpu":
        own.vae.to("cpu")  # it has encoded the images, and is not needed any more
    adapted = AdaptedModel(own, conditions, settings.rank, settings.rng_seed,
                           settings.prior_weight)
    own.channels_last()
    schedule = noise_levels(
        own, int(own.pipeline.scheduler.config.get("num_train_timesteps", 1000)))
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporaries(folder)
    found, best = TrainingLoop(
        adapted, images, schedule, loop_settings, processes, folder, identity, progress).run()
    adapted.set_state(best)
    if processes.is_main_process:
        found_conditions = conditions.found()
        _write(folder, adapted, {
            "base": base,
            "classes": {
                "names": None if found_conditions.class_names is None
                else list(found_conditions.class_names),
                "null_class": found_conditions.null_class,
                "tokens": dict(found_conditions.tokens), "of_images": images.classes,
                "started_from": conditions.started_from,
            },
            "loss": conclude(found),
            "data": {"images": len(images.x_0), "held_out": len(images.held_out),
                     "labels": bool(images.classes)},
            "left_out": images.left_out,
            "seconds": round(found.seconds, 1),
            "parameters": sum(p.numel() for p in adapted.parameters.values()),
            "versions": versions(),
            "identity": identity,
        })
    processes.wait_for_everyone()
    return read_adaptation(folder)


def _check_installed() -> None:
    try:
        import accelerate  # noqa: F401
        import peft  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "adaptation needs extra packages: pip install 'dreamda_aug[adapt]'.") from error


def _is_named(model: Any) -> bool:
    """Whether it was loaded for this call, and nobody else uses it."""
    return isinstance(model, str | Path) or (
        isinstance(model, ModelSpec) and model.is_named)


def _write(folder: Path, adapted: AdaptedModel, card: dict[str, Any]) -> None:
    """Everything that was learned; the card is the last, and says that the rest is whole."""
    lora = lora_file(adapted.lora_tensors())
    write_atomically(folder / LORA, safetensors.torch.save(lora, {"format": "pt"}))
    extra = adapted.conditions.files()
    if extra:
        name = CLASS_ROWS if "rows" in extra else TOKENS
        write_atomically(folder / name, safetensors.torch.save(extra))
    write_atomically(folder / CARD, card_text(card))
    (folder / CHECKPOINT).unlink(missing_ok=True)
