"""`Synthesizer`: from images of any kind, with their labels, to synthetic images of that kind."""

import copy
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dreamda_aug.arguments import checked, whole
from dreamda_aug.errors import GenerationError
from dreamda_aug.generation.cache import LatentCache, default_cache_root
from dreamda_aug.generation.dials import resolve_dials
from dreamda_aug.generation.sampler import Request, Sampler
from dreamda_aug.inputs.pixels import Pixels, fit_back, fit_to, read_pixels
from dreamda_aug.inputs.prompts import DEFAULT_PROMPT, Captions, Conditioner
from dreamda_aug.method.settings import ResolvedSettings, Settings, resolve_settings
from dreamda_aug.models import DiffusionModel, ModelSpec
from dreamda_aug.models.conditioning import MAX_PROMPTS
from dreamda_aug.models.load import BUNDLED

_LOADING = {each.name for each in fields(ModelSpec)} - {"source"}
_loading = threading.Lock()


class Synthesizer:
    """Turns images into synthetic images with one diffusion model.

    It reads an image of any kind, conditions the model on its label or caption, inverts it once
    (inversions are cached), samples a freshly perturbed variant, retries broken ones, and returns
    the result in the image's own type, mode, size and range. `DreamDAugment`, `AugmentedDataset`,
    `expand` and `calibrate` all take one.

    The model is loaded with the first image, not before. Copies share it, and threads may: each
    batch waits for its turn. Pickles leave it out: each worker process loads its own.

    Args:
        model: the name, folder, file or pipeline of a model (see `ModelSpec`), a `ModelSpec`, or a
            loaded model.
        preset: ``"recommended"``, ``"fast"``, ``"samples"``, ``"paper"``, ``"official"`` or
            `Settings`.
        class_names: the name of each class in label order, for text-to-image models and those
            that are conditioned on class names; or None, for which `AugmentedDataset`, `expand`
            and `evaluate` take the dataset's own names.
        prompt: template with ``{class_name}`` and ``{article}``, or a function from a label to a
            prompt. The default is the authors' template.
        captions: one prompt per image instead of ``prompt``: a ``.jsonl`` or ``.csv`` file with
            ``file_name`` and ``text``, a mapping from file name to text, a list in dataset order,
            or a function from file name to text.
        cache: `LatentCache`, a folder, ``"default"`` (``$DREAMDA_CACHE`` or
            ``~/.cache/dreamda_aug``, at most 20 GB) or None for no cache.
        rng_seed: seed of all randomness.
        batch_size: images per U-Net call.
        compile: run the U-Net through ``torch.compile``, with these options if it is a dict;
            batches are then padded to ``batch_size``.
        keep_text_encoder: False drops text encoders from memory once all possible prompts are
            embedded; None does so for models that are loaded here, not for loaded ones. It needs
            class_names with a template, or captions that are no function, and at most 1,024
            prompts.
        options: single settings that differ from the preset, such as ``noise_scale=2.0``, and other
            attributes of `ModelSpec`, such as ``device``, ``dtype``, ``lora`` or ``low_memory``.

    Raises:
        ValueError: an argument breaks its rule.
        TypeError: there is no such setting.

    Source: Fu et al. 2024, arXiv:2403.12803; caching, batching and seeding per sample are ours.
    """

    @checked
    def __init__(
        self,
        model: Any = BUNDLED,
        preset: Settings | str = "recommended",
        *,
        class_names: Sequence[str] | None = None,
        prompt: str | Callable[[Any], str] = DEFAULT_PROMPT,
        captions: Captions | str | Path | Mapping[str, str] | Sequence[str]
        | Callable[[Any], str] | None = None,
        cache: LatentCache | str | Path | None = "default",
        rng_seed: int = 0,
        batch_size: int = 32,
        compile: bool | Mapping[str, Any] = False,
        keep_text_encoder: bool | None = None,
        **options: Any,
    ):
        loading = {name: options.pop(name) for name in _LOADING & options.keys()}
        self._shared = _SharedModel(_model_source(model, loading), compile)
        self.requested_settings = resolve_settings(preset, **options)
        if not isinstance(captions, Captions | None):
            captions = Captions(captions)
        self.conditioner = Conditioner(class_names, prompt, captions)
        if cache == "default":
            cache = LatentCache(default_cache_root(), max_bytes=20 * 10**9)
        self.cache = LatentCache(cache) if isinstance(cache, str | Path) else cache
        self.rng_seed = whole("rng_seed", rng_seed, -(2**63), 2**63 - 1)
        self.batch_size = whole("batch_size", batch_size, 1)
        self.keep_text_encoder = keep_text_encoder
        self._model: DiffusionModel | None = None
        self._sampler: Sampler | None = None

    @property
    def name(self) -> str:
        """The model's name; it need not be loaded."""
        return self._shared.source.name

    @property
    def model(self) -> DiffusionModel:
        """The diffusion model; the first use loads it."""
        self._shared.refuse_cuda_in_fork()
        if self._model is None:
            prompts = self.conditioner.known_prompts()
            drop = (self._shared.is_named if self.keep_text_encoder is None
                    else not self.keep_text_encoder)
            self._model = self._shared.get(
                [None, self.requested_settings.source_prompt, *prompts]
                if drop and prompts is not None else None)
        return self._model

    @property
    def sampler(self) -> Sampler:
        """The part that works on tensors; the first use loads the model."""
        model = self.model
        if self._sampler is None:
            if self.requested_settings.forgets_seed and model.condition_kind == "none":
                warnings.warn(
                    f"{model.name} has no classes, and strength 1 with replay 0 leaves nothing of "
                    "the seed image: samples will be of any class, whatever their label. Take a "
                    "lower strength, or a model that is conditioned on your classes.",
                    stacklevel=2)
            self._sampler = Sampler(
                model, resolve_dials(self.requested_settings, model, self.cache), self.cache,
                self.batch_size, self.rng_seed, bool(self._shared.compile))
        return self._sampler

    @property
    def settings(self) -> ResolvedSettings:
        """The settings with numbers for what was calibrated; the first use loads the model."""
        return self.sampler.settings

    def with_settings(self, settings: Settings) -> "Synthesizer":
        """Another synthesizer with other settings, on the same model and cache."""
        other = copy.copy(self)
        other.requested_settings = settings
        return other

    def with_class_names(self, class_names: Sequence[str] | None) -> "Synthesizer":
        """Another synthesizer with these class names, in label order, on the same model and cache.

        This one is returned for None, or where it has names already.
        """
        own = self.conditioner
        if class_names is None or own.class_names is not None:
            return self
        other = copy.copy(self)
        other.conditioner = Conditioner(class_names, own.prompt, own.captions)
        return other

    def without_labels(self) -> "Synthesizer":
        """Another synthesizer for images without labels, on the same model and cache.

        Dials that are None become what `calibrate` found without ``conditions``, or else stay
        where the bundled model's images kept their class. The first use loads the model.
        """
        settings = resolve_dials(self.requested_settings, self.model, self.cache, labeled=False)
        # both guidance rows would be the same
        return self.with_settings(replace(settings, guidance_scale=1.0))

    @checked
    def synthesize(
        self, images: Sequence[Any], labels: Sequence[Any] | None = None,
        replicas: Sequence[int] | None = None, epoch: int = 0,
        names: Sequence[str | int] | None = None,
    ) -> list[Any]:
        """Synthetic versions of single images, made in batches; the same for the same arguments.

        Args:
            images: PIL images or tensors (C, H, W), one for each synthetic image.
            labels: their labels, or None where the model needs none.
            replicas: which replica of each, >= 0, or None for replica 0.
            epoch: another epoch is another perturbation, >= 0.
            names: what captions call each image, see `Captions.images`; needed with captions only.

        Returns:
            Images of the same types, in order.

        Raises:
            ValueError: an image or a label breaks its rule.
            GenerationError: memory ran out at batch size 1, or CUDA in a forked worker.
        """
        return [seed.restore(new) for seed, new in self.synthesize_values(
            images, labels, replicas, epoch, names)]

    def synthesize_values(
        self, images: Sequence[Any], labels: Sequence[Any] | None = None,
        replicas: Sequence[int] | None = None, epoch: int = 0,
        names: Sequence[str | int] | None = None,
    ) -> list[tuple[Pixels, Tensor]]:
        """As `synthesize`, before the images are put into their own types.

        Returns:
            For each synthetic image its seed image, whose ``restore`` gives the type back, and its
            pixels, (1, C, H, W) float32 in [0, 1].
        """
        # a list, which keeps what it holds: ids of images that are gone are given to others
        images = list(images)
        if not images:
            return []
        nothing = [None] * len(images)
        # the same image may be requested several times: read it once
        single = {id(image): image for image in images}
        row_of = {key: row for row, key in enumerate(single)}
        pixels = [read_pixels(image) for image in single.values()]
        if batches := [each for each in pixels if len(each.values) != 1]:
            raise ValueError(
                "images must be single ones, (C, H, W), got a batch of "
                f"{len(batches[0].values)} among them; list(batch) is a list of single images.")
        requests = [
            Request(row_of[id(image)], self.conditioner.condition(label, self.model, name),
                    int(replica or 0), epoch)
            for image, label, replica, name in zip(
                images, nothing if labels is None else labels,
                nothing if replicas is None else replicas,
                nothing if names is None else names, strict=True)]
        made = self.synthesize_rows(pixels, requests)
        return [(pixels[r.image], new) for r, new in zip(requests, made, strict=True)]

    def synthesize_rows(
        self, pixels: Sequence[Pixels], requests: Sequence[Request]
    ) -> list[Tensor]:
        """Pixels (1, C, H, W) for each request, in the size and channels of its seed image.

        Args:
            pixels: what `read_pixels` returns; rows of batches are numbered through.
            requests: what to make of which row.
        """
        values = torch.cat([fit_to(p.values, self.model) for p in pixels])
        digests = [digest for p in pixels for digest in p.digests]
        like = [p.values for p in pixels for _ in p.digests]
        made = self.sampler.synthesize(values, requests, digests).images
        return [fit_back(new[None], like[r.image]) for r, new in zip(requests, made, strict=True)]

    def __repr__(self) -> str:
        return (f"Synthesizer({self.name!r}, {self.requested_settings.summary()}, "
                f"rng_seed={self.rng_seed})")

    def __getstate__(self) -> dict[str, Any]:
        # a copy's prompts or settings may be others, and a worker loads its own model
        return {**self.__dict__, "_model": None, "_sampler": None}


