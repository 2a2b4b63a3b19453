"""What the dials do to a handful of the user's images, on one page with sliders."""

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import PIL.Image
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from dreamda_aug import progress as bars
from dreamda_aug.calibration.automatic import GRID, MIN_AGREEMENT
from dreamda_aug.calibration.judge import fold_judge
from dreamda_aug.calibration.samples import draw_sample
from dreamda_aug.calibration.search import Grid, Measurement, Target
from dreamda_aug.files import WRITE_HERE, local_path, write_atomically
from dreamda_aug.generation.dials import CalibrationPoint
from dreamda_aug.generation.synthesizer import Synthesizer
from dreamda_aug.inputs.seed_images import SeedImages
from dreamda_aug.machine_paths import path_name
from dreamda_aug.models import Condition
from dreamda_aug.report.rendering import content_hash, packaged_text, render_html
from dreamda_aug.report.thumbnails import make_thumbnail

STRENGTHS = (0.3, 0.5, 0.7, 0.9)
REPLAYS = (1.0, 0.9, 0.6, 0.0)
NOISE_SCALES = (0.0, 1.0, 3.0)
# Images are measured on more of them than are shown.
_MEASURED_PER_SHOWN = 2
_MAX_SIDE = 160


@dataclass(frozen=True)
class Seed:
    """A real image of the page.

    Attributes:
        data: a data URI.
        name: its class's.
    """

    data: str
    name: str


@dataclass(frozen=True)
class Choice:
    """One position of the sliders.

    Attributes:
        point: what was measured there.
        pictures: data URIs; for each shown seed image its replicas.
        command: the shell's line that uses it.
        python: Python's line.
    """

    point: CalibrationPoint
    pictures: Sequence[Sequence[str]]
    command: str
    python: str


@dataclass(frozen=True)
class Exploration:
    """Everything that the page shows.

    Attributes:
        title: the page's.
        seeds: the real images.
        choices: every position of the sliders.
        judge: what said which images keep their label; "": labels were not judged.
        images: how many images were measured on.
        replicas: of each.
        steps: reverse steps from pure noise that the pictures were made with.
        usual_steps: those of the settings, which the lines to copy use.
    """

    title: str
    seeds: Sequence[Seed]
    choices: Sequence[Choice]
    judge: str
    images: int
    replicas: int
    steps: int
    usual_steps: int

    def values(self, dial: str) -> list[float]:
        """Where a slider may stand; milder first."""
        found = {float(getattr(choice.point, dial)) for choice in self.choices}
        return sorted(found, reverse=dial == "replay")

    @property
    def best(self) -> int:
        """Number of the choice that moves images furthest and keeps their labels.

        Among the noise scales that are tried unasked, if there are any: more noise breaks images
        before they lose their class. The closest miss where none keeps the labels; the mildest,
        where nothing was judged.
        """
        if not self.judge:
            return 0
        points, target = [choice.point for choice in self.choices], Target(MIN_AGREEMENT)
        tried = [point for point in points if point.noise_scale <= max(GRID.noise_scales)]
        tried = tried or points
        keeping = [point for point in tried if target.kept(point)]
        return points.index(max(keeping, key=lambda point: point.distance) if keeping
                            else target.furthest(tried))


