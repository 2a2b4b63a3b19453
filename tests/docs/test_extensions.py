"""What the site adds to Sphinx."""

from pathlib import PurePosixPath

import pytest

pytest.importorskip("sphinx_gallery", reason="the site is built with the extra `docs`")

import PIL.Image  # noqa: E402

from docs.extensions.docstrings import mark_code, split_names  # noqa: E402
from docs.extensions.names import alias, exists, is_foreign, nearest  # noqa: E402
from docs.extensions.pictures import scrape  # noqa: E402
from docs.extensions.repository import turned  # noqa: E402

FILES = {PurePosixPath(name) for name in (
    "docs/dials.md", "results/table.md", "results/table.png", "examples/gallery/plot_a.py",
    "CONTRIBUTING.md", "LICENSE")}


def turn(text: str, page: str, copied: bool = False) -> tuple[str, set[PurePosixPath]]:
    return turned(text, PurePosixPath(page), FILES.__contains__, copied)


def test_a_link_out_of_the_pages_leads_to_a_copy():
    text, wanted = turn("[t](../results/table.md#best) ![p](../results/table.png)", "docs/a.md")
    assert text == "[t](/repository/results/table.md#best) ![p](../results/table.png)"
    assert wanted == {PurePosixPath("results/table.md")}


def test_a_copy_leads_back_to_the_pages_and_to_its_pictures():
    text, wanted = turn("[d](../docs/dials.md) ![p](table.png)", "results/table.md", copied=True)
    assert text == "[d](/dials.md) ![p](../../../results/table.png)"
    assert wanted == set()


def test_a_script_of_the_gallery_leads_to_its_page():
    assert turn("[a](../examples/gallery/plot_a.py)", "docs/a.md")[0] == "[a](/gallery/plot_a.rst)"


@pytest.mark.parametrize("link", ["[a](https://a.org/docs/dials.md)", "[a](#here)",
                                  "[a](../gone.md)", "f[0](x)"])
def test_other_links_stay(link):
    assert turn(link, "docs/a.md") == (link, set())


def test_one_entry_for_each_name():
    lines = ["Blur, sharpen: this stays.", "", "Args:", "    weak, strong: views,",
             "        mean, std: a continuation.", "    p: in [0, 1].", "", "Returns:",
             "    one, two: this too."]
    assert split_names(lines) == [
        *lines[:3], "    weak: see ``strong``.", "    strong: views,", *lines[4:]]


def test_an_indented_block_of_a_module_is_code():
    lines = ["A module.", "", "    first()", "", "    second()", "", "More."]
    assert mark_code(lines) == [*lines[:2], ".. code-block:: python", "", *lines[2:]]


def test_an_annotation_finds_the_public_name():
    names = ("dreamda_aug.Settings", "dreamda_aug.expand")
    assert alias("dreamda_aug.method.settings.Settings", names) == "dreamda_aug.Settings"
    assert alias("dreamda_aug.method.settings.PRESETS", names) is None


def test_a_short_name_prefers_its_own_module_and_stays_silent_where_two_fit():
    names = ("a.metrics.Agreement", "a.expansion.Agreement", "a.expansion.Run.stop")
    assert nearest("Agreement", "a.metrics", names) == "a.metrics.Agreement"
    assert nearest("Agreement", "a.amst", names) is None
    assert nearest("Run.stop", "", names) == "a.expansion.Run.stop"


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
