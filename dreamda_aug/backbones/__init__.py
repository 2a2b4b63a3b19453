"""The seam to diffusers: the only folder that imports it, and only when a model is loaded."""

import json
from pathlib import Path

import torch

from dreamda_aug.backbones.base import Backbone, Condition
from dreamda_aug.errors import BackboneError

__all__ = ["BUNDLED", "Backbone", "Condition", "load_backbone"]

BUNDLED = "bundled"
_BUNDLED_FOLDER = Path(__file__).parent.parent / "weights" / "fashion_mnist"


def load_backbone(
    source=BUNDLED,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
    image_size: tuple[int, int] | None = None,
    null_class: int | None = None,
) -> Backbone:
    """A diffusion model, ready for inversion and perturbation.

    Args:
        source: a hub id (``"stable-diffusion-v1-5/stable-diffusion-v1-5"``), a local pipeline
            folder, a ``DiffusionPipeline`` object that is already loaded, or ``"bundled"``, the
            small Fashion-MNIST model of this package (28×28 grey, unconditional).
        device: where it runs; None: CUDA if there is one, else the CPU; a pipeline object stays
            where it is.
        dtype: weights' dtype; None: float16 on CUDA for text-to-image models, else float32; a
            pipeline object keeps its own.
        variant: weights variant on the hub, such as ``"fp16"``.
        image_size: height and width for text-to-image models; None: the model's own.
        null_class: for class-conditional pixel models, the class that means "none"; found by
            itself where ``examples/train_backbone.py`` made the model.

    Returns:
        A `PixelBackbone` or a `StableDiffusionBackbone`.

    Raises:
        BackboneError: it cannot be found or reached, or has no U-Net bottleneck.
    """
    from dreamda_aug.backbones.pixel import PixelBackbone
    from dreamda_aug.backbones.stable_diffusion import StableDiffusionBackbone

    class_names = None
    if isinstance(source, str | Path):
        name = str(source)
        folder = _BUNDLED_FOLDER if source == BUNDLED else Path(source)
        facts = folder / "training.json"
        if facts.exists():
            class_names = json.loads(facts.read_text()).get("class_names")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        pipeline = _open_pipeline(folder if folder.exists() else source, dtype, variant, device)
    else:
        pipeline, name = source, type(source).__name__
        if dtype is not None:
            pipeline = pipeline.to(dtype)
    if device is not None:
        pipeline = pipeline.to(device)
    unet = getattr(pipeline, "unet", None)
    if unet is None:
        raise BackboneError(
            f"{name} ({type(pipeline).__name__}) has no U-Net, so there is no bottleneck to "
            "perturb. Use a U-Net backbone such as Stable Diffusion 1.x, 2.x or XL."
        )
    if getattr(pipeline, "vae", None) is not None:
        return StableDiffusionBackbone(pipeline, name, image_size)
    if class_names and null_class is None:
        null_class = len(class_names)
    return PixelBackbone(pipeline, name, class_names, null_class)


def _open_pipeline(source: str | Path, dtype, variant, device):
    import diffusers
    from diffusers.utils import logging

    if isinstance(source, Path):
        index = source / "model_index.json"
        if not index.exists():
            raise BackboneError(
                f"{source} is not a diffusers pipeline folder: model_index.json is missing. Save "
                "one with pipeline.save_pretrained(folder)."
            )
        is_text = "vae" in json.loads(index.read_text())
    else:
        is_text = True
    if dtype is None:
        dtype = torch.float16 if is_text and str(device).startswith("cuda") else torch.float32
    # opening a folder is too quick for a progress bar; a download is not
    quiet = isinstance(source, Path) and logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        return diffusers.DiffusionPipeline.from_pretrained(
            source, dtype=dtype, variant=variant, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise BackboneError(
            f"could not load {str(source)!r} as a diffusers pipeline: {error}\n"
            "Without a connection to the hub, download it on another machine "
            "(hf download NAME --local-dir FOLDER) and pass the folder, or use "
            f"backbone={BUNDLED!r}, which needs no download."
        ) from error
    finally:
        if quiet:
            logging.enable_progress_bar()
