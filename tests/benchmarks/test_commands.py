"""Every sub-package is a command that says how it is used."""

import importlib

import pytest


@pytest.mark.parametrize("name", ["accuracy", "speed", "scale", "digits", "families"])
def test_help_names_the_command_as_it_is_called(name, capsys):
    command = importlib.import_module(f"benchmarks.{name}.__main__")
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: python -m benchmarks.{name} ")
    assert f"    python -m benchmarks.{name}" in text
