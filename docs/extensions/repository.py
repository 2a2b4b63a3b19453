"""Pages of the repository outside docs/, such as the changelog and tables of results, on the site.

Markdown pages link to each other by relative paths, which GitHub follows. What they reach outside
``docs`` is copied into ``docs/repository``, in the same folders, and links are turned to there.
"""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from sphinx.application import Sphinx

_LINK = re.compile(r"(?<=\]\()[^()\s]+(?=\))")
_COPIES = "repository"
_GALLERY = PurePosixPath("examples/gallery")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.add_config_value("repository_pages", [], "env", [list])
    app.connect("builder-inited", _copy_pages)
    app.connect("source-read", _turn_links)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def turned(
    text: str, page: PurePosixPath, is_file: Callable[[PurePosixPath], bool], copied: bool
) -> tuple[str, set[PurePosixPath]]:
    """A page with links that lead to the site's pages, and the pages to copy for them.

    Args:
        text: Markdown.
        page: where it lies in the repository.
        is_file: whether something lies there in the repository; other links stay as they are.
        copied: whether the page itself is a copy.
    """
    here = PurePosixPath("docs", _COPIES, page).parent if copied else page.parent
    wanted: set[PurePosixPath] = set()

    def turn(match: re.Match[str]) -> str:
        target, mark, anchor = match[0].partition("#")
        place = PurePosixPath(os.path.normpath(page.parent / target))
        if not target or not is_file(place):
            return match[0]
        if place.is_relative_to("docs"):
            new = f"/{place.relative_to('docs')}"
        elif place.suffix == ".md":
            wanted.add(place)
            new = f"/{_COPIES}/{place}"
        elif place.parent == _GALLERY and place.suffix == ".py":
            new = f"/gallery/{place.stem}.rst"
        else:
            new = os.path.relpath(place, here)
        return new + mark + anchor

    return _LINK.sub(turn, text), wanted


def _copy_pages(app: Sphinx) -> None:
    docs, root = Path(app.srcdir), Path(app.srcdir).parent
    named = {PurePosixPath(page) for page in app.config.repository_pages}
    waiting, done = set(named), set()
    for page in sorted(docs.rglob("*.md")):
        if not {"_build", _COPIES} & set(page.relative_to(docs).parts):
            waiting |= _read(root, PurePosixPath(page.relative_to(root).as_posix()), False)[1]
    while waiting - done:
        page = min(waiting - done)
        text, wanted = _read(root, page, True)
        if page not in named:
            text = f"---\norphan: true\n---\n\n{text}"
        copy = docs / _COPIES / page
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or copy.read_text(encoding="utf-8") != text:
            copy.write_text(text, encoding="utf-8")
        done.add(page)
        waiting |= wanted
    _remove_others(docs / _COPIES, done)


def _read(root: Path, page: PurePosixPath, copied: bool) -> tuple[str, set[PurePosixPath]]:
    text = (root / page).read_text(encoding="utf-8")
    return turned(text, page, lambda place: (root / place).is_file(), copied)


def _remove_others(folder: Path, kept: Iterable[PurePosixPath]) -> None:
    for path in folder.rglob("*.md"):
        if PurePosixPath(path.relative_to(folder).as_posix()) not in set(kept):
            path.unlink()


def _turn_links(app: Sphinx, docname: str, source: list[str]) -> None:
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".md" and not docname.startswith(f"{_COPIES}/"):
        root = Path(app.srcdir).parent
        page = PurePosixPath(path.relative_to(root).as_posix())
        source[0] = turned(source[0], page, lambda place: (root / place).is_file(), False)[0]
