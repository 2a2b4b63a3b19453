"""One batch of an expansion: from planned samples to PNG files and manifest lines."""

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter

import PIL.Image
import PIL.PngImagePlugin
import torch

from dreamda_aug.errors import ExpansionError
from dreamda_aug.expansion.filters import Batch, Filter
from dreamda_aug.expansion.manifest import (
    FLAGGED,
    ManifestLine,
    Skipped,
    library_versions,
    settings_to_json,
)
from dreamda_aug.expansion.seeds import PlannedSample, Unreadable, open_seed
from dreamda_aug.generation.sampler import Request, Sampler, Synthesized
from dreamda_aug.inputs.pixels import Pixels
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.models.conditioning import Condition


@dataclass(eq=False)
class BatchMaker:
    """Generates batches. The result depends on the batch alone, not on what was made before.

    The sampler has no cache, and ``condition_of`` takes the number of a seed image.
    """

    images: SeedImages
    sampler: Sampler
    condition_of: Callable[[int], Condition]
    filters: Sequence[Filter] = ()
    keep_flagged: bool = False
    strict: bool = False

    def make(
        self, number: int, planned: Sequence[PlannedSample], file_of: Callable[[int, str, str], str]
    ) -> tuple[list[tuple[ManifestLine, bytes]], list[Skipped]]:
        """Generate the planned samples of a batch as a whole; ``file_of`` names the files.

        Returns manifest lines with their PNG files, and the samples that were left out;
        ExpansionError for an unreadable seed image if ``strict``.
        """
        sampler, images, paths = self.sampler, self.images, self.images.paths
        groups = {index: list(group)
                  for index, group in groupby(planned, attrgetter("seed_index"))}
        files = {index: images.file_digest(index) for index in groups}
        seeds: dict[int, Pixels] = {}
        skipped: list[Skipped] = []

        def leave_out(sample: PlannedSample, reason: str, digest: str) -> None:
            index = sample.seed_index
            skipped.append(
                Skipped(number, sample.id, index, paths[index], reason, digest, files[index]))

        for index, group in groups.items():
            try:
                seeds[index] = open_seed(images, index, sampler.model)
            except Unreadable as error:
                if self.strict:
                    raise ExpansionError(f"strict: {paths[index]}: {error}") from error
                for sample in group:
                    leave_out(sample, str(error), "")
        planned = [sample for index in seeds for sample in groups[index]]
        if not planned:
            return [], skipped
        shape = [[groups[index][0].replica, len(groups[index])] for index in seeds]
        made = generate(sampler, list(seeds.values()), shape,
                        [self.condition_of(index) for index in seeds])
        batch = Batch(
            made.images.cpu(), torch.cat([seeds[sample.seed_index].values for sample in planned]),
            [sample.seed_index for sample in planned],
            [images.labels[sample.seed_index] for sample in planned],
            [[act] if act else [] for act in made.events])
        scores: list[dict[str, float]] = [{} for _ in planned]
        flags: list[list[str]] = [[] for _ in planned]
        for each in self.filters:
            for row, (value, objects) in enumerate(zip(*each.measure(batch), strict=True)):
                scores[row][each.name] = round(float(value), 5)
                flags[row] += [each.name] if objects else []
        samples, settings = [], settings_to_json(sampler.settings)
        distances = batch.distances.tolist()
        for row, sample in enumerate(planned):
            index, label = sample.seed_index, batch.labels[row]
            seed, class_name = seeds[index], images.classes[label]
            if flags[row] and not self.keep_flagged:
                leave_out(sample, FLAGGED + ", ".join(flags[row]), seed.digests[0])
                continue
            image = seed.store(batch.images[row : row + 1])
            line = ManifestLine(
                id=sample.id, file=file_of(number, class_name, sample.id),
                class_name=class_name, label=label,
                seed_index=index, seed_path=paths[index], seed_digest=seed.digests[0],
                replica=sample.replica, epoch=0, rng_seed=sampler.rng_seed,
                condition=self.condition_of(index),
                batch=number, row=row, layout=shape, batch_size=made.batch_sizes[row],
                settings=settings, model=sampler.model.fingerprint, versions=library_versions(),
                pixels=pixel_digest(image), distance=round(distances[row], 5),
                scores=scores[row], flags=flags[row], events=list(batch.events[row]),
                loss=seed.loss, seed_file_digest=files[index],
            )
            samples.append((line, encode_png(image, line)))
        return samples, skipped


def generate(
    sampler: Sampler, seeds: Sequence[Pixels], layout: Sequence[Sequence[int]],
    conditions: Sequence[Condition],
) -> Synthesized:
    """Make the images of a batch; ``layout`` is first replica and number of replicas per seed."""
    requests = [Request(row, condition, first + k)
                for row, ((first, count), condition) in enumerate(zip(layout, conditions))
                for k in range(count)]
    return sampler.synthesize(torch.cat([seed.values for seed in seeds]), requests,
                              [seed.digests[0] for seed in seeds])


def pixel_digest(image: PIL.Image.Image) -> str:
    """SHA-256 of an image's mode, size and pixels, in hexadecimal."""
    digest = hashlib.sha256(f"{image.mode}{image.size}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def encode_png(image: PIL.Image.Image, line: ManifestLine) -> bytes:
    """A PNG that is marked as synthetic and carries its manifest line.

    Like its seed image it has an orientation and a colour profile, so readers show both alike.
    """
    text = PIL.PngImagePlugin.PngInfo()
    text.add_text("synthetic", "true")
    text.add_text("dreamda", line.in_image())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text, exif=image.info.get("exif", b""))
    return buffer.getvalue()
