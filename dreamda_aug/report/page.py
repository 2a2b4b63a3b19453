"""What stands on a report's page, and the page as text: one file, no requests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dreamda_aug.report.figures import Histogram, Scatter
from dreamda_aug.report.orderings import Ordering
from dreamda_aug.report.overview import Figure
from dreamda_aug.report.rendering import content_hash, packaged_text, render_html


@dataclass(frozen=True)
class Picture:
    """An image on the page.

    Attributes:
        data: a data URI; "" if the image is not at hand.
        side: the longer side of that image, in pixels.
        caption: what it is, in one sentence; also its text alternative.
        flags: what is wrong with it.
        scores: what was measured on it, by name.
    """

    data: str
    side: int
    caption: str
    flags: tuple[str, ...]
    scores: Mapping[str, float]

    @property
    def text(self) -> str:
        """Caption and flags, for who cannot see them."""
        return self.caption + "".join(f"; flag: {flag}" for flag in self.flags)


@dataclass(frozen=True)
class Group:
    """A seed image, None where seed images are not shown, and replicas of it."""

    seed: Picture | None
    replicas: tuple[Picture, ...]


@dataclass(frozen=True)
class Sheet:
    """The pictures of a class.

    Attributes:
        anchor: its id on the page.
        total: synthetic images of the class in the dataset.
    """

    class_name: str
    anchor: str
    total: int
    groups: tuple[Group, ...]

    @property
    def shown(self) -> int:
        """Synthetic images on the page."""
        return sum(len(group.replicas) for group in self.groups)

    @property
    def flagged(self) -> int:
        """How many of these have a flag."""
        return sum(bool(each.flags) for group in self.groups for each in group.replicas)


@dataclass(frozen=True)
class Page:
    """Everything that a report shows.

    Attributes:
        title: the page's.
        total: images in the dataset.
        figures: the numbers on top.
        warnings: what a user should look into.
        worst: for each ordering the worst images, the worst first.
        sheets: the pictures, by class.
        histograms: distributions over all images.
        scatter: the pictures' features; None: there are too few.
        columns: of the table of classes.
        classes: rows of that table; each begins with the class's name.
        metrics: name and value.
        settings: name and value.
    """

    title: str
    total: int
    figures: Sequence[Figure] = ()
    warnings: Sequence[str] = ()
    worst: Sequence[tuple[Ordering, Sequence[Group]]] = ()
    sheets: Sequence[Sheet] = ()
    histograms: Sequence[Histogram] = ()
    scatter: Scatter | None = None
    columns: Sequence[str] = ("class",)
    classes: Sequence[Sequence[str]] = ()
    metrics: Sequence[tuple[str, str]] = ()
    settings: Sequence[tuple[str, str]] = ()


def render(page: Page) -> str:
    """The page as text; every value is escaped, and no other script than ours may run."""
    pictures = [each for sheet in page.sheets for group in sheet.groups for each in group.replicas]
    script = packaged_text("report.js")
    return render_html(
        "report.html.jinja",
        page=page,
        shown=len(pictures),
        orderings=[ordering for ordering, _ in page.worst],
        flags=sorted({flag for each in pictures for flag in each.flags}),
        anchors={sheet.class_name: sheet.anchor for sheet in page.sheets},
        tile=_tile_side(max((each.side for each in pictures), default=64)),
        style=packaged_text("report.css"),
        script=script,
        script_hash=content_hash(script),
    )


def _tile_side(side: int) -> int:
    """Side of a picture on a sheet: a whole multiple of a small image's, so it stays sharp."""
    return max(56 // side, 1) * side if side <= 64 else 72
