"""Real samples together with synthetic ones that lie on disk."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset
from torchvision.datasets.folder import default_loader

from dreamda_aug.datasets.parts import RealAndSynthetic
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.layouts import StoredImages
from dreamda_aug.expansion.manifest import ManifestLine, read_manifest
from dreamda_aug.expansion.metadata import read_metadata
from dreamda_aug.inputs.dataset_reader import as_sized, find_classes, find_names, find_targets
from dreamda_aug.inputs.labels import plain_label
from dreamda_aug.inputs.pixels import Pixels


class StoredDataset(RealAndSynthetic):
    """Real samples and stored synthetic ones, from `AugmentedDataset.from_folder`.

    Samples 0 to N - 1 are the real ones; the synthetic ones follow in the manifest's order, with
    the type of their seed images and after the real dataset's own transform.

    Args:
        real: the dataset that was expanded, which may be a ``Subset``, or a ``Subset`` of it.
            Folder datasets are matched by path, others by index.
        out: the synthetic dataset, of any format.
        transform: image transform to run last.
        with_origin: samples become ``(image, label, Origin)``.
        replace: as in `AugmentedDataset`; a real sample without replicas stays.

    Attributes:
        left_out: synthetic images whose seed image is not in ``real``.

    Raises:
        ValueError: ``replace`` does not lie in [0, 1].
        FileNotFoundError: the folder holds no finished dataset.
        ExpansionError: it was made from other data, or is damaged.
    """

    def __init__(
        self,
        real: Dataset[Any],
        out: str | Path,
        *,
        transform: Callable[[Any], Any] | None = None,
        with_origin: bool = False,
        replace: float | None = None,
    ):
        metadata = read_metadata(out)
        super().__init__(real, None, transform, with_origin, replace, metadata["rng_seed"],
                         changes=False)
        self.out, self.left_out = Path(out), 0
        self._files: dict[tuple[int, int], str] = {}
        self._replicas_of: dict[int, list[int]] = {}
        base, _ = _base_and_positions(real)
        self._loader = getattr(base, "loader", None)
        position_of = self._matching(real, metadata["source"]["images"])
        labels = list(map(plain_label, self._images.given_labels))
        kept = list(map(plain_label, find_targets(real) or labels))
        classes, is_changed = find_classes(real), kept != labels
        for line in read_manifest(self.out):
            position = position_of(line)
            if position is None:
                self.left_out += 1
                continue
            # a target_transform gives labels that the dataset's classes do not name
            if classes is not None and not (is_changed and labels[position] == line.label):
                _check_class(line, classes[kept[position]])
            self._files[position, line.replica] = line.file
            self._replicas_of.setdefault(position, []).append(line.replica)
        if not self._files:
            raise ExpansionError(
                f"{self.out}: none of its {self.left_out} images has its seed image in the real "
                "dataset; pass the dataset that was expanded."
            )
        self._stored = StoredImages(self.out, self._files.values())
        self._origins = list(self._files)
        self._fixed: Pixels | None = None

    def __getitem__(self, index: int) -> Any:
        origin = self.origin(index)
        if self.replace is not None:
            self._count(1)
        if origin.synthetic:
            file = self._files[origin.index, origin.replica]
            sample = self._images.put_back(origin.index, self._read(file, origin.index))
        else:
            seed = self._images.open(origin.index)
            sample = seed.put_back(seed.image)
        return self._completed(sample, origin)

    def _synthetic_count(self) -> int:
        return len(self._origins)

    def _seed_and_replica(self, number: int) -> tuple[int, int]:
        return self._origins[number]

    def _replicas(self, index: int) -> Sequence[int]:
        return self._replicas_of.get(index, ())

    def _matching(
        self, real: Dataset[Any], expanded: int
    ) -> Callable[[ManifestLine], int | None]:
        """From a manifest line to the real sample that is its seed image, or None."""
        base, position_of = _base_and_positions(real)
        is_folder = hasattr(base, "samples") and hasattr(base, "root")
        names = {name: index for index, name in enumerate(find_names(base) or ())}
        count = len(as_sized(base))
        by_number = position_of if expanded == count else None
        if by_number is None and expanded == len(self._images):  # the Subset itself was expanded
            by_number = {index: index for index in range(expanded)}

        def position(line: ManifestLine) -> int | None:
            if is_folder and not re.fullmatch(r"#\d+", line.seed_path):
                return position_of.get(names.get(line.seed_path, -1))
            if by_number is None:
                raise ExpansionError(
                    f"{self.out} was made from {expanded} images, the real dataset has {count}; "
                    "pass the dataset that was expanded, or a Subset of it."
                )
            return by_number.get(line.seed_index)

        return position

    def _read(self, file: str, seed: int) -> Any:
        """A synthetic image in the type of its seed image."""
        if self._loader is not None and not self._stored.in_shard(file):
            return self._loader(str(self.out / file))
        image = self._stored.open(file)
        if self._loader is default_loader:
            return image.convert("RGB")
        pixels = self._fixed or self._images.open(seed).pixels
        self._fixed = pixels if pixels.is_fixed else None
        return pixels.load(image)


def _base_and_positions(real: Dataset[Any]) -> tuple[Dataset[Any], dict[int, int]]:
    """The dataset below all ``Subset``s, and where each of its samples is in ``real``."""
    if not isinstance(real, Subset):
        return real, {i: i for i in range(len(as_sized(real)))}
    base, inner = _base_and_positions(real.dataset)
    of_inner = {position: index for index, position in inner.items()}
    return base, {of_inner[int(i)]: place for place, i in enumerate(real.indices)}


def _check_class(line: ManifestLine, found: str) -> None:
    if found != line.class_name:
        raise ExpansionError(
            f"{line.id}: its seed image {line.seed_path} was of class {line.class_name!r}, the "
            f"real dataset says {found!r}; pass the dataset that was expanded."
        )
