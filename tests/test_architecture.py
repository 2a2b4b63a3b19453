"""What importing the package costs, and its public names; import-linter holds the walls."""

import subprocess
import sys

import pytest

import dreamda_aug


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

