"""`DreamDAugment`, a torchvision v2 transform."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import get_worker_info
from torchvision import tv_tensors
from torchvision.transforms import v2

from dreamda_aug.backbones import BUNDLED, load_backbone
from dreamda_aug.cache import LatentCache, default_cache_root
from dreamda_aug.captions import Captions
from dreamda_aug.errors import GenerationError
from dreamda_aug.generator import Generator, Request
from dreamda_aug.images import fit_back, fit_to, read_pixels
from dreamda_aug.labels import find_file_names, find_labels, label_of
from dreamda_aug.prompts import DEFAULT_PROMPT, Conditioner
from dreamda_aug.settings import Settings, resolve_settings

_UNSUPPORTED = {
    tv_tensors.BoundingBoxes: "bounding boxes",
    tv_tensors.Mask: "masks",
    tv_tensors.KeyPoints: "key points",
    tv_tensors.Video: "videos",
}
# Replica numbers of the transform are drawn; these are what torch.randint can draw.
_MAX_REPLICA = 2**62


class DreamDAugment(v2.Transform):
    """Replace an image by a freshly perturbed synthetic one, with probability ``p``.

    Put it first in ``v2.Compose``, on images as they come from the dataset: it needs pixels in
    [0, 255] or [0, 1], not normalised ones. The image is inverted once; the inversion is cached.
    The model is loaded with the first image, not before, and stays out of ``state_dict``. Worker
    processes each load their own; threads must not share one, nor a loaded backbone.

    It takes what torchvision's own transforms take: a PIL image of any mode, an image tensor
    (uint8, another integer type, or float in [0, 1]; on any device), a ``tv_tensors.Image``, a
    batch (B, C, H, W) of either, or any nesting of them with labels. What comes back has the same
    type, mode, dtype, size and device; images are resized to the backbone's size and back.

    Which replica is made is drawn from torch's global generator, as torchvision does: so
    ``torch.manual_seed`` and the worker seeds of a ``DataLoader`` decide it.

    Args:
        backbone: what `load_backbone` takes, or what it returns.
        preset: ``"recommended"``, ``"paper"``, ``"official"``, ``"fast"`` or `Settings`.
        p: probability that an image is replaced, in [0, 1]; each image of a batch by itself.
        class_names: the name of each class in label order, for text-to-image backbones.
        prompt: template with ``{class_name}`` and ``{article}``, or a function from a label to a
            prompt. The default is the authors' template.
        captions: a prompt of its own for each image, instead of ``prompt``: what `Captions` takes,
            such as a ``.jsonl`` or ``.csv`` file with ``file_name`` and ``text``. Used as a
            transform, it must find the file name in the sample: under the key ``file_name`` of a
            dict, in the image if PIL opened it itself, or through ``labels_getter``.
        labels_getter: finds the label(s) in the sample, as in torchvision's ``MixUp``: a function;
            ``"default"``: the second item of a tuple, or the key with "label" in it of a dict;
            None: there is none. Not called for backbones that need no label. With captions, a
            function finds the image's file name instead.
        cache: `LatentCache` or a folder; ``"default"``: ``$DREAMDA_CACHE`` or
            ``~/.cache/dreamda_aug``, at most 20 GB; None: no cache.
        rng_seed: another one gives other images throughout.
        batch_size: images per U-Net call.
        keep_text_encoder: False: once all prompts are embedded that can occur, text encoders are
            dropped from memory. None: the same for a backbone that is loaded here; the encoders of
            one that was handed over as an object stay. Prompts are known ahead with class_names
            and a template, or captions that are no function; with more than 1,024 of them the
            encoders stay, since the embeddings would weigh more.
        device: as in `load_backbone`.
        dtype: as in `load_backbone`.
        low_memory: as in `load_backbone`; use ``batch_size=1`` with it.
        overrides: single settings that differ from the preset, such as ``noise_scale=2.0``.

    Raises:
        ValueError: an argument, an image or a label breaks its rule.
        TypeError: the sample holds boxes, masks, key points or videos: a synthetic image keeps
            its class, not the place of things.
        GenerationError: CUDA in a forked worker.

    Source: Fu et al. 2024, arXiv:2403.12803; as a transform: ours.
    """

    def __init__(
        self,
        backbone=BUNDLED,
        preset: Settings | str = "recommended",
        *,
        p: float = 0.5,
        class_names: Sequence[str] | None = None,
        prompt: str | Callable[[Any], str] = DEFAULT_PROMPT,
        captions: Captions | str | Path | Mapping | Sequence[str] | Callable | None = None,
        labels_getter: Callable[[Any], Any] | str | None = "default",
        cache: LatentCache | str | Path | None = "default",
        rng_seed: int = 0,
        batch_size: int = 32,
        keep_text_encoder: bool | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        low_memory: bool = False,
        **overrides,
    ):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie in [0, 1], got {p}.")
        if not (labels_getter is None or labels_getter == "default" or callable(labels_getter)):
            raise ValueError(
                f"labels_getter must be 'default', a function or None, got {labels_getter!r}."
            )
        if hasattr(backbone, "tap") and (low_memory or (device, dtype) != (None, None)):
            raise ValueError(
                "device, dtype and low_memory belong to loading, and this backbone is loaded "
                f"already, got device={device}, dtype={dtype}, low_memory={low_memory}; give them "
                "to load_backbone."
            )
        self.backbone = backbone
        self.settings = resolve_settings(preset, **overrides)
        self.p = p
        if not isinstance(captions, Captions | None):
            captions = Captions(captions)
        self.conditioner = Conditioner(class_names, prompt, captions)
        self.labels_getter = labels_getter
        self.cache = _open_cache(cache)
        self.rng_seed = rng_seed
        self.batch_size = batch_size
        self.keep_text_encoder = keep_text_encoder
        self.device, self.dtype, self.low_memory = device, dtype, low_memory
        self._generator: Generator | None = None

    @property
    def generator(self) -> Generator:
        """The generator; the first use loads the model."""
        if self._generator is None:
            self._refuse_cuda_in_fork()
            backbone = self.backbone
            if not hasattr(backbone, "tap"):
                backbone = load_backbone(backbone, device=self.device, dtype=self.dtype,
                                         low_memory=self.low_memory)
            self._generator = Generator(
                backbone, self.settings, cache=self.cache, batch_size=self.batch_size,
                rng_seed=self.rng_seed,
            )
            ours = isinstance(self.backbone, str | Path)
            if not ours:
                # copies share what was handed over, and with it the prompts that are embedded
                self.backbone = backbone
            drop = ours if self.keep_text_encoder is None else not self.keep_text_encoder
            prompts = self.conditioner.known_prompts()
            if drop and prompts is not None:
                backbone.embed_only([None, self.settings.source_prompt, *prompts])
        elif self._generator.backbone.device.type == "cuda":
            self._refuse_cuda_in_fork()
        return self._generator

    def forward(self, *inputs: Any) -> Any:
        """Replace the images of a sample or batch; everything else passes through."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        flat, spec = tree_flatten(sample)
        self.check_inputs(flat)
        places = [i for i, needed in enumerate(self._needs_transform_list(flat)) if needed]
        if not places:
            raise TypeError(
                f"{type(self).__name__} found no image in the sample; it needs a PIL image, an "
                "image tensor or a tv_tensors.Image."
            )
        params = self.make_params([flat[i] for i in places])
        if any(chosen.any() for chosen in params["chosen"]):
            labels = None
            if self.conditioner.captions is not None:
                labels = find_file_names(sample, self.labels_getter)
            elif self.conditioner.needs_label(self.generator.backbone):
                labels = find_labels(sample, self.labels_getter)
            images = self._replace([flat[i] for i in places], labels, params)
            for place, image in zip(places, images, strict=True):
                flat[place] = image
        return tree_unflatten(flat, spec)

    def check_inputs(self, flat_inputs: list[Any]) -> None:
        """Refuse samples with annotations that a synthetic image would make wrong."""
        for value in flat_inputs:
            for kind, name in _UNSUPPORTED.items():
                if isinstance(value, kind):
                    raise TypeError(
                        f"{type(self).__name__} cannot keep {name}: a synthetic image keeps its "
                        "class, not the place of things. Use it on classification samples only."
                    )

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw which images are replaced, and by which replica."""
        counts = [_batch_length(image) for image in flat_inputs]
        return {
            "chosen": [torch.rand(count) < self.p for count in counts],
            "replicas": [torch.randint(_MAX_REPLICA, (count,)) for count in counts],
        }

    def synthesize(
        self,
        images: Sequence[Any],
        labels: Sequence[Any],
        replicas: Sequence[int],
        epoch: int = 0,
        names: Sequence[str | int] | None = None,
    ) -> list[Any]:
        """Synthetic versions of single images, made in batches; the same for the same arguments.

        Args:
            images: PIL images or tensors (C, H, W), one for each synthetic image.
            labels: their labels, or None where the backbone needs none.
            replicas: which replica of each, >= 0.
            epoch: another epoch is another perturbation, >= 0.
            names: what captions call each image, see `Captions.images`; needed with captions only.

        Returns:
            Images of the same types, in order.
        """
        generator = self.generator
        backbone = generator.backbone
        # the same image may be asked for several times: read it once
        pixels, row_of = [], {}
        for image in images:
            if id(image) not in row_of:
                row_of[id(image)] = len(pixels)
                pixels.append(read_pixels(image))
        names = names or [None] * len(images)
        requests = [
            Request(row_of[id(image)], self.conditioner.condition(label, backbone, name),
                    int(replica), epoch)
            for image, label, replica, name in zip(images, labels, replicas, names, strict=True)
        ]
        values = torch.cat([fit_to(p.values, backbone) for p in pixels])
        made = generator.augment(values, requests, [d for p in pixels for d in p.digests])
        return [
            pixels[r.image].restore(fit_back(new[None], pixels[r.image].values))
            for r, new in zip(requests, made, strict=True)
        ]

    def extra_repr(self) -> str:
        backbone = self.backbone if isinstance(self.backbone, str | Path) else (
            getattr(self.backbone, "name", type(self.backbone).__name__))
        return f"backbone={str(backbone)!r}, p={self.p}, {self.settings.summary()}"

    def __getstate__(self) -> dict[str, Any]:
        # the loaded model stays behind; the copy loads its own when it needs it
        return {**self.__dict__, "_generator": None}

    def __deepcopy__(self, memo: dict) -> "DreamDAugment":
        clone = copy.copy(self)
        # a backbone that was handed over as an object is shared, not copied
        clone.__dict__ = {
            name: value if name == "backbone" else copy.deepcopy(value, memo)
            for name, value in self.__getstate__().items()
        }
        return clone

    def _replace(self, images: list[Any], labels: Any, params: dict[str, Any]) -> list[Any]:
        """Replace the chosen images; each element may be a batch."""
        backbone = self.generator.backbone
        pixels = [read_pixels(image) for image in images]
        values = [fit_to(p.values, backbone) for p in pixels]
        requests, slots, row = [], [], 0
        for number, p in enumerate(pixels):
            for i in range(len(p.values)):
                if params["chosen"][number][i]:
                    label = label_of(labels, i, images[number])
                    # with captions, labels are file names; an image that PIL opened knows its own
                    name = label
                    if name is None:
                        name = getattr(images[number], "filename", None) or None
                    condition = self.conditioner.condition(label, backbone, name)
                    replica = int(params["replicas"][number][i])
                    requests.append(Request(row, condition, replica))
                    slots.append((number, i))
                row += 1
        digests = [digest for p in pixels for digest in p.digests]
        made = self.generator.augment(torch.cat(values), requests, digests)
        results = [p.values.clone() for p in pixels]
        for (number, i), new in zip(slots, made, strict=True):
            results[number][i] = fit_back(new[None], results[number])[0]
        return [
            p.restore(new) if params["chosen"][number].any() else images[number]
            for number, (p, new) in enumerate(zip(pixels, results, strict=True))
        ]

    def _refuse_cuda_in_fork(self) -> None:
        worker = get_worker_info()
        if worker is None or torch.multiprocessing.get_start_method() != "fork":
            return
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if hasattr(self.backbone, "device") and self.device is None:
            device = self.backbone.device
        if torch.device(device).type == "cuda":
            raise GenerationError(
                "CUDA cannot be used in a forked DataLoader worker. Pass "
                "multiprocessing_context='spawn' (and persistent_workers=True) to the DataLoader, "
                "or num_workers=0."
            )


def _open_cache(cache: LatentCache | str | Path | None) -> LatentCache | None:
    if cache == "default":
        return LatentCache(default_cache_root(), max_bytes=20 * 10**9)
    return LatentCache(cache) if isinstance(cache, str | Path) else cache


def _batch_length(image: Any) -> int:
    return len(image) if isinstance(image, torch.Tensor) and image.ndim == 4 else 1
