"""Every public name has its place in the reference."""

import importlib
import re
from pathlib import Path

import pytest

import dreamda_aug.errors

REFERENCE = Path(__file__).parents[2] / "docs/api"
PUBLIC = ["dreamda_aug", "dreamda_aug.adaptation", "dreamda_aug.amst", "dreamda_aug.models",
          "dreamda_aug.datasets", "dreamda_aug.evaluation", "dreamda_aug.expansion",
          "dreamda_aug.metrics", "dreamda_aug.report"]

_DIRECTIVE = re.compile(r"^\.\. (autoclass|autofunction|autodata|data|automodule|module|"
                        r"currentmodule):: (\S+)\n((?:   :.*\n)*)", re.MULTILINE)


def named(module: str, name: str) -> object:
    """What a name of the reference stands for."""
    for start in ("", f"{module}."):
        place, _, last = f"{start}{name}".rpartition(".")
        try:
            return getattr(importlib.import_module(place), last)
        except (ImportError, AttributeError, ValueError):
            continue
    raise AssertionError(f"{name} is described on the page of {module}, and does not exist")


def described() -> list[tuple[str, object]]:
    """Names that the pages describe, and what they stand for."""
    found: list[tuple[str, object]] = []
    for page in sorted(REFERENCE.glob("*.rst")):
        module = ""
        for kind, name, options in _DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            if kind in ("module", "currentmodule"):
                module = name
            elif kind == "automodule":
                left_out = re.search(r":exclude-members: (.*)", options)
                without = left_out[1].split(", ") if left_out else []
                public = getattr(importlib.import_module(name), "__all__", [])
                found += [(each, named(name, each)) for each in public if each not in without]
            else:
                found.append((name, named(module, name)))
    return found


@pytest.fixture(scope="module")
def reference() -> list[tuple[str, object]]:
    return described()


@pytest.mark.parametrize("module", PUBLIC)
def test_every_public_name_is_described(module, reference):
    loaded = importlib.import_module(module)
    known = {id(value) for _, value in reference}
    assert [name for name in loaded.__all__ if id(getattr(loaded, name)) not in known] == []


def test_the_public_names_are_few(reference):
    errors = [value for value in vars(dreamda_aug.errors).values() if isinstance(value, type)]
    assert len(reference) + len(errors) <= 75