def explore(
    images: SeedImages, indices: Iterable[int], synthesizer: Synthesizer,
    condition_of: Callable[[int], Condition], name_of: Callable[[Any], str], *,
    shown: int = 6, replicas: int = 2, steps: int = 12,
    strengths: Sequence[float] = STRENGTHS, replays: Sequence[float] = REPLAYS,
    noise_scales: Sequence[float] = NOISE_SCALES, title: str = "What the dials do",
    command: Sequence[str] = ("dreamda", "expand", "FOLDER", "--out", "OUT"),
    arguments: Mapping[str, Any] | None = None, announce: Callable[[str], None] | None = None,
) -> Exploration:
    """Make the pictures of every position of the sliders, and measure them.

    Args:
        images: the dataset.
        indices: which of its images may be drawn.
        synthesizer: makes the images; its three dials are what the sliders move.
        condition_of: the condition of an image, by its index.
        name_of: the name of a label.
        shown: real images on the page, at least 1.
        replicas: synthetic images of each, at least 2.
        steps: reverse steps from pure noise; few, since this is a preview.
        strengths: positions of that slider, in (0, 1].
        replays: likewise, in [0, 1].
        noise_scales: likewise, >= 0.
        title: the page's.
        command: the command that the page's line begins with; the page shows the last part of
            absolute paths in it and in ``arguments``.
        arguments: what `Synthesizer` is given beside the dials in the page's Python line.
        announce: called with the price, in words, before anything is made.

    Raises:
        ValueError: an argument breaks its rule, or fewer than two images can be read.

    Source: ours.
    """
    if shown < 1 or replicas < 2 or steps < 1:
        raise ValueError(f"shown and steps must be at least 1, and replicas 2, got {shown}, "
                         f"{steps} and {replicas}.")
    label_of: dict[int, Any] = {}

    def condition(index: int) -> Condition:
        label_of[len(label_of)] = (images.labels or [])[index]  # in the order of the sample
        return condition_of(index)

    model, requested = synthesizer.model, synthesizer.requested_settings
    sample = draw_sample(images, indices, model, condition)
    if sample is None:
        raise ValueError("images must hold at least two that differ and can be read.")
    count = min(_MEASURED_PER_SHOWN * shown, len(sample.images))
    judge = fold_judge(model, sample.images, sample.labels)
    choices = Grid(strengths, replays, noise_scales).choices()
    measurement = Measurement(
        synthesizer.sampler_with(choices[0].of(requested)), sample.images[:count],
        sample.labels[:count], sample.conditions[:count], judge, replicas)
    settings = replace(requested, steps=min(steps, requested.steps),
                       timestep_spacing="uniform")
    rows = sum(measurement.rows(dials.of(settings)) for dials in choices)
    if announce:
        announce(f"{len(choices)} positions of the sliders, {count * replicas} images each: about "
                 f"{rows:,} U-Net rows, {rows * measurement.seconds_per_row():.0f} s")
    found = []
    shown = min(shown, count)
    # the page may be passed on: of paths of this machine it has the last part
    command = [path_name(word) for word in command]
    arguments = {name: path_name(value) if isinstance(value, str) else value
                 for name, value in (arguments or {}).items()}
    with bars.bar("exploring", rows, "rows") as bar:
        for dials in choices:
            point, made = measurement.look(dials.of(settings))
            bar.update(measurement.rows(dials.of(settings)))
            pictures = [[_data(made[i * replicas + k]) for k in range(replicas)]
                        for i in range(shown)]
            values = {"strength": dials.strength, "replay": dials.replay,
                      "noise_scale": dials.noise_scale}
            found.append(Choice(point, pictures, _shell_line(command, values),
                                _python_line(arguments, values)))
    seeds = [Seed(_data(sample.images[i]), name_of(label_of[i])) for i in range(shown)]
    return Exploration(title, seeds, found, judge.name if judge else "", count, replicas,
                       settings.steps, requested.steps)


def render_exploration(exploration: Exploration) -> str:
    """The page: one file, no requests; every value is escaped."""
    script = packaged_text("explore.js")
    return render_html(
        "explore.html.jinja",
        page=exploration,
        dials=[(name, title, meaning, exploration.values(name)) for name, title, meaning in _DIALS],
        min_agreement=MIN_AGREEMENT,
        style=packaged_text("report.css") + packaged_text("explore.css"),
        script=script,
        script_hash=content_hash(script),
    )


def write_exploration(exploration: Exploration, out: str | Path) -> None:
    """Write the page, as a whole or not at all; ValueError where ``out`` is a URL."""
    write_atomically(local_path(out, "out", WRITE_HERE), render_exploration(exploration).encode())


# Field of a point, name and meaning.
_DIALS = (
    ("strength", "Strength", "how far up the noise schedule an image is taken"),
    ("replay", "Replay", "share of the recorded inversion that is replayed; less is freer"),
    ("noise_scale", "Noise scale", "noise on the bottleneck, in units of its RMS"),
)


def _shell_line(command: Sequence[str], values: Mapping[str, float]) -> str:
    settings = [part for name, value in values.items() for part in ("--set", f"{name}={value:g}")]
    return shlex.join([*command, *settings])


def _python_line(arguments: Mapping[str, Any], values: Mapping[str, float]) -> str:
    given = [f"{name}={value!r}" for name, value in arguments.items()]
    given += [f"{name}={value:g}" for name, value in values.items()]
    return f"Synthesizer({', '.join(given)})"


def _data(image: Tensor) -> str:
    picture: PIL.Image.Image = F.to_pil_image(image.cpu().clamp(0, 1))
    return make_thumbnail(picture, _MAX_SIDE).data
