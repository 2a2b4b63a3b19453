"""What importing the package costs, and its public names; import-linter holds the walls."""

import subprocess
import sys
import warnings

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


def test_the_old_name_of_the_generator_warns_once():
    vars(dreamda_aug).pop("Generator", None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        from dreamda_aug import Generator
    assert Generator is dreamda_aug.Generator
    from dreamda_aug.generation.tensors import TensorSynthesizer

    assert Generator is TensorSynthesizer and "Generator" not in dreamda_aug.__all__
    assert [(w.category, w.filename) for w in caught] == [(DeprecationWarning, __file__)]
    assert "use dreamda_aug.Synthesizer" in str(caught[0].message)
