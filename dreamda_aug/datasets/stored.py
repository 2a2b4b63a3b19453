"""Real samples together with synthetic ones that lie on disk."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from torch.utils.data import Dataset, Subset
from torchvision import tv_tensors
from torchvision.datasets.folder import default_loader
from torchvision.transforms.v2 import functional as F

from dreamda_aug.datasets.origins import RealAndSynthetic, completed
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.layouts import StoredImages
from dreamda_aug.expansion.manifest import ManifestLine, read_manifest
from dreamda_aug.expansion.metadata import read_metadata
from dreamda_aug.inputs.dataset_fields import as_sized, find_classes, find_names
from dreamda_aug.inputs.labels import plain_label
from dreamda_aug.inputs.untransformed import Untransformed, kept_labels_of, labels_of


class StoredDataset(RealAndSynthetic):
    """What `AugmentedDataset.from_folder` returns; no diffusion model is loaded.

    Samples 0 to N - 1 are the real ones; the synthetic ones follow in the manifest's order. Images
    go through the real dataset's own transform.

    Args:
        real: the dataset that was expanded, which may be a ``Subset``, or a ``Subset`` of it.
            Folder datasets are matched by path, others by index.
        folder: the synthetic dataset, of any format.
        transform: image transform to run last.
        with_origin: samples become ``(image, label, Origin)``.

    Attributes:
        left_out: synthetic images whose seed image is not in ``real``.
        epoch: 0, the epoch that `expand` makes.

    Raises:
        FileNotFoundError: the folder holds no finished dataset.
        ExpansionError: it was made from other data, or is damaged.
    """

    epoch = 0

    def __init__(
        self,
        real: Dataset[Any],
        folder: str | Path,
        *,
        transform: Callable[[Any], Any] | None = None,
        with_origin: bool = False,
    ):
        self.root = Path(folder)
        self._raw = Untransformed(real)
        self.transform, self.with_origin = transform, with_origin
        base, positions = _base_and_positions(real)
        self._base = base
        self._loader = getattr(base, "loader", None)
        names = _relative_paths(base)
        if names is None:
            expected, count = read_metadata(self.root)["source"]["images"], len(as_sized(base))
            if expected not in (count, len(self._raw)):
                raise ExpansionError(
                    f"{self.root} was made from {expected} images, the real dataset has {count}; "
                    "pass the dataset that was expanded, or a Subset of it."
                )
            if expected != count:  # the Subset itself was expanded
                positions = {i: i for i in range(expected)}
        self._files: list[str] = []
        self._origins: list[tuple[int, int]] = []
        self.left_out = 0
        kept = [plain_label(label) for label in kept_labels_of(self._raw)]
        self._real_targets = labels_of(self._raw)
        # a target_transform gives labels that the dataset's classes do not name
        changed = kept != [plain_label(label) for label in self._real_targets]
        classes = find_classes(real)
        for line in read_manifest(self.root):
            index = line.seed_index if names is None else names.get(line.seed_path)
            position = None if index is None else positions.get(index)
            if position is None:
                self.left_out += 1
                continue
            if not (changed and line.label == plain_label(self._real_targets[position])):
                _check_class(line, kept[position], classes)
            self._files.append(line.file)
            self._origins.append((position, line.replica))
        if not self._files:
            raise ExpansionError(
                f"{self.root}: none of its {self.left_out} images has its seed image in the real "
                "dataset; pass the dataset that was expanded."
            )
        self._images = StoredImages(self.root, self._files)
        self._kind: Callable[[PIL.Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self._raw) + len(self._files)

    def __getitem__(self, index: int) -> Any:
        origin = self.origin(index)
        if origin.synthetic:
            sample = self._raw.finish(
                origin.index, self._read(index % len(self) - len(self._raw)),
                self._real_targets[origin.index])
        else:
            seed = self._raw.sample(origin.index)
            sample = seed.finish(seed.image)
        return completed(sample, origin, self.transform, self.with_origin)

    def _seed_and_replica(self, number: int) -> tuple[int, int]:
        return self._origins[number]

    def set_epoch(self, epoch: int) -> None:
        """Nothing changes: images on disk carry one perturbation each."""

    @property
    def targets(self) -> list[Any]:
        """Labels of all samples, real ones first; synthetic ones carry their seed's label."""
        return self._real_targets + [self._real_targets[i] for i, _ in self._origins]

    def _read(self, number: int) -> Any:
        """A synthetic image in the type that the real dataset's images have."""
        file = self._files[number]
        if self._images.in_shard(file):
            image = self._images.open(file)
            if self._loader is default_loader:
                return image.convert("RGB")
        elif self._loader is not None:
            return self._loader(str(self.root / file))
        else:
            image = self._images.open(file)
        if self._kind is None:
            self._kind = _kind_of(self._raw[0][0])
        return self._kind(image)


def _base_and_positions(real: Dataset[Any]) -> tuple[Dataset[Any], dict[int, int]]:
    """The dataset below all ``Subset``s, and where each of its samples is in ``real``."""
    if not isinstance(real, Subset):
        return real, {i: i for i in range(len(as_sized(real)))}
    base, inner = _base_and_positions(real.dataset)
    of_inner = {position: index for index, position in inner.items()}
    return base, {of_inner[int(i)]: place for place, i in enumerate(real.indices)}


def _relative_paths(base: Dataset[Any]) -> dict[str, int] | None:
    """Index of each file of a folder dataset; None for other datasets."""
    if not hasattr(base, "samples") or not hasattr(base, "root"):
        return None
    return {name: index for index, name in enumerate(find_names(base) or ())}


def _check_class(line: ManifestLine, label: Any, classes: Sequence[str] | None) -> None:
    found = classes[label] if classes is not None else line.class_name
    if found != line.class_name:
        raise ExpansionError(
            f"{line.id}: its seed image {line.seed_path} was of class {line.class_name!r}, the "
            f"real dataset says {found!r}; pass the dataset that was expanded."
        )


def _kind_of(like: Any) -> Callable[[PIL.Image.Image], Any]:
    """From a PIL image to the type of ``like``."""
    if not isinstance(like, torch.Tensor):
        return lambda image: image

    def convert(image: PIL.Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = F.pil_to_tensor(image)
        if like.dtype != torch.uint8:
            pixels = F.to_dtype(pixels, like.dtype, scale=True)
        if isinstance(like, tv_tensors.Image):
            pixels = tv_tensors.wrap(pixels, like=like)
        return pixels

    return convert
