"""`DreamDAugment`, a torchvision v2 transform."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import get_worker_info
from torchvision.transforms import v2

from dreamda_aug.arguments import checked, real
from dreamda_aug.generation.sampler import Request
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.pixels import read_pixels
from dreamda_aug.inputs.samples import (
    NO_LABEL,
    class_number,
    find_labels,
    is_image,
    is_single,
    label_of,
    refuse_annotations,
)
from dreamda_aug.method.settings import Settings
from dreamda_aug.models.load import BUNDLED

# Replica numbers of the transform are drawn; these are what torch.randint can draw.
_MAX_REPLICA = 2**62
_WAYS = (
    "The transform= of a dataset sees the image alone. To hand over labels, wrap the dataset in "
    "AugmentedDataset; or let torchvision call the transform with image and label: dataset = "
    "torchvision.datasets.wrap_dataset_for_transforms_v2(dataset), dataset.transforms = transform; "
    "or give a labels_getter."
)


class DreamDAugment(v2.Transform):
    """Replace an image by a freshly perturbed synthetic one, with probability ``p``.

    Put it first in ``v2.Compose``, before normalisation: it needs pixels in [0, 255] or [0, 1].
    Each image is inverted once, and the inversion is cached. The model is loaded with the first
    image, and is not in ``state_dict``. Each worker process loads its own.

    It takes what torchvision's own transforms take: a PIL image of any mode, an image tensor
    (uint8, another integer type, or float in [0, 1]; on any device), a ``tv_tensors.Image``, a
    batch (B, C, H, W) of either, any nesting of them with labels, or Hugging Face's dict of lists.
    The result has the same type (subclasses too), mode, dtype, size and device; images are resized
    to the model's size and back.

    If a sample holds none of these, its one numpy array of two or more dimensions is the image:
    (H, W) or (H, W, C) of integers or floats in [0, 1], with C = 1 or 3, for uint8 also 4. Of
    several arrays, the image is the one that can be nothing else: (H, W) of integers of 8 or 16
    bits, or (H, W, C).

    **Labels.** A dataset's own ``transform=`` sees the image alone. The model is then conditioned
    on its null class or the empty prompt, with a warning, and images stay closer to their seed
    image, so that they keep their class: dials that are None take what `calibrate` found without
    ``conditions``, or else a low strength. To pass labels:

    - torchvision's ``ImageFolder``, ``CIFAR10``, ...: ``data = wrap_dataset_for_transforms_v2(
      ImageFolder(root))``, then ``data.transforms = v2.Compose([DreamDAugment(...), ...])``;
    - Hugging Face: ``dataset.with_transform(augment)``, ``set_transform`` or ``map(augment)``;
    - MONAI's and torchgeo's dicts have them; behind ``LoadImaged(..., reverse_indexing=False)``,
      which would else exchange height and width;
    - timm's ``create_loader``, Lightning's data modules and fastai: `AugmentedDataset`.

    A transform sees one image at a time, so it does not calibrate. Dials that are None take what
    `calibrate` or ``dreamda calibrate FOLDER`` found, else mild defaults with a warning.
    `AugmentedDataset` and `expand` see the whole dataset, and calibrate automatically.

    The replica is drawn from torch's global generator, as in torchvision, so ``torch.manual_seed``
    and the worker seeds of a ``DataLoader`` determine it.

    Args:
        model: as in `Synthesizer`; or a `Synthesizer`, together with ``p`` and ``labels_getter``
            only.
        preset: ``"recommended"``, ``"fast"``, ``"samples"``, ``"paper"``, ``"official"`` or
            `Settings`.
        p: probability that an image is replaced, in [0, 1]; drawn for each image of a batch.
        labels_getter: finds the label(s) in the sample, as in torchvision's ``MixUp``: a function;
            ``"default"`` for the second item of a tuple, or the key of a dict with "label" in it;
            or None for no label, without a warning. Not called for models that need no label. With
            captions, it finds the image's file name instead; by default under the key
            ``file_name`` of a dict, or in an image that PIL opened.
        options: all other arguments of `Synthesizer`, such as ``class_names``, ``cache`` and
            ``batch_size`` (with ``compile``, which fills batches up, 1 if it is not given), and
            single settings that differ from the preset.

    Attributes:
        synthesizer: makes the synthetic images.

    Raises:
        ValueError: an argument, an image or a label breaks its rule; or there is no label, and the
            model has no null class, or the settings keep nothing of the seed image but its class.
        TypeError: the sample holds no image, or several arrays that could be it; or boxes, masks,
            key points or videos, whose place would change.
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
        self._label_free: Synthesizer | None = None

    def forward(self, *inputs: Any) -> Any:
        """Replace the images of a sample or batch; everything else passes through."""
        sample = inputs if len(inputs) > 1 else inputs[0]
        if isinstance(sample, Mapping) and not isinstance(sample, dict):
            sample = dict(sample)  # a row or batch that Hugging Face's map decodes when it is read
        if not _is_table(sample):
            return self._augmented([sample])[0]
        made = self._augmented([dict(zip(sample, row)) for row in zip(*sample.values())])
        return {name: [row[name] for row in made] for name in sample}

    def _augmented(self, samples: Sequence[Any]) -> list[Any]:
        """The samples with some of their images replaced, which are made together."""
        opened, images, labels = [], [], []
        for sample in samples:
            refuse_annotations(sample)
            flat, spec = tree_flatten(sample)
            places = self._places_of_images(flat)
            opened.append((flat, spec, places))
            images += [flat[i] for i in places]
            labels += [self._label(sample)] * len(places)
        params = self.make_params(images)
        if any(chosen.any() for chosen in params["chosen"]):
            made = iter(self._replace(images, labels, params))
            for flat, _, places in opened:
                for place in places:
                    flat[place] = next(made)
        return [tree_unflatten(flat, spec) for flat, spec, _ in opened]

    def _label(self, sample: Any) -> Any:
        """The label or labels of a sample, or with captions its file name or names."""
        if self.synthesizer.conditioner.captions is not None:
            if callable(self.labels_getter):
                return self.labels_getter(sample)
            return sample.get("file_name") if isinstance(sample, Mapping) else None
        # found before chance chooses, or training would end somewhere in its first epoch
        if self.p == 0 or not self._needs_label():
            return NO_LABEL
        label = find_labels(sample, self.labels_getter)
        if label is NO_LABEL:
            self._without_labels()
        elif label is None:
            class_number(label)  # refuses it
        return label

    def _needs_label(self) -> bool:
        return self.synthesizer.conditioner.needs_label(self.synthesizer.model)

    def _without_labels(self) -> Synthesizer:
        """What makes images of samples without a label; its first use warns, or is refused."""
        if self._label_free is None:
            model, made = self.synthesizer.model, self.synthesizer.without_labels()
            if model.condition_kind == "class" and not model.guidable:
                raise ValueError(f"found no label in the sample, and {model.name} is conditioned "
                                 f"on a class: it has no null class to do without. {_WAYS}")
            dials = made.settings
            if dials.forgets_seed:
                raise ValueError(
                    "found no label in the sample, and strength 1 with replay 0 keeps nothing of "
                    "the seed image: images would be of any class. Take another preset, or a lower "
                    f"strength. {_WAYS}")
            worker = get_worker_info()
            if self.labels_getter is not None and (worker is None or worker.id == 0):
                warnings.warn(
                    f"found no label in the sample: {model.name} is conditioned on no class, and "
                    f"images stay close to their seed images to keep theirs (strength "
                    f"{dials.strength:g}, replay {dials.replay:g}, noise scale "
                    f"{dials.noise_scale:g}). {_WAYS}", stacklevel=2)
            self._label_free = made
        return self._label_free

    def _places_of_images(self, flat: list[Any]) -> list[int]:
        """Which of a sample's values are images: by torchvision's rule, then by that for arrays."""
        found = [i for i, needed in enumerate(self._needs_transform_list(flat)) if needed]
        # torchvision takes the first tensor for the image, whatever its shape: it may be a label
        if any(not isinstance(flat[i], Tensor) or flat[i].ndim > 2 for i in found):
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
                "image tensor, a tv_tensors.Image or a numpy array (H, W) or (H, W, C). Put it "
                "behind the transform that loads the file, such as MONAI's LoadImaged."
            )
        return found

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw which images are replaced, and by which replica."""
        counts = [len(image) if isinstance(image, Tensor) and image.ndim == 4 else 1
                  for image in flat_inputs]
        return {
            "chosen": [torch.rand(count) < self.p for count in counts],
            "replicas": [torch.randint(_MAX_REPLICA, (count,)) for count in counts],
        }

    def extra_repr(self) -> str:
        return f"p={self.p}, {self.synthesizer!r}"

    def __getstate__(self) -> dict[str, Any]:
        # what Hugging Face's map calls this transform by must not change with its first use
        return {**self.__dict__, "_label_free": None}

    def _replace(self, images: list[Any], labels: list[Any], params: dict[str, Any]) -> list[Any]:
        """Replace the chosen images; each element may be a batch."""
        synthesizer, conditioner = self.synthesizer, self.synthesizer.conditioner
        # samples of a batch are alike
        is_label_free = labels[0] is NO_LABEL and self._needs_label()
        if is_label_free:
            synthesizer = self._without_labels()
        pixels = [read_pixels(image) for image in images]
        results, requests, row = [p.values.clone() for p in pixels], [], 0
        chosen, slots = params["chosen"], []
        for number, image in enumerate(images):
            for i in chosen[number].nonzero()[:, 0].tolist():
                label = label_of(labels[number], i, image)
                # with captions, labels are file names; PIL keeps that of a file it opened
                name = getattr(image, "filename", None) or None if label is None else label
                condition = None if is_label_free else conditioner.condition(
                    None if label is NO_LABEL else label, synthesizer.model, name)
                requests.append(Request(row + i, condition, int(params["replicas"][number][i])))
                slots.append(results[number][i])
            row += len(chosen[number])
        for slot, new in zip(slots, synthesizer.synthesize_rows(pixels, requests), strict=True):
            slot.copy_(new[0])
        return [p.restore(new) if rows.any() else image
                for image, p, new, rows in zip(images, pixels, results, chosen, strict=True)]


def _is_table(sample: Any) -> TypeGuard[dict[Any, list[Any]]]:
    """Whether a sample is a batch as Hugging Face has it: lists of equal length, one of images."""
    if not isinstance(sample, dict) or not all(isinstance(v, list) for v in sample.values()):
        return False
    return len({len(values) for values in sample.values()}) == 1 and any(
        values and is_image(values[0]) for values in sample.values())
