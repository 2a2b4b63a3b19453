"""The walls between the modules, and what importing costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dreamda_aug

ROOT = Path(dreamda_aug.__file__).parent
# A module may import from those in earlier rows, and from its own row; cli, demo and
# __main__ from all.
ROWS = [
    {"errors", "seeding", "schedule", "bundled", "amst", "distances", "distributions",
     "manifolds", "neighbours", "image_folder", "features", "classifier_files", "metrics",
     "untransformed"},
    {"inversion", "perturbation", "cache"},
    {"settings", "backbones"},
    {"calibration", "recording", "sampling", "guards", "captions"},
    {"generator", "prompts"},
    {"images", "labels"},
    {"transforms", "pictures"},
    {"datasets", "stored", "expansion"},
]
MODULES = sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Names of all imported modules, lazy imports too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
    return names


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_one_way(path):
    part = part_of(path)
    row = next((i for i, row in enumerate(ROWS) if part in row), len(ROWS))
    allowed = set().union(*ROWS[: row + 1])
    used = {name.split(".")[1] for name in imports(path) if name.startswith("dreamda_aug.")}
    if row < len(ROWS):
        assert used <= allowed


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_only_backbones_import_diffusers(path):
    if part_of(path) != "backbones":
        assert not any(name.split(".")[0] == "diffusers" for name in imports(path))


def test_amst_needs_nothing_else_of_the_library():
    used = {name for path in (ROOT / "amst").glob("*.py") for name in imports(path)
            if name.startswith("dreamda_aug.")}
    assert all(name.startswith(("dreamda_aug.amst", "dreamda_aug.errors")) for name in used)


def test_importing_the_package_loads_nothing_heavy():
    code = ("import sys, dreamda_aug; "
            "print([m for m in ('torch', 'diffusers', 'numpy') if m in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    assert sorted(dreamda_aug.__all__) == sorted(dreamda_aug._MODULES)
    for name in dreamda_aug.__all__:
        assert getattr(dreamda_aug, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = dreamda_aug.nothing
