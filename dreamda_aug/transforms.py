"""`DreamDAugment`, a torchvision v2 transform."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchvision.transforms import v2

from dreamda_aug.arguments import checked, real
from dreamda_aug.generation.sampler import Request
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.labels import find_file_names, find_labels, label_of
from dreamda_aug.inputs.pixels import read_pixels
from dreamda_aug.inputs.rows import is_image, is_single, refuse_annotations
from dreamda_aug.method.settings import Settings
from dreamda_aug.models import BUNDLED

# Replica numbers of the transform are drawn; these are what torch.randint can draw.
_MAX_REPLICA = 2**62


class DreamDAugment(v2.Transform):
    """Replace an image by a freshly perturbed synthetic one, with probability ``p``.

    Put it first in ``v2.Compose``, on images as they come from the dataset: it needs pixels in
    [0, 255] or [0, 1], not normalised ones. The image is inverted once; the inversion is cached.
    The model is loaded with the first image, not before, and stays out of ``state_dict``. Worker
    processes each load their own; threads must not share one, nor a loaded model.

    It takes what torchvision's own transforms take: a PIL image of any mode, an image tensor
    (uint8, another integer type, or float in [0, 1]; on any device), a ``tv_tensors.Image``, a
    batch (B, C, H, W) of either, or any nesting of them with labels. What comes back has the same
    type, mode, dtype, size and device; images are resized to the model's size and back.

    Where a sample holds none of these, its one numpy array of two or more dimensions is taken:
    (H, W) or (H, W, C) of integers or floats in [0, 1], with C = 1 or 3, for uint8 also 4. Of
    several, the one that can only be an image is: (H, W) of integers of 8 or 16 bits, or (H, W, C).

    A transform sees one image at a time, so it measures nothing itself: dials that are None are
    what `calibrate`, or ``dreamda calibrate FOLDER``, found; before that, mild defaults, with a
    warning.
    `AugmentedDataset` and `expand` see the whole dataset, and measure where nothing was found.

    Which replica is made is drawn from torch's global generator, as torchvision does: so
    ``torch.manual_seed`` and the worker seeds of a ``DataLoader`` decide it.

    Args:
        model: what `Synthesizer` takes as its model; or a `Synthesizer`, and then only
            ``p`` and ``labels_getter`` can be given beside it.
        preset: ``"recommended"``, ``"fast"``, ``"samples"``, ``"paper"``, ``"official"`` or
            `Settings`.
        p: probability that an image is replaced, in [0, 1]; drawn for each image of a batch.
        labels_getter: finds the label(s) in the sample, as in torchvision's ``MixUp``: a function;
            ``"default"``: the second item of a tuple, or the key with "label" in it of a dict;
            None: there is none, and class-conditional models take their null class. Not called
            for models that need no label. With captions, a
            function finds the image's file name instead; without one it must stand under the key
            ``file_name`` of a dict, or in the image if PIL opened it itself.
        options: all other arguments of `Synthesizer`, such as ``class_names``, ``cache`` and
            ``batch_size`` (with ``compile``, which fills batches up, 1 if it is not given), and
            single settings that differ from the preset.

    Attributes:
        synthesizer: makes the synthetic images.

    Raises:
        ValueError: an argument, an image or a label breaks its rule.
        TypeError: the sample holds no image, or arrays of which any could be it; or boxes, masks,
            key points or videos, see `refuse_annotations`.
        GenerationError: CUDA in a forked worker.

    Source: Fu et al. 2024, arXiv:2403.12803; as a transform: ours.
    """

    @checked
    def __init__(
        self,
        model: Any = BUNDLED,
        preset: Settings | str = "recommended",
        *,
        p: float = 0.5,
        labels_getter: Callable[[Any], Any] | Literal["default"] | None = "default",
        **options: Any,
    ):
        super().__init__()
        p = real("p", p, "lie in [0, 1]", 0, 1)
        if isinstance(model, Synthesizer):
            if options or preset != "recommended":
                raise TypeError(
                    "a Synthesizer brings its own settings; give preset and "
                    f"{', '.join(options) or 'settings'} to it."
                )
            self.synthesizer = model
        else:
            if options.get("compile"):
                options = {"batch_size": 1, **options}
            self.synthesizer = Synthesizer(model, preset, **options)
        self.p = p
        self.labels_getter = labels_getter

    def forward(self, *inputs: Any) -> Any:
        """Replace the images of a sample or batch; everything else passes through."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        refuse_annotations(sample)
        flat, spec = tree_flatten(sample)
        places = self._places_of_images(flat)
        params = self.make_params([flat[i] for i in places])
        if any(chosen.any() for chosen in params["chosen"]):
            labels = None
            conditioner = self.synthesizer.conditioner
            if conditioner.captions is not None:
                labels = find_file_names(sample, self.labels_getter)
            elif conditioner.needs_label(self.synthesizer.model) and not self._null_class():
                labels = find_labels(sample, self.labels_getter)
            images = self._replace([flat[i] for i in places], labels, params)
            for place, image in zip(places, images, strict=True):
                flat[place] = image
        return tree_unflatten(flat, spec)

    def _null_class(self) -> bool:
        """Whether the user asked for images of no class, from a model of classes that can."""
        model = self.synthesizer.model
        return (self.labels_getter is None and model.condition_kind == "class"
                and model.guidable)

    def _places_of_images(self, flat: list[Any]) -> list[int]:
        """Which of a sample's values are images: by torchvision's rule, then by that for arrays."""
        found = [i for i, needed in enumerate(self._needs_transform_list(flat)) if needed]
        # torchvision takes the first tensor for the image, whatever its shape: it may be a label
        if any(not isinstance(flat[i], torch.Tensor) or flat[i].ndim > 2 for i in found):
            return found
        arrays = [i for i, value in enumerate(flat) if isinstance(value, np.ndarray)
                  and value.ndim > 1 and not is_single(value)]
        surely = [i for i in arrays if is_image(flat[i], surely=True)]
        if len(surely or arrays) == 1:
            return surely or arrays
        if arrays:
            shapes = ", ".join(f"{flat[i].shape} of {flat[i].dtype}" for i in arrays)
            raise TypeError(
                f"{type(self).__name__} cannot tell which array of the sample is its image, among "
                f"{shapes}; give the image as a PIL image or a tensor (C, H, W)."
            )
        if not found:
            raise TypeError(
                f"{type(self).__name__} found no image in the sample; it needs a PIL image, an "
                "image tensor, a tv_tensors.Image or a numpy array (H, W) or (H, W, C)."
            )
        return found

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw which images are replaced, and by which replica."""
        counts = [_batch_length(image) for image in flat_inputs]
        return {
            "chosen": [torch.rand(count) < self.p for count in counts],
            "replicas": [torch.randint(_MAX_REPLICA, (count,)) for count in counts],
        }

    def extra_repr(self) -> str:
        return f"p={self.p}, {self.synthesizer!r}"

    def _replace(self, images: list[Any], labels: Any, params: dict[str, Any]) -> list[Any]:
        """Replace the chosen images; each element may be a batch."""
        synthesizer = self.synthesizer
        pixels = [read_pixels(image) for image in images]
        requests, slots, row = [], [], 0
        for number, p in enumerate(pixels):
            for i in range(len(p.values)):
                if params["chosen"][number][i]:
                    label = label_of(labels, i, images[number])
                    # with captions, labels are file names; PIL keeps that of a file it opened
                    name = label
                    if name is None:
                        name = getattr(images[number], "filename", None) or None
                    condition = synthesizer.conditioner.condition(
                        label, synthesizer.model, name)
                    replica = int(params["replicas"][number][i])
                    requests.append(Request(row, condition, replica))
                    slots.append((number, i))
                row += 1
        made = synthesizer.synthesize_rows(pixels, requests)
        results = [p.values.clone() for p in pixels]
        for (number, i), new in zip(slots, made, strict=True):
            results[number][i] = new[0]
        return [
            p.restore(new) if params["chosen"][number].any() else images[number]
            for number, (p, new) in enumerate(zip(pixels, results, strict=True))
        ]


def _batch_length(image: Any) -> int:
    return len(image) if isinstance(image, torch.Tensor) and image.ndim == 4 else 1
