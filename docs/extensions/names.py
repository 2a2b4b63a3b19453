"""Names in docstrings and annotations become links, and names that are gone become warnings.

A docstring says `` `Settings` ``; an annotation says ``dreamda_aug.method.settings.Settings``; the
site describes ``dreamda_aug.Settings``. Sphinx finds none of these pairs by itself.
"""

import importlib
import inspect
import pkgutil
import sys
from functools import cache
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

_PACKAGE = "dreamda_aug"


def setup(app: Sphinx) -> dict[str, Any]:
    """Sphinx calls this."""
    app.connect("missing-reference", resolve)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def resolve(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, contnode: nodes.Element
) -> nodes.Node | None:
    """A link, or plain text for a name that exists and is described nowhere; None: no such name."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].removeprefix("~")
    if target[:1] in "'\"" or is_foreign(target):  # a Literal's word, or another library's name
        return contnode
    described = env.domains.python_domain.objects
    place = alias(target, tuple(described)) or nearest(
        target, node.get("py:module") or "", tuple(described))
    if place is not None:
        entry = described[place]
        if contnode.astext() == target:  # an annotation's full path: its last part will do
            contnode = type(contnode)("", place.rpartition(".")[2], classes=contnode["classes"])
        uri = app.builder.get_relative_uri(node["refdoc"], entry.docname)
        return nodes.reference("", "", contnode, internal=True, reftitle=place,
                               refuri=f"{uri}#{entry.node_id}")
    known = exists(target) or any(each.endswith(f".{target}") for each in described)
    return contnode if known else None


def nearest(name: str, module: str, described: tuple[str, ...]) -> str | None:
    """The described name that ends with ``name``; of several, the one in ``module``."""
    found = [each for each in described if each.endswith(f".{name}")]
    inside = [each for each in found if each.startswith(f"{module}.")]
    found = inside or found
    # a class before a method of the same name
    shortest = min((each.count(".") for each in found), default=0)
    found = [each for each in found if each.count(".") == shortest]
    return found[0] if len(found) == 1 else None


def alias(name: str, described: tuple[str, ...]) -> str | None:
    """The name under which the object with this full name is described."""
    value = look_up(name)
    return _names(described).get(id(value)) if is_definition(value) else None


@cache
def _names(described: tuple[str, ...]) -> dict[int, str]:
    values = {name: look_up(name) for name in described}
    return {id(value): name for name, value in values.items() if is_definition(value)}


def is_definition(value: Any) -> bool:
    """Whether it is a class or function, of which there is one, and not a value such as 0."""
    return inspect.isclass(value) or inspect.isroutine(value)


@cache
def look_up(name: str) -> Any:
    """The object with a full name, such as ``dreamda_aug.amst.AMSTWrapper.label``; or None."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            value = getattr(value, part, None)
        return value
    return None


def is_foreign(name: str) -> bool:
    """Whether a dotted name begins with a module of another library."""
    root, _, rest = name.partition(".")
    return bool(rest) and root in _foreign_roots()


@cache
def _foreign_roots() -> frozenset[str]:
    return frozenset(sys.stdlib_module_names) | {"torch", "torchvision", "numpy", "PIL", "nn"}


def exists(name: str) -> bool:
    """Whether any module of the package defines it."""
    if look_up(name) is not None:
        return True
    head, _, rest = name.partition(".")
    for module in _modules():
        value = vars(module).get(head)
        if value is not None and (not rest or look_into(value, rest)):
            return True
    return False


def look_into(value: Any, path: str) -> bool:
    """Whether a class or value has an attribute of this path, or a dataclass such a field."""
    for part in path.split("."):
        fields = getattr(value, "__dataclass_fields__", {})
        if part in fields:
            return True
        value = getattr(value, part, None)
    return value is not None


@cache
def _modules() -> list[Any]:
    package = importlib.import_module(_PACKAGE)
    found = []
    for each in pkgutil.walk_packages(package.__path__, f"{_PACKAGE}."):
        if not each.name.endswith("__main__"):
            try:
                found.append(importlib.import_module(each.name))
            except ImportError:  # an extra that is not installed
                continue
    return found
