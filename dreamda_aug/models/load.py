"""From a name, a folder, a file or a pipeline object to a model."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from dreamda_aug.arguments import check_fields
from dreamda_aug.errors import ModelError
from dreamda_aug.models.base import DiffusionModel, is_model
from dreamda_aug.models.opening import BUNDLED, open_pipeline, read_class_names

_BUNDLED_FOLDER = Path(__file__).parent.parent / "weights" / "fashion_mnist"


@dataclass(frozen=True)
class ModelSpec:
    """Which diffusion model, and how to load it.

    Attributes:
        source: a hub id (``"stable-diffusion-v1-5/stable-diffusion-v1-5"``), a local pipeline
            folder, a single ``.safetensors`` file of a Stable Diffusion model, a
            ``DiffusionPipeline`` object that is already loaded (with its LoRA weights, if any), or
            ``"bundled"``, the small Fashion-MNIST model of this package (28×28 grey).
        device: where it runs; None: CUDA if there is one, else the CPU. A pipeline object stays
            where it is.
        dtype: weights' dtype; None: on CUDA float16 for latent U-Nets and bfloat16 for
            transformers, many of which overflow in float16; else float32. A pipeline object keeps
            its own.
        variant: weights variant on the hub, such as ``"fp16"``.
        config: for a single file: hub id or folder of the pipeline whose configuration it has;
            None: diffusers guesses it, which needs the hub.
        image_size: height and width for latent models; None: the model's own.
        null_class: for class-conditional models, the class that means "none"; found by itself
            where `dreamda_aug.train` made the model.
        block_index: for transformers, the number of the block behind which the perturbation enters,
            in the order in which blocks run; None: the middle one.
        embedded_guidance: for guidance-distilled transformers, which take the guidance scale as an
            input (FLUX.1 dev): that scale; None: the default of the pipeline's own call.
        low_memory: for latent models on GPUs with 8 GB: the VAE (of a pipeline object, a copy of
            it) decodes one image at a time and waits on the CPU while the U-Net runs. It makes no
            sense without small batches: give `Synthesizer` or `DreamDAugment` ``batch_size=1``.
            Attention is not sliced: torch's fused attention, which diffusers uses, does not hold
            its matrix in memory.
        lora: LoRA weights to add to the model's own: a folder that `dreamda_aug.adapt` wrote, or,
            for pipelines that can load them, weights as diffusers knows them: a ``.safetensors``
            file, a folder or a hub id. They become part of the weights, and of the fingerprint.

    Raises:
        ValueError: device, dtype or lora for a pipeline object: it belongs to whoever loaded it.
    """

    source: Any = BUNDLED
    device: torch.device | str | None = None
    dtype: torch.dtype | str | None = None
    variant: str | None = None
    config: str | Path | None = None
    image_size: tuple[int, int] | None = None
    null_class: int | None = None
    low_memory: bool = False
    block_index: int | None = None
    embedded_guidance: float | None = None
    lora: str | Path | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        object.__setattr__(self, "device", _device(self.device))
        object.__setattr__(self, "dtype", _dtype(self.dtype))
        if isinstance(self.source, str) and not self.source.strip():
            raise ValueError(
                f"model must be a hub id, a folder, a file or {BUNDLED!r}, got {self.source!r}.")
        if self.lora is not None and not str(self.lora).strip():
            raise ValueError(f"lora must be a folder, a file or a hub id, got {self.lora!r}.")
        if self.is_named:
            return
        kind = type(self.source).__name__
        if self.lora is not None:
            raise ValueError(
                f"lora must be None for the loaded {kind}, which would be changed, got "
                f"{self.lora!r}; give the pipeline's name or folder instead, or load the weights "
                "yourself: pipeline.load_lora_weights(...)."
            )
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

    def load(self) -> DiffusionModel:
        """The diffusion model, ready for inversion and perturbation.

        Raises:
            ModelError: it cannot be found or reached, or has no place to perturb.
        """
        from dreamda_aug.models.latent import OnLatents

        class_names, pipeline = None, self.source
        if self.is_named:
            place = _BUNDLED_FOLDER if self.source == BUNDLED else Path(self.source)
            facts = place / "training.json"
            if facts.exists():
                class_names = read_class_names(facts)
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            where = place if place.exists() else self.name
            pipeline = open_pipeline(
                where, _dtype(self.dtype), self.variant, self.config, device)
            pipeline = pipeline.to(device)
        model = (self._with_transformer(pipeline) if getattr(pipeline, "unet", None) is None
                    else self._with_unet(pipeline, class_names))
        model.lora = None if self.lora is None else str(self.lora)
        if self.is_named and isinstance(model, OnLatents):
            # nobody else uses this pipeline: its VAE need not stay on the device beside a copy
            setattr(pipeline, "vae" if getattr(pipeline, "vae", None) else "vqvae", model.vae)
        return model

    def _with_unet(self, pipeline: Any, class_names: list[str] | None) -> DiffusionModel:
        from dreamda_aug.models.adapted import Conditions, apply_lora
        from dreamda_aug.models.latent import LatentModel
        from dreamda_aug.models.unet import PixelModel

        for option in ("block_index", "embedded_guidance"):
            if getattr(self, option) is not None:
                raise ValueError(
                    f"{option} is for transformers, and {self.name} ({type(pipeline).__name__}) "
                    f"has a U-Net, got {getattr(self, option)!r}; leave it out."
                )
        null_class = self.null_class
        if class_names and null_class is None:
            null_class = len(class_names)
        conditions = Conditions(class_names, null_class)
        if self.lora is not None:
            conditions = apply_lora(pipeline, self.name, self.lora, conditions)
        if not any(getattr(pipeline, part, None) for part in ("vae", "vqvae")):
            pixels = PixelModel(
                pipeline, self.name, conditions.class_names, conditions.null_class)
            if self.image_size not in (None, pixels.image_size):
                raise ValueError(
                    f"image_size is for latent models, and {self.name} makes images of "
                    f"{pixels.image_size} pixels, got {self.image_size}; leave it out.")
            return pixels
        return LatentModel(pipeline, self.name, self.image_size, conditions.class_names,
                           conditions.null_class, low_memory=self.low_memory)

    def _with_transformer(self, pipeline: Any) -> DiffusionModel:
        from dreamda_aug.models.adapted import CARD, Conditions, apply_lora
        from dreamda_aug.models.transformer import TransformerModel

        missing = [part for part in ("transformer", "vae") if getattr(pipeline, part, None) is None]
        if missing:
            raise ModelError(
                f"{self.name} ({type(pipeline).__name__}) has no U-Net, so there is no bottleneck "
                f"to perturb, and of a transformer's pipeline it has no {' and no '.join(missing)}."
                " Use a U-Net such as Stable Diffusion 1.x, 2.x or XL, or a transformer such as "
                "Stable Diffusion 3.5, FLUX.1, Sana or PixArt-Sigma."
            )
        if self.lora is not None:
            if (Path(self.lora) / CARD).is_file():
                raise ModelError(
                    f"{self.lora} was adapted from a U-Net, and {self.name} has a transformer; "
                    "load it with the model that it was adapted from."
                )
            apply_lora(pipeline, self.name, self.lora, Conditions())
        return TransformerModel(
            pipeline, self.name, self.image_size, null_class=self.null_class,
            low_memory=self.low_memory, block_index=self.block_index,
            embedded_guidance=self.embedded_guidance)


def load_model(source: Any = BUNDLED, **options: Any) -> DiffusionModel:
    """A diffusion model, ready for inversion and perturbation.

    Args:
        source: as in `ModelSpec`.
        options: the other attributes of `ModelSpec`.

    Returns:
        A `PixelModel`, a `LatentModel` or a `TransformerModel`.

    Raises:
        ModelError: it cannot be found or reached, or has no place to perturb.
        TypeError: there is no such option.
    """
    known = [each.name for each in fields(ModelSpec)]
    for name in options:
        if name not in known:
            raise TypeError(f"load_model has no option {name!r}; it has {', '.join(known)}.")
    return ModelSpec(source, **options).load()


def as_model(value: Any) -> DiffusionModel:
    """The model itself, or the one that a specification or a source stands for."""
    if is_model(value):
        return value
    return (value if isinstance(value, ModelSpec) else ModelSpec(value)).load()


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


def _same(wanted: Any, own: Any) -> bool:
    if isinstance(own, torch.device):
        wanted = torch.device(wanted)
        return wanted.type == own.type and wanted.index in (None, own.index)
    return bool(wanted == own)
