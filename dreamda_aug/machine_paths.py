"""Text for other people's eyes: no path of the machine that it was written on."""

import re
from collections.abc import Iterable
from pathlib import PurePosixPath, PureWindowsPath

# An absolute path of two parts or more inside a sentence; a URL, a hub id and "T-shirt/top" are
# none. Paths with spaces are found only where the caller knows them.
_PATH = re.compile(
    r"""(?: file:// | (?<! [\w/.~-] ) )
        (?: [A-Za-z]:[\\/] | \\\\ | /(?!/) )
        [^\s'"<>|:;,()\[\]\\/]+ (?: [\\/]+ [^\s'"<>|:;,()\[\]\\/]+ )+ [\\/]*""",
    re.VERBOSE,
)
_HUB_SNAPSHOT = re.compile(r"models--(?P<id>[^\\/]+)[\\/]snapshots[\\/][^\\/]+[\\/]*$")


def path_name(place: str) -> str:
    """What a path is called without its folders; a hub id or a relative path stays.

    A model in Hugging Face's cache is called by its hub id.
    """
    if not _is_absolute(place):
        return place
    if cached := _HUB_SNAPSHOT.search(place):
        return cached["id"].replace("--", "/")
    return PureWindowsPath(place).name or "/"  # parts at "/" too


def relative_name(path: str, folder: str | None) -> str:
    """A path as seen from a folder; its name alone where it is absolute and lies elsewhere."""
    if folder is not None and _is_absolute(path):
        for kind in (PurePosixPath, PureWindowsPath):
            if kind(path).is_absolute() and kind(path).is_relative_to(folder):
                return kind(path).relative_to(folder).as_posix()
    return path_name(path)


def without_paths(text: str, known: Iterable[str] = ()) -> str:
    """A text with the name alone in place of every absolute path.

    Args:
        text: a sentence or a single value.
        known: paths that it may hold, which may have spaces; the longest counts.
    """
    if _is_absolute(text) and "\n" not in text and ": " not in text:
        return path_name(text)
    for place in sorted(filter(_is_absolute, known), key=len, reverse=True):
        if len(place.rstrip("\\/")) > 2:  # "/" and "C:\" stand in every path
            text = text.replace(place, path_name(place))
    return _PATH.sub(lambda found: path_name(found[0].removeprefix("file://")), text)


def _is_absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()
