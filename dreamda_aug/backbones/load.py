"""From a name, a folder, a file or a pipeline object to a backbone."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import safetensors
import torch

from dreamda_aug.backbones.base import Backbone, is_backbone
from dreamda_aug.errors import BackboneError

BUNDLED = "bundled"
_BUNDLED_FOLDER = Path(__file__).parent.parent / "weights" / "fashion_mnist"


@dataclass(frozen=True)
class BackboneSpec:
    """Which diffusion model, and how to load it.

    Attributes:
        source: a hub id (``"stable-diffusion-v1-5/stable-diffusion-v1-5"``), a local pipeline
            folder, a single ``.safetensors`` file of a Stable Diffusion model, a
            ``DiffusionPipeline`` object that is already loaded (with its LoRA weights, if any), or
            ``"bundled"``, the small Fashion-MNIST model of this package (28×28 grey).
        device: where it runs; None: CUDA if there is one, else the CPU. A pipeline object stays
            where it is.
        dtype: weights' dtype; None: float16 on CUDA for latent models, else float32. A pipeline
            object keeps its own.
        variant: weights variant on the hub, such as ``"fp16"``.
        config: for a single file: hub id or folder of the pipeline whose configuration it has;
            None: diffusers guesses it, which needs the hub.
        image_size: height and width for latent models; None: the model's own.
        null_class: for class-conditional models, the class that means "none"; found by itself
            where ``examples/train_backbone.py`` made the model.
        low_memory: for latent models on GPUs with 8 GB: the VAE (of a pipeline object, a copy of
            it) decodes one image at a time and waits on the CPU while the U-Net runs. It makes no
            sense without small batches: give `Synthesizer` or `DreamDAugment` ``batch_size=1``.
            Attention is not sliced: torch's fused attention, which diffusers uses, does not hold
            its matrix in memory.

    Raises:
        ValueError: device or dtype for a pipeline object: it belongs to whoever loaded it.
    """

    source: Any = BUNDLED
    device: torch.device | str | None = None
    dtype: torch.dtype | str | None = None
    variant: str | None = None
    config: str | Path | None = None
    image_size: tuple[int, int] | None = None
    null_class: int | None = None
    low_memory: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "device", _device(self.device))
        object.__setattr__(self, "dtype", _dtype(self.dtype))
        if isinstance(self.source, str) and not self.source.strip():
            raise ValueError(
                f"backbone must be a hub id, a folder, a file or {BUNDLED!r}, got {self.source!r}.")
        if self.is_named:
            return
        kind = type(self.source).__name__
        for name, value, own in (
            ("device", self.device, getattr(self.source, "device", None)),
            ("dtype", self.dtype, getattr(self.source, "dtype", None)),
        ):
            if value is not None and own is not None and not _same(value, own):
                argument = str(value) if name == "dtype" else repr(str(value))
                raise ValueError(
                    f"{name} must be that of the loaded {kind}, {own}, got {value}; convert it "
                    f"yourself: pipeline.to({argument})."
                )

    @property
    def is_named(self) -> bool:
        """Whether it says where the model lies; else it holds a pipeline object."""
        return isinstance(self.source, str | Path)

    @property
    def name(self) -> str:
        """The model's name, for people."""
        return str(self.source) if self.is_named else type(self.source).__name__

    def load(self) -> Backbone:
        """The diffusion model, ready for inversion and perturbation.

        Raises:
            BackboneError: it cannot be found or reached, or has no U-Net bottleneck.
        """
        from dreamda_aug.backbones.latent import LatentBackbone
        from dreamda_aug.backbones.unet import PixelBackbone

        class_names, pipeline, null_class = None, self.source, self.null_class
        if self.is_named:
            place = _BUNDLED_FOLDER if self.source == BUNDLED else Path(self.source)
            facts = place / "training.json"
            if facts.exists():
                class_names = _class_names(facts)
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            where = place if place.exists() else self.name
            pipeline = _open_pipeline(
                where, _dtype(self.dtype), self.variant, self.config, device)
            pipeline = pipeline.to(device)
        if getattr(pipeline, "unet", None) is None:
            raise BackboneError(
                f"{self.name} ({type(pipeline).__name__}) has no U-Net, so there is no bottleneck "
                "to perturb. Use a U-Net backbone such as Stable Diffusion 1.x, 2.x or XL."
            )
        if class_names and null_class is None:
            null_class = len(class_names)
        vae = next((part for part in ("vae", "vqvae") if getattr(pipeline, part, None)), None)
        if vae is None:
            return PixelBackbone(pipeline, self.name, class_names, null_class)
        backbone = LatentBackbone(pipeline, self.name, self.image_size, class_names, null_class,
                                  low_memory=self.low_memory)
        if self.is_named:
            # nobody else uses this pipeline: its VAE need not stay on the device beside a copy
            setattr(pipeline, vae, backbone.vae)
        return backbone


