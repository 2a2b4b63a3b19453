"""From manifest lines to the pictures on a page: opened once, scaled down, described."""

from collections.abc import Mapping, Sequence

import PIL.Image
import torch

from dreamda_aug.expansion.layouts import StoredImages
from dreamda_aug.expansion.manifest import ManifestLine
from dreamda_aug.inputs.pixels import UNREADABLE
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.machine_paths import relative_name
from dreamda_aug.report.figures import Scatter, scatter
from dreamda_aug.report.orderings import scores_of
from dreamda_aug.report.page import Group, Picture, Sheet
from dreamda_aug.report.selection import MAX_REPLICAS, Family
from dreamda_aug.report.thumbnails import (
    FEATURE_SIDE,
    Thumbnail,
    make_thumbnail,
    pair_distances,
    side_for,
)

_NAMES = {"label": "label confidence", "copy": "copy score"}


class PictureMaker:
    """Makes the pictures of a page, and measures what only pixels tell.

    Args:
        images: the dataset's, with the files that will be asked for.
        source: the seed images; None: they are not shown.
        count: synthetic images on the contact sheets.

    Attributes:
        diversity: sum of the root mean square distances between replicas of one seed image on the
            contact sheets, of the first eight of each, and how many pairs these are.
    """

    def __init__(self, images: StoredImages, source: SeedImages | None, count: int):
        self._images, self._source = images, source
        self._folder = None if source is None or source.root is None else str(source.root)
        self._side = side_for(count)
        self._seeds: dict[int, Thumbnail | None] = {}
        self._features: list[torch.Tensor] = []
        self._seed_features: list[torch.Tensor] = []
        self.diversity = 0.0, 0

    def sheets(
        self, families: Mapping[str, Sequence[Family]], totals: Mapping[str, int]
    ) -> list[Sheet]:
        """A contact sheet for each class; what it shows counts for diversity and scatter."""
        return [
            Sheet(name, f"class-{number}", totals[name],
                  tuple(self._family(family) for family in of_class))
            for number, (name, of_class) in enumerate(families.items())
        ]

    def pairs(self, lines: Sequence[ManifestLine]) -> list[Group]:
        """Each image behind its seed image."""
        return [
            Group(self._seed(line), (self._replica(
                line, make_thumbnail(self._images.open(line.file), self._side)),))
            for line in lines
        ]

    def scatter(self) -> Scatter | None:
        """Real and synthetic images of the contact sheets, by their features."""
        none = torch.zeros(0, FEATURE_SIDE**2)
        return scatter(
            torch.stack(self._seed_features) if self._seed_features else none,
            torch.stack(self._features) if self._features else none,
        )

    def _family(self, family: Family) -> Group:
        thumbnails: list[Thumbnail] = []
        compared: list[PIL.Image.Image] = []
        for line in family.lines:
            image = self._images.open(line.file)
            thumbnails.append(make_thumbnail(image, self._side))
            if len(compared) < MAX_REPLICAS:
                compared.append(image)
        total, count = pair_distances(compared)
        self.diversity = self.diversity[0] + total, self.diversity[1] + count
        self._features += [each.features for each in thumbnails]
        seed = self._seed(family.lines[0])
        thumbnail = self._seeds.get(family.seed_index)
        if thumbnail is not None:
            self._seed_features.append(thumbnail.features)
        replicas = map(self._replica, family.lines, thumbnails)
        return Group(seed, tuple(replicas))

    def _replica(self, line: ManifestLine, thumbnail: Thumbnail) -> Picture:
        scores = scores_of(line)
        notes = [f"replica {line.replica} of {self._seed_name(line)}", line.class_name,
                 *(f"{_NAMES.get(name, name)} {value:.3g}" for name, value in scores.items()
                   if name != "seed-copy")]
        if isinstance(line.condition, str):
            notes.append(f"prompt “{line.condition}”")
        flags = (*line.flags, *(f"guard: {event}" for event in line.events))
        return Picture(thumbnail.data, thumbnail.side, ", ".join(notes), flags, scores)

    def _seed(self, line: ManifestLine) -> Picture | None:
        if self._source is None:
            return None
        index = line.seed_index
        if index not in self._seeds:
            self._seeds[index] = self._seed_thumbnail(line, self._source)
        found = self._seeds[index]
        data, side = (found.data, found.side) if found else ("", 1)
        return Picture(data, side, f"seed image {self._seed_name(line)}, {line.class_name}", (), {})

    def _seed_thumbnail(self, line: ManifestLine, source: SeedImages) -> Thumbnail | None:
        index = line.seed_index
        if index >= len(source) or not source.lies_at(index, line.seed_path):
            return None
        try:
            pixels = source.open(index).pixels
            return make_thumbnail(pixels.store(pixels.values), self._side)
        except UNREADABLE:
            return None  # the page says that it is not at hand

    def _seed_name(self, line: ManifestLine) -> str:
        return relative_name(line.seed_path, self._folder)
