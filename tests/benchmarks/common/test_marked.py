"""Figures in hand-written pages."""

from pathlib import Path

from benchmarks import RESULTS
from benchmarks.common.marked import fill_places, table
from benchmarks.scale import page as scale
from benchmarks.speed import page as speed

COST = Path(__file__).parents[3] / "docs" / "cost.md"


def test_only_places_of_a_known_name_are_replaced(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- figures: x/y-z -->\nold\n\nold\n<!-- end of figures -->\nb\n"
                    "<!-- figures: other -->\nkept\n<!-- end of figures -->\n")
    fill_places(page, {"x/y-z": table(["h"], [["1"], ["2"]])})
    assert page.read_text() == (
        "a\n<!-- figures: x/y-z -->\n| h |\n| --- |\n| 1 |\n| 2 |\n<!-- end of figures -->\nb\n"
        "<!-- figures: other -->\nkept\n<!-- end of figures -->\n")


def test_the_figures_about_cost_are_those_of_the_records(tmp_path):
    page = tmp_path / "cost.md"
    page.write_text(COST.read_text())
    speed.write_docs(RESULTS, page)
    scale.write_docs(RESULTS, page)
    assert page.read_text() == COST.read_text()
    assert "-->\n<!-- end of figures" not in page.read_text()  # and none is missing