def load_backbone(source: Any = BUNDLED, **options: Any) -> Backbone:
    """A diffusion model, ready for inversion and perturbation.

    Args:
        source: as in `BackboneSpec`.
        options: the other attributes of `BackboneSpec`.

    Returns:
        A `PixelBackbone` or a `LatentBackbone`.

    Raises:
        BackboneError: it cannot be found or reached, or has no U-Net bottleneck.
        TypeError: there is no such option.
    """
    known = [each.name for each in fields(BackboneSpec)]
    for name in options:
        if name not in known:
            raise TypeError(f"load_backbone has no option {name!r}; it has {', '.join(known)}.")
    return BackboneSpec(source, **options).load()


def as_backbone(value: Any) -> Backbone:
    """The backbone itself, or the one that a specification or a source stands for."""
    if is_backbone(value):
        return value
    return (value if isinstance(value, BackboneSpec) else BackboneSpec(value)).load()


def _device(device: torch.device | str | None) -> torch.device | None:
    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be one that torch knows, such as 'cpu' or 'cuda:1', got {device!r}."
        ) from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be there: torch finds no CUDA device, got {device!r}.")
    return found


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None:
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype must be torch.float32, torch.float16 or torch.bfloat16, got {dtype!r}.")
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise BackboneError(f"{path}: expected JSON, found something else ({error}).") from error
    if not isinstance(found, dict):
        raise BackboneError(f"{path}: expected a JSON object, found a {type(found).__name__}.")
    return found


def _class_names(path: Path) -> list[str] | None:
    names = _read_json(path).get("class_names")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise BackboneError(f"{path}: class_names must be a list of text, found {names!r}.")
    return names


def _same(wanted: Any, own: Any) -> bool:
    if isinstance(own, torch.device):
        wanted = torch.device(wanted)
        return wanted.type == own.type and wanted.index in (None, own.index)
    return bool(wanted == own)


def _open_pipeline(
    source: str | Path, dtype: torch.dtype | None, variant: str | None,
    config: str | Path | None, device: torch.device | str,
) -> Any:
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
        parts = _read_json(index)
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
            kind: Any = diffusers.StableDiffusionPipeline
            with safetensors.safe_open(source, "pt") as file:
                if any(name.startswith("conditioner.embedders.1") for name in file.keys()):
                    kind = diffusers.StableDiffusionXLPipeline
            return kind.from_single_file(
                str(source), dtype=dtype, config=None if config is None else str(config)
            )
        return diffusers.DiffusionPipeline.from_pretrained(
            source, dtype=dtype, variant=variant, use_safetensors=True
        )
    # a damaged folder fails in many ways inside diffusers, and each is about that folder
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError,
            safetensors.SafetensorError) as error:
        raise BackboneError(
            f"could not load {str(source)!r} as a diffusers pipeline: {error}\n"
            "Without a connection to the hub, download it on another machine "
            "(hf download NAME --local-dir FOLDER) and pass the folder, or use "
            f"backbone={BUNDLED!r}, which needs no download."
        ) from error
    finally:
        if quiet:
            logging.enable_progress_bar()
