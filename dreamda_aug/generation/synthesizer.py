"""`Synthesizer`: from images of any kind, with their labels, to synthetic images of that kind."""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from dreamda_aug.arguments import checked, whole
from dreamda_aug.errors import GenerationError
from dreamda_aug.generation.cache import LatentCache, open_cache
from dreamda_aug.generation.familiarity import FirstImages
from dreamda_aug.generation.tensors import Request, TensorSynthesizer
from dreamda_aug.inputs.captions import Captions
from dreamda_aug.inputs.pixels import Pixels, fit_back, fit_to, read_pixels
from dreamda_aug.inputs.prompts import DEFAULT_PROMPT, Conditioner
from dreamda_aug.method.inversion import Trajectory
from dreamda_aug.method.settings import Settings, resolve_settings
from dreamda_aug.models import BUNDLED, DiffusionModel, ModelSpec, is_model


class Synthesizer:
    """Turns images into synthetic images with one diffusion model.

    It reads an image of any kind, conditions the model on its label or caption, inverts it (once:
    the inversion is cached), samples a freshly perturbed variant, guards against broken ones and
    puts the result into the image's own type, mode, size and range. `DreamDAugment`,
    `AugmentedDataset` and `expand` all take one.

    The model is loaded with the first image, not before, and stays out of pickles: each worker
    process loads its own. Threads must not share a synthesizer, nor a loaded model.

    Args:
        model: a name, a folder, a file or a pipeline object, as `ModelSpec` takes it as its
            source; a `ModelSpec`; or a loaded model.
        preset: ``"recommended"``, ``"fast"``, ``"samples"``, ``"paper"``, ``"official"`` or
            `Settings`.
        class_names: the name of each class in label order, for text-to-image models and those
            that know their classes by name. `AugmentedDataset`, `expand` and `evaluate` take the
            dataset's own names where None is given.
        prompt: template with ``{class_name}`` and ``{article}``, or a function from a label to a
            prompt. The default is the authors' template.
        captions: a prompt of its own for each image, instead of ``prompt``: what `Captions` takes,
            such as a ``.jsonl`` or ``.csv`` file with ``file_name`` and ``text``.
        cache: `LatentCache` or a folder; ``"default"``: ``$DREAMDA_CACHE`` or
            ``~/.cache/dreamda_aug``, at most 20 GB; None: no cache.
        rng_seed: another one gives other images throughout.
        batch_size: images per U-Net call.
        compile: run the U-Net through ``torch.compile``, with these options if it is a dict;
            batches are then padded to ``batch_size``.
        keep_text_encoder: False: once all prompts are embedded that can occur, text encoders are
            dropped from memory. None: the same for a model that is loaded here; the encoders of
            one that was handed over as an object stay. Prompts are known ahead with class_names
            and a template, or captions that are no function; with more than 1,024 of them the
            encoders stay, since the embeddings would weigh more.
        device: as in `ModelSpec`, for a source.
        dtype: as in `ModelSpec`, for a source.
        low_memory: as in `ModelSpec`, for a source; use ``batch_size=1`` with it.
        lora: as in `ModelSpec`, for a source: a folder that `dreamda_aug.adapt` wrote, or LoRA
            weights as diffusers knows them.
        block_index: as in `ModelSpec`, for a source: behind which block of a transformer noise
            enters.
        embedded_guidance: as in `ModelSpec`, for a source: the guidance scale of a
            guidance-distilled transformer.
        overrides: single settings that differ from the preset, such as ``noise_scale=2.0``.

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
        compile: bool | dict[str, Any] = False,
        keep_text_encoder: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        low_memory: bool = False,
        lora: str | Path | None = None,
        block_index: int | None = None,
        embedded_guidance: float | None = None,
        **overrides: Any,
    ):
        self._source: DiffusionModel | ModelSpec
        loading: dict[str, Any] = {
            "device": device, "dtype": dtype, "low_memory": low_memory, "lora": lora,
            "block_index": block_index, "embedded_guidance": embedded_guidance}
        if isinstance(model, ModelSpec) or is_model(model):
            given = [f"{name}={value}" for name, value in loading.items()
                     if value is not None and value is not False]
            if given:
                raise ValueError(
                    f"{', '.join(loading)} belong to loading, and this model is loaded or "
                    f"specified already, got {', '.join(given)}; give them to ModelSpec or "
                    "load_model."
                )
            self._source = model
        else:
            self._source = ModelSpec(model, **loading)
        self.requested_settings = resolve_settings(preset, **overrides)
        if not isinstance(captions, Captions | None):
            captions = Captions(captions)
        self.conditioner = Conditioner(class_names, prompt, captions)
        self.cache = open_cache(cache)
        self.rng_seed = whole("rng_seed", rng_seed, -(2**63), 2**63 - 1)
        self.batch_size, self.compile = whole("batch_size", batch_size, 1), compile
        self.keep_text_encoder = keep_text_encoder
        self._core: TensorSynthesizer | None = None
        self.first_images = FirstImages()  # copies share it: what was said is not said again

    @property
    def core(self) -> TensorSynthesizer:
        """The part that works on tensors; the first use loads the model."""
        if self._core is None:
            self._refuse_cuda_in_fork()
            source, named = self._source, False
            if isinstance(source, ModelSpec):
                named = source.is_named
                source = source.load()
            self._core = TensorSynthesizer(
                source, self.requested_settings, cache=self.cache, batch_size=self.batch_size,
                rng_seed=self.rng_seed, compile=self.compile,
            )
            if self.requested_settings.forgets_seed and source.condition_kind == "none":
                warnings.warn(
                    f"{source.name} knows no classes, and strength 1 with replay 0 leaves "
                    "nothing of the seed image: samples will be of any class, whatever their "
                    "label. Take a lower strength, or a model that knows your classes.",
                    stacklevel=2)
            if not named:
                # copies share what was handed over, and with it the prompts that are embedded
                self._source = source
            drop = named if self.keep_text_encoder is None else not self.keep_text_encoder
            prompts = self.conditioner.known_prompts()
            if drop and prompts is not None:
                source.embed_only([None, self.requested_settings.source_prompt, *prompts])
        elif self._core.model.device.type == "cuda":
            self._refuse_cuda_in_fork()
        return self._core

    @property
    def model(self) -> DiffusionModel:
        """The diffusion model; the first use loads it."""
        return self.core.model

    @property
    def settings(self) -> Settings:
        """The settings with numbers for what was calibrated; the first use loads the model."""
        return self.core.settings

    def with_settings(self, settings: Settings) -> "Synthesizer":
        """Another one with other settings, on the same model and cache."""
        other = copy.copy(self)
        other.requested_settings = settings
        if self._core is not None:
            other._core = self._core.with_settings(settings)
        return other

    def with_class_names(self, class_names: Sequence[str] | None) -> "Synthesizer":
        """Another one that knows these names of classes; this one where it knows names already.

        Args:
            class_names: one per class, in label order; None: this one.
        """
        known = self.conditioner
        if class_names is None or known.class_names is not None:
            return self
        other = copy.copy(self)
        other.conditioner = Conditioner(class_names, known.prompt, known.captions)
        return other

    def synthesize(
        self,
        images: Sequence[Any],
        labels: Sequence[Any] | None = None,
        replicas: Sequence[int] | None = None,
        epoch: int = 0,
        names: Sequence[str | int] | None = None,
    ) -> list[Any]:
        """Synthetic versions of single images, made in batches; the same for the same arguments.

        Args:
            images: PIL images or tensors (C, H, W), one for each synthetic image.
            labels: their labels; None where the model needs none.
            replicas: which replica of each, >= 0; None: replica 0.
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
        self,
        images: Sequence[Any],
        labels: Sequence[Any] | None = None,
        replicas: Sequence[int] | None = None,
        epoch: int = 0,
        names: Sequence[str | int] | None = None,
    ) -> list[tuple[Pixels, Tensor]]:
        """As `synthesize`, before the images are put into their own types.

        Args:
            images: as in `synthesize`, and so are the others.

        Returns:
            For each synthetic image its seed image, whose ``restore`` gives the type back, and its
            pixels, (1, C, H, W) float32 in [0, 1].
        """
        # a list, which keeps what it holds: ids of images that are gone are given to others
        images = list(images)
        if not images:
            return []
        count = len(images)
        # the same image may be asked for several times: read it once
        single = {id(image): image for image in images}
        row_of = {key: row for row, key in enumerate(single)}
        pixels = _read_single(single.values())
        requests = [
            Request(row_of[id(image)], self.conditioner.condition(label, self.model, name),
                    int(replica), epoch)
            for image, label, replica, name in zip(
                images, [None] * count if labels is None else labels,
                [0] * count if replicas is None else replicas,
                [None] * count if names is None else names, strict=True)
        ]
        made = self.synthesize_rows(pixels, requests)
        return [(pixels[r.image], new) for r, new in zip(requests, made, strict=True)]

    def synthesize_rows(
        self, pixels: Sequence[Pixels], requests: Sequence[Request]
    ) -> list[Tensor]:
        """The requested variants of images that were read, which may be batches.

        Args:
            pixels: what `read_pixels` returns; rows of batches are numbered through.
            requests: what to make of which row.

        Returns:
            Pixels (1, C, H, W) for each request, in the size and channels of its seed image.
        """
        values = torch.cat([fit_to(p.values, self.model) for p in pixels])
        digests = [digest for p in pixels for digest in p.digests]
        self.first_images.look(self.model, values, digests)
        like = [p.values for p in pixels for _ in p.digests]
        made = self.core.synthesize(values, requests, digests).images
        return [fit_back(new[None], like[r.image]) for r, new in zip(requests, made, strict=True)]

    def invert(
        self, images: Sequence[Any], labels: Sequence[Any] | None = None
    ) -> list[Trajectory]:
        """Invert single images, or read their inversions from the cache.

        Args:
            images: PIL images or tensors (C, H, W).
            labels: needed only for class-conditional models without a null class.

        Returns:
            One trajectory per image, on the CPU.
        """
        pixels = _read_single(images)
        if not pixels:
            return []
        values = torch.cat([fit_to(p.values, self.model) for p in pixels])
        conditions = None if labels is None else self._conditions(labels)
        return self.core.invert(values, [p.digests[0] for p in pixels], conditions=conditions)

    def generate(
        self,
        trajectories: Sequence[Trajectory],
        labels: Sequence[Any] | None = None,
        sample_seeds: Sequence[int] | None = None,
    ) -> Tensor:
        """One image for each trajectory; repeat a trajectory for several replicas of it.

        Args:
            trajectories: what `invert` returned.
            labels: what generation is conditioned on; None: unconditional.
            sample_seeds: one per sample, >= 0; None: 0, 1, 2, ...

        Returns:
            Images (B, C, H, W) of the model's size, float32 in [0, 1].
        """
        conditions = None if labels is None else self._conditions(labels)
        return self.core.generate(trajectories, conditions, sample_seeds)

    def __repr__(self) -> str:
        return (f"Synthesizer({self._source.name!r}, {self.requested_settings.summary()}, "
                f"rng_seed={self.rng_seed})")

    def __getstate__(self) -> dict[str, Any]:
        # the loaded model stays behind; the copy loads its own when it needs it
        return {**self.__dict__, "_core": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Synthesizer":
        clone = copy.copy(self)
        # a model that was handed over as an object is shared, not copied
        clone.__dict__ = {
            name: value if name == "_source" else copy.deepcopy(value, memo)
            for name, value in self.__getstate__().items()
        }
        return clone

    def _conditions(self, labels: Sequence[Any]) -> list[Any]:
        return [self.conditioner.condition(label, self.model) for label in labels]

    def _refuse_cuda_in_fork(self) -> None:
        if get_worker_info() is None or torch.multiprocessing.get_start_method() != "fork":
            return
        source, device = self._source, self._source.device
        if isinstance(source, ModelSpec) and not source.is_named:
            device = getattr(source.source, "device", None)  # a pipeline object stays where it is
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        if torch.device(device).type == "cuda":
            raise GenerationError(
                "CUDA cannot be used in a forked DataLoader worker. Pass "
                "multiprocessing_context='spawn' (and persistent_workers=True) to the DataLoader, "
                "or num_workers=0."
            )


def _read_single(images: Iterable[Any]) -> list[Pixels]:
    pixels = [read_pixels(image) for image in images]
    for each in pixels:
        if len(each.values) != 1:
            raise ValueError(
                f"images must be single ones, (C, H, W), got a batch of {len(each.values)} among "
                "them; list(batch) is a list of single images."
            )
    return pixels


@runtime_checkable
class HasSynthesizer(Protocol):
    """Something that was built around a synthesizer, such as `DreamDAugment`."""

    synthesizer: Synthesizer


def as_synthesizer(value: Synthesizer | HasSynthesizer) -> Synthesizer:
    """The synthesizer itself, or that of a transform.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(value, Synthesizer):
        return value
    if isinstance(value, HasSynthesizer):
        return value.synthesizer
    raise TypeError(
        f"a Synthesizer or a DreamDAugment was expected, got {type(value).__name__}."
    )