class _SharedModel:
    """A diffusion model that is loaded at its first use; copies of a synthesizer share it."""

    def __init__(self, source: DiffusionModel | ModelSpec, compile: bool | Mapping[str, Any]):
        self.source, self.compile = source, compile
        self.is_named = isinstance(source, ModelSpec) and source.is_named
        self._loaded: DiffusionModel | None = None
        # the prompts that are left once text encoders were dropped
        self._embedded: set[str | None] | None = None

    def get(self, prompts: Sequence[str | None] | None) -> DiffusionModel:
        """The model, loaded if necessary; ``prompts`` are all that can occur, or None to keep text
        encoders."""
        with _loading:
            # a copy with other class names needs encoders that this one has dropped
            if self._loaded is None or self.is_named and self._embedded is not None and (
                    prompts is None or not self._embedded.issuperset(prompts)):
                model = self.source.load() if isinstance(self.source, ModelSpec) else self.source
                if not self.is_named:
                    self.source = model  # pickles keep what was handed over, embeddings included
                options = self.compile if isinstance(self.compile, Mapping) else {}
                self._loaded = model.compiled(**options) if self.compile else model
                self._embedded = None
            model = self._loaded
            if prompts is not None and self._embedded is None:
                model.embed_only(prompts)
                if model.condition_kind == "text" and len(set(prompts)) <= MAX_PROMPTS:
                    self._embedded = set(prompts)
            return model

    def refuse_cuda_in_fork(self) -> None:
        """Raise in a forked worker where the model is or would be on CUDA."""
        if get_worker_info() is None or torch.multiprocessing.get_start_method() != "fork":
            return
        source, device = self.source, self.source.device
        if isinstance(source, ModelSpec) and not source.is_named:
            device = getattr(source.source, "device", None)  # a pipeline object stays where it is
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if torch.device(device).type == "cuda":
            raise GenerationError(
                "CUDA cannot be used in a forked DataLoader worker. Pass "
                "multiprocessing_context='spawn' (and persistent_workers=True) to the DataLoader, "
                "or num_workers=0.")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loaded": None, "_embedded": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "_SharedModel":
        return self


def _model_source(model: Any, loading: Mapping[str, Any]) -> DiffusionModel | ModelSpec:
    if not isinstance(model, ModelSpec | DiffusionModel):
        return ModelSpec(model, **loading)
    given = [f"{name}={value}" for name, value in loading.items()
             if value is not None and value is not False]
    if given:
        raise ValueError(
            f"{', '.join(sorted(_LOADING))} belong to loading, and this model is loaded or "
            f"specified already, got {', '.join(given)}; give them to ModelSpec or load_model.")
    return model


@runtime_checkable
class HasSynthesizer(Protocol):
    """Something that was built around a synthesizer, such as `DreamDAugment`."""

    synthesizer: Synthesizer


def as_synthesizer(value: Synthesizer | HasSynthesizer) -> Synthesizer:
    """The synthesizer itself, or that of a transform; TypeError if it is neither."""
    if isinstance(value, Synthesizer | HasSynthesizer):
        return value if isinstance(value, Synthesizer) else value.synthesizer
    raise TypeError(f"a Synthesizer or a DreamDAugment was expected, got {type(value).__name__}.")
