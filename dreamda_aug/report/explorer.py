"""What the dials do to a handful of the user's images, on one page with sliders."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from dreamda_aug.arguments import checked, whole
from dreamda_aug.calibration.automatic import GRID, MIN_AGREEMENT, draw_sample
from dreamda_aug.calibration.judge import fold_judge
from dreamda_aug.calibration.search import Measurement, Target, dial_choices
from dreamda_aug.files import WRITE_HERE, local_path, write_atomically
from dreamda_aug.generation.dials import CalibrationPoint
from dreamda_aug.generation.synthesizer import HasSynthesizer, Synthesizer, as_synthesizer
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.machine_paths import path_name
from dreamda_aug.progress import bar
from dreamda_aug.report.rendering import make_thumbnail, render_page

# Images are measured on more of them than are shown.
_MEASURED_PER_SHOWN = 2
_MAX_SIDE = 160
# Field of a point, name and meaning.
_DIALS = (
    ("strength", "Strength", "how far up the noise schedule an image is taken"),
    ("replay", "Replay", "share of the recorded inversion that is replayed; less is freer"),
    ("noise_scale", "Noise scale", "noise on the bottleneck, in units of its RMS"),
)


class Choice(NamedTuple):
    """One position of the sliders: what was measured there, and data URIs of each seed image's
    replicas.
    """

    point: CalibrationPoint
    pictures: list[list[str]]


@dataclass(frozen=True)
class Exploration:
    """Everything that the page shows.

    Attributes:
        title: of the page.
        seeds: data URI and class of each real image.
        choices: every position of the sliders.
        judge: what judged which images keep their label; empty if labels were not judged.
        images: how many images were measured on.
        expansion_ratio: synthetic images of each.
        steps: reverse steps from pure noise that the pictures were made with.
        usual_steps: those of the settings, which the lines to copy use.
        command: words of the shell's line, without the dials and without paths of this machine.
        arguments: of Python's line, likewise.
    """

    title: str
    seeds: list[tuple[str, str]]
    choices: list[Choice]
    judge: str
    images: int
    expansion_ratio: int
    steps: int
    usual_steps: int
    command: list[str]
    arguments: dict[str, Any]

    @property
    def best(self) -> int:
        """Number of the choice that moves images furthest and keeps their labels.

        It is one of the noise scales that are tried unasked, if there are any: more noise breaks
        images before they lose their class. Where none keeps the labels it is the closest miss;
        where nothing was judged, the mildest.
        """
        if not self.judge:
            return 0
        points, target = [choice.point for choice in self.choices], Target(MIN_AGREEMENT)
        tried = [point for point in points if point.noise_scale <= max(GRID["noise_scales"])]
        return points.index(target.furthest(tried or points))

    def lines(self, point: CalibrationPoint) -> tuple[str, str]:
        """The shell's line and Python's line that use a choice."""
        dials = {name: f"{getattr(point, name):g}" for name, _, _ in _DIALS}
        words = [word for name, value in dials.items() for word in ("--set", f"{name}={value}")]
        python = [f"{name}={value!r}" for name, value in self.arguments.items()]
        python += [f"{name}={value}" for name, value in dials.items()]
        return shlex.join([*self.command, *words]), f"Synthesizer({', '.join(python)})"


@checked
def explore(
    source: Any, synthesizer: Synthesizer | HasSynthesizer, *, images: int = 6,
    expansion_ratio: int = 2, steps: int = 12,
    strengths: Sequence[float] = (0.3, 0.5, 0.7, 0.9),
    replays: Sequence[float] = (1.0, 0.9, 0.6, 0.0),
    noise_scales: Sequence[float] = (0.0, 1.0, 3.0),
    title: str = "What the dials do", command: Sequence[str] = ("dreamda", "expand", "FOLDER"),
    arguments: Mapping[str, Any] | None = None, announce: Callable[[str], None] | None = None,
) -> Exploration:
    """Make the pictures of every position of the sliders, and measure them.

    Args:
        source: images with labels, as `expand` takes them.
        synthesizer: makes the images; its three dials are what the sliders move.
        images: real images on the page.
        expansion_ratio: synthetic images of each, at least 2.
        steps: reverse steps from pure noise; few are quicker and coarser.
        strengths: positions of that slider, in (0, 1].
        replays: positions of that slider, in [0, 1].
        noise_scales: positions of that slider, >= 0.
        title: of the page.
        command: the words that the page's line for the shell begins with. Of absolute paths in it
            and in ``arguments`` the page shows the last part.
        arguments: of `Synthesizer`, beside the dials, in the page's line for Python.
        announce: called with the expected cost before anything is made.

    Raises:
        ValueError: an argument breaks its rule, or fewer than two images can be read.

    Source: ours.
    """
    images = whole("images", images, 1)
    expansion_ratio, steps = whole("expansion_ratio", expansion_ratio, 2), whole("steps", steps, 1)
    synthesizer = as_synthesizer(synthesizer)
    usual = synthesizer.requested_settings
    settings = dial_choices(
        replace(usual, steps=min(steps, usual.steps), timestep_spacing="uniform", strength=None,
                replay=None, noise_scale=None), strengths, replays, noise_scales)
    seeds = open_seed_images(source)
    synthesizer = synthesizer.with_class_names(seeds.names)
    sample = draw_sample(seeds, range(len(seeds)), synthesizer.model,
                         synthesizer.conditioner.of_images(seeds, synthesizer.model))
    if sample is None:
        raise ValueError("source must hold at least two images that differ and can be read.")
    count = min(_MEASURED_PER_SHOWN * images, len(sample.images))
    judge = fold_judge(synthesizer.model, sample.images, sample.labels)
    measurement = Measurement(
        synthesizer.with_settings(settings[0]).sampler, sample.images[:count],
        sample.conditions[:count], judge, expansion_ratio)
    rows = sum(map(measurement.rows, settings))
    if announce:
        announce(f"{len(settings)} positions of the sliders, {count * expansion_ratio} images "
                 f"each: about {rows:,} U-Net rows, {rows * measurement.seconds_per_row():.0f} s")
    found, images = [], min(images, count)
    with bar("exploring", rows, "rows") as moved:
        for each in settings:
            point, made = measurement.look(each)
            moved.update(measurement.rows(each))
            of_seed = made.unflatten(0, (count, expansion_ratio))[:images]
            found.append(Choice(point, [[_data(image) for image in of] for of in of_seed]))
    labels = seeds.labels
    names = [seeds.classes[labels[index]] if labels else "" for index in sample.indices]
    shown = list(zip(map(_data, sample.images[:images]), names))
    return Exploration(
        title, shown, found, judge.name if judge else "", count, expansion_ratio,
        settings[0].steps, usual.steps, [path_name(word) for word in command],
        {name: path_name(value) if isinstance(value, str) else value
         for name, value in (arguments or {}).items()})


def write_exploration(exploration: Exploration, out: str | Path) -> None:
    """Write the page, whole or not at all; ValueError if ``out`` is a URL."""
    points = [choice.point for choice in exploration.choices]
    # milder first
    dials = [(name, title, meaning, sorted({float(getattr(point, name)) for point in points},
                                           reverse=name == "replay"))
             for name, title, meaning in _DIALS]
    page = render_page("explore.html.jinja", "explore.js", "report.css", "explore.css",
                       page=exploration, dials=dials, min_agreement=MIN_AGREEMENT)
    write_atomically(local_path(out, "out", WRITE_HERE), page.encode())


def _data(image: Tensor) -> str:
    return make_thumbnail(image, _MAX_SIDE).data
