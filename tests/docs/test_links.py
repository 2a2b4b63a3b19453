"""Relative links of Markdown pages, as GitHub follows them; Sphinx checks those of the site."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

markdown_it = pytest.importorskip("markdown_it", reason="links are read with markdown-it-py")

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"),
                *(ROOT / "benchmarks").rglob("*.md"), ROOT / "dreamda_aug/weights/README.md",
                *(ROOT / "examples").glob("*.ipynb")])


def text_of(page: Path) -> str:
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return text


def links(text: str) -> Iterator[str]:
    """Every target of a link or picture, outside code."""
    for block in markdown_it.MarkdownIt("commonmark").enable("table").parse(text):
        for token in block.children or []:
            target = token.attrs.get("href") or token.attrs.get("src")
            if target:
                yield str(target)


def anchors(text: str) -> set[str]:
    """Names that GitHub gives to headings."""
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def broken(page: Path) -> list[str]:
    found = []
    for target in links(text_of(page)):
        place, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = page.parent / place if place else page
        if not path.exists() or (
            anchor and path.suffix == ".md" and anchor not in anchors(text_of(path))
        ):
            found.append(target)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_a_file_and_a_heading(page):
    assert broken(page) == []


def test_the_first_page_of_the_site_has_the_readmes_example_word_for_word():
    first, readme = ((ROOT / name).read_text() for name in ("docs/index.md", "README.md"))
    example, = re.findall(r"^```python\n.*?^```$", first, re.MULTILINE | re.DOTALL)
    assert "AugmentedDataset(" in example and example in readme
