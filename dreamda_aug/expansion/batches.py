"""One unit of an expansion: from planned samples to PNG files and manifest lines."""

from collections.abc import Callable, Sequence

import torch

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.filters import Batch, Filter
from dreamda_aug.expansion.layouts import Layout
from dreamda_aug.expansion.manifest import ManifestLine, library_versions, settings_to_json
from dreamda_aug.expansion.metadata import Skipped
from dreamda_aug.expansion.replicas import PlannedSample
from dreamda_aug.expansion.seed_images import (
    SeedImage,
    Unreadable,
    digest_of_file,
    encode_png,
    pixel_digest,
    read_seed_image,
)
from dreamda_aug.expansion.stats import FLAGGED
from dreamda_aug.generation.tensors import Request, TensorSynthesizer
from dreamda_aug.inputs.sources import Source
from dreamda_aug.models import Condition


class BatchMaker:
    """Generates units. The result depends on the unit alone, not on what was made before.

    Args:
        source: the seed images.
        core: generates the images; it has no cache.
        condition_of: the condition of a seed image, by its number in the source.
        filters: what may object to an image.
        keep_flagged: keep the images that a filter objects to.
        strict: an unreadable seed image is an error.
    """

    def __init__(
        self,
        source: Source,
        core: TensorSynthesizer,
        condition_of: Callable[[int], Condition],
        filters: Sequence[Filter] = (),
        *,
        keep_flagged: bool = False,
        strict: bool = False,
    ):
        self.source, self.core, self.condition_of = source, core, condition_of
        self.filters, self.keep_flagged, self.strict = filters, keep_flagged, strict
        self._settings = settings_to_json(core.settings)
        self._versions = library_versions()

    def make(
        self, unit: int, planned: Sequence[PlannedSample], layout: Layout
    ) -> tuple[list[tuple[ManifestLine, bytes]], list[Skipped]]:
        """Generate a unit as a whole.

        Args:
            unit: its number.
            planned: its samples.
            layout: names the files.

        Returns:
            Manifest lines with their PNG files, and the samples that were left out.

        Raises:
            ExpansionError: ``strict``, and a seed image is unreadable.
            GenerationError: the model failed.
        """
        core, planned = self.core, list(planned)
        size = len(planned)
        seed_images: dict[int, SeedImage] = {}
        skipped = []
        for index in dict.fromkeys(sample.seed_index for sample in planned):
            try:
                seed_images[index] = read_seed_image(self.source, index, core.model)
            except Unreadable as error:
                if self.strict:
                    raise ExpansionError(f"strict: {self.source.paths[index]}: {error}") from error
                file_digest = digest_of_file(self.source, index)
                skipped += [self._skip(unit, sample, str(error), "", file_digest)
                            for sample in planned if sample.seed_index == index]
        planned = [sample for sample in planned if sample.seed_index in seed_images]
        if not planned:
            return [], skipped
        rows = {index: row for row, index in enumerate(seed_images)}
        labels = [self.source.labels[sample.seed_index] for sample in planned]
        values = torch.cat([image.values for image in seed_images.values()])
        made, acts_of = core.synthesize(
            values,
            [Request(rows[s.seed_index], self.condition_of(s.seed_index), s.replica)
             for s in planned],
            [image.digest for image in seed_images.values()],
        )
        made = made.cpu()
        events = [[act] if act else [] for act in acts_of]
        if core.batch_size < size:
            for acts in events:
                acts.append(f"out of memory: made in batches of {core.batch_size}")
        batch = Batch(made, values[[rows[sample.seed_index] for sample in planned]],
                      [sample.seed_index for sample in planned], labels, events)
        distances = (batch.images - batch.seed_images).flatten(1).square().mean(1).sqrt().tolist()
        scores, flags = self._filter(batch)
        shape, fingerprint = _layout_of(planned), core.model.fingerprint
        samples = []
        for row, sample in enumerate(planned):
            seed_image, label = seed_images[sample.seed_index], labels[row]
            if flags[row] and not self.keep_flagged:
                skipped.append(self._skip(unit, sample, FLAGGED + ", ".join(flags[row]),
                                          seed_image.digest, seed_image.file_digest))
                continue
            image = seed_image.back(made[row : row + 1])
            class_name = self.source.classes[label]
            line = ManifestLine(
                id=sample.id,
                file=layout.file(unit, class_name, sample.id),
                class_name=class_name,
                label=label,
                seed_index=sample.seed_index,
                seed_path=self.source.paths[sample.seed_index],
                seed_digest=seed_image.digest,
                replica=sample.replica,
                epoch=0,
                rng_seed=core.rng_seed,
                condition=self.condition_of(sample.seed_index),
                unit=unit,
                row=row,
                layout=shape,
                settings=self._settings,
                model=fingerprint,
                versions=self._versions,
                pixels=pixel_digest(image),
                distance=round(distances[row], 5),
                scores=scores[row],
                flags=flags[row],
                events=events[row],
                seed_file_digest=seed_image.file_digest,
            )
            samples.append((line, encode_png(image, line)))
        return samples, skipped

    def _filter(self, batch: Batch) -> tuple[list[dict[str, float]], list[list[str]]]:
        scores: list[dict[str, float]] = [{} for _ in batch.labels]
        flags: list[list[str]] = [[] for _ in batch.labels]
        for each in self.filters:
            values, objections = each.measure(batch)
            for row, (value, objects) in enumerate(zip(values, objections, strict=True)):
                scores[row][each.name] = round(float(value), 5)
                if objects:
                    flags[row].append(each.name)
        return scores, flags

    def _skip(
        self, unit: int, sample: PlannedSample, reason: str, digest: str, file_digest: str
    ) -> Skipped:
        index = sample.seed_index
        return Skipped(unit, sample.id, index, self.source.paths[index], reason, digest,
                       file_digest)


def _layout_of(planned: Sequence[PlannedSample]) -> list[list[int]]:
    """First replica and count of each seed image, in order."""
    layout: dict[int, list[int]] = {}
    for sample in planned:
        layout.setdefault(sample.seed_index, [sample.replica, 0])[1] += 1
    return list(layout.values())
