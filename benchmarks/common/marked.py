"""Figures in hand-written pages, between marks, where scripts write them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

_PLACE = re.compile(r"(<!-- figures: (\S+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def fill_places(page: Path, figures: Mapping[str, str]) -> None:
    """Replace what stands between ``<!-- figures: NAME -->`` and ``<!-- end of figures -->``.

    Args:
        page: the Markdown file.
        figures: text by name; places of other names stay as they are.
    """
    def fill(place: re.Match[str]) -> str:
        if place[2] not in figures:
            return place[0]
        return f"{place[1]}{figures[place[2]]}\n{place[3]}"

    page.write_text(_PLACE.sub(fill, page.read_text()))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
