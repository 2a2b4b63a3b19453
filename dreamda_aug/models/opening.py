"""Opening diffusers pipelines: folders, single files and the hub."""

import json
from pathlib import Path
from typing import Any

import safetensors
import torch

from dreamda_aug.errors import ModelError

# The name of the model that comes with the package.
BUNDLED = "bundled"
# A thousand are usual.
_MAX_TIMESTEPS = 1_000_000


def open_pipeline(
    source: str | Path, dtype: torch.dtype | None, variant: str | None,
    config: str | Path | None, device: torch.device | str,
) -> Any:
    """The pipeline in a folder or file (a Path), or on the hub (a str)."""
    import diffusers
    from diffusers.utils import logging

    parts: dict[str, Any] = {"vae": None}
    if isinstance(source, Path) and source.is_dir():
        index = source / "model_index.json"
        if not index.exists():
            raise ModelError(
                f"{source} is not a diffusers pipeline folder: model_index.json is missing. Save "
                "one with pipeline.save_pretrained(folder)."
            )
        parts = _read_json(index)
        _check_timesteps(source / "scheduler" / "scheduler_config.json")
    # opening a folder is too quick for a progress bar; a download is not
    quiet = isinstance(source, Path) and logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        on_cuda = str(device).startswith("cuda")
        if dtype is None and on_cuda and isinstance(source, str):
            parts = dict(diffusers.DiffusionPipeline.load_config(source))
        if dtype is None:
            half = torch.bfloat16 if "transformer" in parts else torch.float16
            dtype = half if on_cuda and ("vae" in parts or "vqvae" in parts) else torch.float32
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
        raise ModelError(
            f"could not load {str(source)!r} as a diffusers pipeline: {error}\n"
            "Without a connection to the hub, download it on another machine "
            "(hf download NAME --local-dir FOLDER) and pass the folder, or use "
            f"model={BUNDLED!r}, which needs no download."
        ) from error
    finally:
        if quiet:
            logging.enable_progress_bar()


def read_class_names(path: Path) -> list[str] | None:
    """Names of a model's classes, as `dreamda_aug.train` keeps them, or None."""
    names = _read_json(path).get("class_names")
    if names is not None and not (
        isinstance(names, list) and all(isinstance(name, str) for name in names)
    ):
        raise ModelError(f"{path}: class_names must be a list of text, found {names!r}.")
    return names


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{path}: expected JSON, found something else ({error}).") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: expected a JSON object, found a {type(found).__name__}.")
    return found


def _check_timesteps(path: Path) -> None:
    """Refuse a table of noise levels that would fill the memory before anything is checked."""
    count = _read_json(path).get("num_train_timesteps", 1) if path.is_file() else 1
    if isinstance(count, int | float) and count > _MAX_TIMESTEPS:
        raise ModelError(
            f"{path}: num_train_timesteps must be at most {_MAX_TIMESTEPS:,}, found {count}.")
