"""Two habits of the package's docstrings that Sphinx reads otherwise.

``mean, std: one value each`` describes two arguments, and an indented block in a module's docstring
is code.
"""

import re
from typing import Any

from sphinx.application import Sphinx

_SEVERAL = re.compile(r"^(\s+)(\w+(?:, \w+)+): (?=\S)")
_SECTION = re.compile(r"^\s*(Args|Attributes):$")


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    # before napoleon, which has priority 500
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def split_names(lines: list[str]) -> list[str]:
    """The same lines, one entry for each name: the last has the text, others refer to it."""
    result, section, entry = [], False, None
    for line in lines:
        if _SECTION.match(line):
            section, entry = True, None
        elif line.strip() and section:
            indent = len(line) - len(line.lstrip())
            entry = indent if entry is None else entry
            section = indent >= entry
            several = _SEVERAL.match(line)
            if section and indent == entry and several:
                *first, last = several[2].split(", ")
                result += [f"{several[1]}{name}: see ``{last}``." for name in first]
                line = f"{several[1]}{last}: {line[several.end():]}"
        result.append(line)
    return result


def mark_code(lines: list[str]) -> list[str]:
    """The same lines with a directive before each indented block that follows an empty line."""
    result: list[str] = []
    for line in lines:
        begins = line.startswith("    ") and result and not result[-1].strip()
        inside = any(each.startswith("    ") for each in result[-2:])
        if begins and not inside:
            result += [".. code-block:: python", ""]
        result.append(line)
    return result


def _process(
    app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]
) -> None:
    if what == "module":  # from its source: ``lines`` lost the indentation that all but one share
        lines[:] = mark_code((value.__doc__ or "").splitlines())
    else:
        lines[:] = split_names(lines)
