"""The seam to diffusers: the only folder that imports it, and only when a model is loaded."""

import json
from pathlib import Path

import safetensors
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
    config: str | Path | None = None,
    image_size: tuple[int, int] | None = None,
    null_class: int | None = None,
    low_memory: bool = False,
) -> Backbone:
    """A diffusion model, ready for inversion and perturbation.

    Args:
        source: a hub id (``"stable-diffusion-v1-5/stable-diffusion-v1-5"``), a local pipeline
            folder, a single ``.safetensors`` file of a Stable Diffusion model, a
            ``DiffusionPipeline`` object that is already loaded (with its LoRA weights, if any), or
            ``"bundled"``, the small Fashion-MNIST model of this package (28×28 grey,
            unconditional).
        device: where it runs; None: CUDA if there is one, else the CPU; a pipeline object stays
            where it is.
        dtype: weights' dtype; None: float16 on CUDA for latent models, else float32; a pipeline
            object keeps its own.
        variant: weights variant on the hub, such as ``"fp16"``.
        config: for a single file: hub id or folder of the pipeline whose configuration it has;
            None: diffusers guesses it, which needs the hub.
        image_size: height and width for latent models; None: the model's own.
        null_class: for class-conditional models, the class that means "none"; found by itself
            where ``examples/train_backbone.py`` made the model.
        low_memory: for latent models on GPUs with 8 GB: the VAE decodes one image at a time and
            waits on the CPU while the U-Net runs (that of a pipeline object, too). It makes no
            sense without small batches: give `Generator` or `DreamDAugment` ``batch_size=1``.
            Attention is not sliced: torch's fused attention, which diffusers uses, does not hold
            its matrix in memory.

    Returns:
        A `PixelBackbone` or a `LatentBackbone`.

    Raises:
        BackboneError: it cannot be found or reached, or has no U-Net bottleneck.
    """
    from dreamda_aug.backbones.unet import LatentBackbone, PixelBackbone

    class_names = None
    if isinstance(source, str | Path):
        name = str(source)
        place = _BUNDLED_FOLDER if source == BUNDLED else Path(source)
        facts = place / "training.json"
        if facts.exists():
            class_names = json.loads(facts.read_text()).get("class_names")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        pipeline = _open_pipeline(place if place.exists() else name, dtype, variant, config, device)
    else:
        pipeline, name = source, type(source).__name__
        if dtype is not None:
            pipeline = pipeline.to(dtype)
    if device is not None:
        pipeline = pipeline.to(device)
    if getattr(pipeline, "unet", None) is None:
        raise BackboneError(
            f"{name} ({type(pipeline).__name__}) has no U-Net, so there is no bottleneck to "
            "perturb. Use a U-Net backbone such as Stable Diffusion 1.x, 2.x or XL."
        )
    if class_names and null_class is None:
        null_class = len(class_names)
    if getattr(pipeline, "vae", None) is None and getattr(pipeline, "vqvae", None) is None:
        return PixelBackbone(pipeline, name, class_names, null_class)
    return LatentBackbone(pipeline, name, image_size, class_names, null_class,
                          low_memory=low_memory)


def _open_pipeline(source: str | Path, dtype, variant, config, device):
    """The pipeline in a folder or file (a Path), or on the hub (a str)."""
    import diffusers
    from diffusers.utils import logging

    is_latent = True
    if isinstance(source, Path) and source.is_dir():
        index = source / "model_index.json"
        if not index.exists():
            raise BackboneError(
                f"{source} is not a diffusers pipeline folder: model_index.json is missing. Save "
                "one with pipeline.save_pretrained(folder)."
            )
        parts = json.loads(index.read_text())
        is_latent = "vae" in parts or "vqvae" in parts
    if dtype is None:
        dtype = torch.float16 if is_latent and str(device).startswith("cuda") else torch.float32
    # opening a folder is too quick for a progress bar; a download is not
    quiet = isinstance(source, Path) and logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        if isinstance(source, Path) and source.is_file():
            if source.suffix != ".safetensors":
                raise ValueError("only .safetensors files are opened: nothing is unpickled")
            kind = diffusers.StableDiffusionPipeline
            with safetensors.safe_open(source, "pt") as file:
                if any(name.startswith("conditioner.embedders.1") for name in file.keys()):
                    kind = diffusers.StableDiffusionXLPipeline
            return kind.from_single_file(
                str(source), dtype=dtype, config=None if config is None else str(config)
            )
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
