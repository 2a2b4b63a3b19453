"""Real samples together with synthetic ones that lie on disk."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset, Subset
from torchvision.datasets.folder import default_loader

from dreamda_aug.arguments import checked
from dreamda_aug.datasets.parts import Origin, RealAndSynthetic
from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.layouts import StoredImages
from dreamda_aug.expansion.manifest import ManifestLine, read_manifest, read_metadata
from dreamda_aug.files import regular_file
from dreamda_aug.inputs.dataset_reader import as_sized, find_classes, find_targets
from dreamda_aug.inputs.pixels import Pixels
from dreamda_aug.inputs.samples import plain_label


class StoredDataset(RealAndSynthetic):
    """Real samples, and synthetic ones that `expand` wrote; loads no diffusion model.

    It has the samples, attributes and order of an `AugmentedDataset`: the synthetic samples have
    the type of their seed images, and pass the real dataset's own transform. This is also
    ``AugmentedDataset.from_folder``.

    Args:
        real: the dataset that was expanded, which may be a ``Subset``, or a ``Subset`` of it:
            synthetic images of other seed images are left out, so that no validation image leaks
            into training. Folder datasets are matched by path, others by index.
        out: the synthetic dataset, of any format.
        transform: image transform to run last.
        with_origin: samples become ``(image, label, Origin)``.
        replace: as in `AugmentedDataset`, with the ``rng_seed`` of the expansion; a real sample
            without replicas stays.

    Attributes:
        left_out: synthetic images whose seed image is not in ``real``.

    Raises:
        ValueError: ``replace`` does not lie in [0, 1].
        FileNotFoundError: the folder holds no finished dataset.
        ExpansionError: it was made from other data, or is damaged.
    """

    @checked
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
        super().__init__(real, transform, with_origin, replace, metadata["rng_seed"])
        self.out, self.left_out = Path(out), 0
        # for each real sample, the files of its replicas by their numbers
        self._files: list[dict[int, str]] = [{} for _ in self._images.paths]
        position_of = self._matching(metadata["source"]["images"])
        labels = list(map(plain_label, self._images.given_labels))
        kept = list(map(plain_label, find_targets(real) or labels))
        classes, is_changed = find_classes(real), kept != labels
        for line in read_manifest(self.out):
            position = position_of(line)
            if position is None:
                self.left_out += 1
                continue
            # a target_transform gives labels that the dataset's classes do not name
            if not (classes is None or is_changed and labels[position] == line.label) and (
                    classes[kept[position]] != line.class_name):
                raise ExpansionError(
                    f"{line.id}: its seed image {line.seed_path} was of class {line.class_name!r}, "
                    f"in the real dataset it is {classes[kept[position]]!r}; pass the dataset that "
                    "was expanded.")
            self._files[position][line.replica] = line.file
        self._set_replicas(list(map(list, self._files)))
        if not any(self._files):
            raise ExpansionError(
                f"{self.out}: none of its {self.left_out} images has its seed image in the real "
                "dataset; pass the dataset that was expanded."
            )
        self._stored = StoredImages(
            self.out, [file for files in self._files for file in files.values()])
        self._fixed: Pixels | None = None

    def _matching(self, expanded: int) -> Callable[[ManifestLine], int | None]:
        """From a manifest line to the real sample that is its seed image, or None."""
        base: Any = self._dataset
        rows = list(range(len(self._images)))
        while isinstance(base, Subset):
            base, rows = base.dataset, [int(base.indices[row]) for row in rows]
        self._loader, count = getattr(base, "loader", None), len(as_sized(base))
        names = (self._images.file_names if hasattr(base, "root") else None) or ()
        by_name = {name: position for position, name in enumerate(names)}
        by_number: dict[int, int] | None = None
        if expanded == count:
            by_number = {row: position for position, row in enumerate(rows)}
        elif expanded == len(rows):  # the Subset itself was expanded
            by_number = {position: position for position in range(expanded)}

        def position(line: ManifestLine) -> int | None:
            if by_name and not re.fullmatch(r"#\d+", line.seed_path):
                return by_name.get(line.seed_path)
            if by_number is None:
                raise ExpansionError(
                    f"{self.out} was made from {expanded} images, the real dataset has {count}; "
                    "pass the dataset that was expanded, or a Subset of it."
                )
            return by_number.get(line.seed_index)

        return position

    def _samples(self, origins: Sequence[Origin]) -> Iterator[tuple[Origin, Any]]:
        for origin in origins:
            if origin.synthetic:
                image = self._read(self._files[origin.index][origin.replica], origin.index)
                yield origin, self._images.put_back(origin.index, image)
            else:
                seed = self._images.open(origin.index)
                yield origin, seed.put_back(seed.image)

    def _read(self, file: str, seed: int) -> Any:
        """A synthetic image in the type of its seed image."""
        if self._loader is not None and not self._stored.in_shard(file):
            return self._loader(str(regular_file(self.out / file)))
        image = self._stored.open(file)
        if self._loader is default_loader:
            return image.convert("RGB")
        pixels = self._fixed or self._images.open(seed).pixels
        self._fixed = pixels if pixels.is_fixed else None
        return pixels.load(image)
