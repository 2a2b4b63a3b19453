"""From a name, a folder, a file or a pipeline object to a model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import nn

from dreamda_aug.arguments import check, check_fields, whole
from dreamda_aug.errors import ModelError
from dreamda_aug.files import read_json, regular_file
from dreamda_aug.models.adapted import UNLOADABLE, apply_lora
from dreamda_aug.models.base import DiffusionModel

# The name of the model that comes with the package.
BUNDLED = "bundled"
_BUNDLED_FOLDER = Path(__file__).parent.parent / "weights" / "fashion_mnist"


@dataclass(frozen=True)
class ModelSpec:
    """Which diffusion model, and how to load it.

    Attributes:
        source: a hub id (``"stable-diffusion-v1-5/stable-diffusion-v1-5"``), a local pipeline
            folder, a single ``.safetensors`` file of a Stable Diffusion model, a
            ``DiffusionPipeline`` object that is already loaded (with its LoRA weights, if any), or
            ``"bundled"``, the small Fashion-MNIST model of this package (28×28 grey).
        device: where it runs, or None for CUDA if there is one, else the CPU. A pipeline object
            stays where it is.
        dtype: of the weights, or None for float32 on the CPU and for pixel models, and on CUDA
            float16 for latent U-Nets and bfloat16 for transformers, many of which overflow in
            float16. A pipeline object keeps its own.
        variant: weights variant on the hub, such as ``"fp16"``.
        config: for a single file: hub id or folder of the pipeline whose configuration it has, or
            None to let diffusers guess it, which needs the hub.
        image_size: height and width for latent models, or None for the model's own.
        null_class: for class-conditional models, the class that means "none"; found by itself
            where `dreamda_aug.train` made the model.
        low_memory: for latent models on GPUs with 8 GB: the VAE (of a pipeline object, a copy of
            it) decodes one image at a time, in slices and, beyond its own size, in tiles (which
            overlap and are blended), and waits on the CPU while the denoiser runs. Combine it with
            ``batch_size=1`` of `Synthesizer` or `DreamDAugment`.
        block_index: for transformers, index of the block behind which the perturbation enters, in
            the order in which blocks run, or None for the middle one.
        embedded_guidance: for guidance-distilled transformers, which take the guidance scale as an
            input (FLUX.1 dev): that scale, or None for the default of the pipeline's own call.
        lora: LoRA weights to add to the model's own: a folder that `dreamda_aug.adapt` wrote, or a
            ``.safetensors`` file, a folder or a hub id in a layout of diffusers' or peft's, or in
            another that the pipeline's own loader reads. They count in the fingerprint.

    Raises:
        ValueError: a value is of another type; or device, dtype or lora are given for a pipeline
            object, which belongs to the caller.
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
        dtype = getattr(torch, self.dtype, None) if isinstance(self.dtype, str) else self.dtype
        if self.dtype is not None and dtype not in (torch.float32, torch.float16, torch.bfloat16):
            raise ValueError("dtype must be torch.float32, torch.float16 or torch.bfloat16, got "
                             f"{self.dtype!r}.")
        object.__setattr__(self, "dtype", dtype)
        for side in self.image_size or ():
            whole("image_size", side, 1)
        for name, value in (("model", self.source), ("lora", self.lora)):
            if isinstance(value, str) and not value.strip():
                raise ValueError(f"{name} must be a hub id, a folder or a file, got {value!r}.")
        for name, way in (("device", "to(...)"), ("dtype", "to(...)"),
                          ("lora", "load_lora_weights(...)")):
            if not self.is_named and getattr(self, name) is not None:
                raise ValueError(
                    f"{name} must be None for the loaded {self.name}, which would be changed, got "
                    f"{str(getattr(self, name))!r}; give the pipeline's name or folder instead, or "
                    f"change it yourself: pipeline.{way}.")

    @property
    def is_named(self) -> bool:
        """Whether ``source`` is a name or path, not a pipeline object."""
        return isinstance(self.source, str | Path)

    @property
    def name(self) -> str:
        """The model's name, for people."""
        return str(self.source) if self.is_named else type(self.source).__name__

    def load(self) -> DiffusionModel:
        """The diffusion model, ready for inversion and perturbation.

        Raises:
            ModelError: it cannot be found or reached, or has no place to perturb.
            ValueError: an option does not suit this model.
        """
        from dreamda_aug.models.transformer import TransformerModel
        from dreamda_aug.models.unet import UNetModel

        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        pipeline, names = self._open(device) if self.is_named else (self.source, None)
        kind = f"{self.name} ({type(pipeline).__name__})"
        lost = [f"{part}.{name}" for part, module in getattr(pipeline, "__dict__", {}).items()
                if isinstance(module, nn.Module)
                for name, weight in module.named_parameters() if weight.is_meta]
        if lost:
            raise ModelError(
                f"{kind} lacks the weights {', '.join(lost[:3])}: its files do not have them, or "
                "they are offloaded. Load the pipeline without offloading, and give "
                "low_memory=True on small GPUs.")
        if self.is_named:
            pipeline.to(device)
        null_class = len(names) if names and self.null_class is None else self.null_class
        unet, transformer, vae = (
            getattr(pipeline, part, None) for part in ("unet", "transformer", "vae"))
        if unet is None and (transformer is None or vae is None):
            raise ModelError(
                f"{kind} has no U-Net, and not both a transformer and a VAE, so there is nothing "
                "to perturb. Use a U-Net such as Stable Diffusion 1.x, 2.x or XL, or a transformer "
                "such as Stable Diffusion 3.5, FLUX.1, Sana or PixArt-Sigma.")
        for option in ("block_index", "embedded_guidance"):
            if unet is not None and getattr(self, option) is not None:
                raise ValueError(f"{option} is for transformers, and {kind} has a U-Net, got "
                                 f"{getattr(self, option)!r}; leave it out.")
        if self.lora is not None:
            names, null_class = apply_lora(pipeline, self.name, self.lora) or (names, null_class)
        model: DiffusionModel
        if unet is not None:
            model = UNetModel(
                pipeline, self.name, names, null_class, self.image_size, self.low_memory)
        else:
            model = TransformerModel(
                pipeline, self.name, self.image_size, self.null_class, self.low_memory,
                self.block_index, self.embedded_guidance)
        model.lora = None if self.lora is None else str(self.lora)
        if self.is_named and model.vae is not None:
            # nobody else uses this pipeline: its VAE need not stay on the device beside a copy
            setattr(pipeline, "vqvae" if vae is None else "vae", model.vae)
        return model

    def _open(self, device: Any) -> tuple[Any, list[str] | None]:
        """The pipeline in a folder, in a file or on the hub, and the names of its classes."""
        import diffusers
        from diffusers.utils import logging

        path = _BUNDLED_FOLDER if self.source == BUNDLED else Path(self.source)
        # opening a folder is too quick for a progress bar; a download is not
        quiet = path.exists() and logging.is_progress_bar_enabled()
        if quiet:
            logging.disable_progress_bar()
        try:
            names = None
            if path.exists() and not path.is_dir():
                pipeline = self._open_file(path, device)
            else:
                place = path if path.exists() else self.name
                index = dict(diffusers.DiffusionPipeline.load_config(place))
                # SD3 may be saved without T5, which diffusers opens if None is passed
                absent = {part: None for part, entry in index.items() if entry == [None, None]}
                pipeline = diffusers.DiffusionPipeline.from_pretrained(
                    place, dtype=self._dtype_for(index, device), variant=self.variant,
                    use_safetensors=True, **absent)
                if (card := path / "training.json").exists():  # `dreamda_aug.train` made it
                    names = check(f"{card}: class_names", read_json(card).get("class_names"),
                                  list[str] | None)
        except UNLOADABLE as error:
            raise ModelError(
                f"could not load {self.name!r} as a diffusers pipeline: {error}\n"
                "Without a connection to the hub, download it on another machine "
                "(hf download NAME --local-dir FOLDER) and pass the folder, or use "
                f"model={BUNDLED!r}, which needs no download.") from error
        finally:
            if quiet:
                logging.enable_progress_bar()
        return pipeline, names

    def _open_file(self, path: Path, device: Any) -> Any:
        import diffusers

        if path.suffix != ".safetensors":
            raise ModelError("only .safetensors files are opened: nothing is unpickled")
        kind: Any = diffusers.StableDiffusionPipeline
        with safetensors.safe_open(regular_file(path), "pt") as file:
            if any(name.startswith("conditioner.embedders.1") for name in file.keys()):
                kind = diffusers.StableDiffusionXLPipeline
        return kind.from_single_file(
            str(path), dtype=self._dtype_for({"vae": None}, device),
            config=None if self.config is None else str(self.config))

    def _dtype_for(self, index: dict[str, Any], device: Any) -> Any:
        """The dtype of a pipeline with these parts."""
        if self.dtype is not None:
            return self.dtype
        if not str(device).startswith("cuda") or not {"vae", "vqvae"} & index.keys():
            return torch.float32
        return torch.bfloat16 if "transformer" in index else torch.float16


def load_model(source: Any = BUNDLED, **options: Any) -> DiffusionModel:
    """A diffusion model, ready for inversion and perturbation.

    Args:
        source: as in `ModelSpec`.
        options: the other attributes of `ModelSpec`.

    Returns:
        A `UNetModel` or a `TransformerModel`.

    Raises:
        ModelError: it cannot be found or reached, or has no place to perturb.
        TypeError: there is no such option.
    """
    return ModelSpec(source, **options).load()


def as_model(value: Any) -> DiffusionModel:
    """The model itself, or the one that a specification or a source stands for."""
    if isinstance(value, DiffusionModel):
        return value
    return (value if isinstance(value, ModelSpec) else ModelSpec(value)).load()


def _device(device: torch.device | str | None) -> torch.device | None:
    try:
        found = None if device is None else torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device must be such as 'cpu' or 'cuda:1', got {device!r}.") from error
    if found is not None and found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device must be there: torch finds no CUDA device, got {device!r}.")
    return found
