"""What the site adds to Sphinx."""

from pathlib import PurePosixPath

import pytest

pytest.importorskip("sphinx_gallery", reason="the site is built with the extra `docs`")

import PIL.Image  # noqa: E402

from docs.extensions.docstrings import split_names  # noqa: E402
from docs.extensions.names import exists, is_foreign  # noqa: E402
from docs.extensions.pictures import scrape  # noqa: E402
from docs.extensions.repository import turned  # noqa: E402

FILES = {PurePosixPath(name) for name in (
    "docs/dials.md", "results/table.md", "results/table.png", "examples/gallery/plot_a.py",
    "CONTRIBUTING.md", "LICENSE")}


@pytest.mark.parametrize("text, page, expected, wanted", [
    # out of the pages, to a copy
    ("[t](../results/table.md#best) ![p](../results/table.png)", "docs/a.md",
     "[t](/repository/results/table.md#best) ![p](../results/table.png)", {"results/table.md"}),
    # from a copy back to the pages, and to its pictures
    ("[d](../docs/dials.md) ![p](table.png)", "results/table.md",
     "[d](/dials.md) ![p](../../../results/table.png)", set()),
    ("[a](../examples/gallery/plot_a.py)", "docs/a.md", "[a](/gallery/plot_a.rst)", set()),
    *((link, "docs/a.md", link, set()) for link in (
        "[a](https://a.org/docs/dials.md)", "[a](#here)", "[a](../gone.md)", "f[0](x)")),
])
def test_links_lead_to_pages_and_to_copies_of_other_files(text, page, expected, wanted):
    copied = page.startswith("results")
    found = turned(text, PurePosixPath(page), FILES.__contains__, copied)
    assert found == (expected, set(map(PurePosixPath, wanted)))


def test_one_entry_for_each_name():
    lines = ["Blur, sharpen: this stays.", "", "Args:", "    weak, strong: views,",
             "        mean, std: a continuation.", "    p: in [0, 1].", "", "Returns:",
             "    one, two: this too."]
    assert split_names(lines) == [
        *lines[:3], "    weak: see ``strong``.", "    strong: views,", *lines[4:]]


def test_names_that_are_gone_are_told_from_names_without_a_page():
    assert exists("Trajectory") and exists("Settings.steps") and exists("dreamda_aug.files")
    assert not exists("Trajektory") and not exists("Settings.stepz")
    assert is_foreign("torch.Tensor") and not is_foreign("dreamda_aug.expand")


def test_a_cells_last_picture_is_shown_once(tmp_path):
    names = {"___": PIL.Image.new("L", (3, 3))}
    values = {"example_globals": names, "image_path_iterator": iter([str(tmp_path / "1.png")])}
    settings = {"src_dir": str(tmp_path)}
    assert "1.png" in scrape(None, values, settings)
    assert (tmp_path / "1.png").exists()
    assert scrape(None, values, settings) == ""
