"""Options made from signatures: what the parser takes, and what the library is given."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import pytest

from dreamda_aug import Settings
from dreamda_aug.cli import main as entry
from dreamda_aug.cli.main import main
from dreamda_aug.cli.options import Options, read_classes, read_settings, say
from dreamda_aug.errors import StorageError


def work(
    source: str, *, count: int = 3, share: float = 0.0,
    word: Literal["a", "b"] = "a", place: str | Path | None = None,
    text: str | Callable[[int], str] = "", quick: bool | dict[str, int] = False,
    careful: bool = True, several: Sequence[float] = (0.5,), marks: Sequence[str] | None = None,
    again: list[str] | None = None, target: Path, file: Path | None = None,
) -> None:
    """Do it.

    Args:
        source: where ``it`` is.
        count: how many, 100%
            of `them`.
        share: in [0, 1].
        word: either one.
        place, text: for people.
        quick: hurry.
        careful: take care.
        several: numbers.
        marks: words.
        again: may be repeated.
        target: where to.
        file: some other.

    Returns:
        Nothing.
    """


OPTIONS = Options(work)


def parsed(*words):
    parser = argparse.ArgumentParser(exit_on_error=False)
    OPTIONS.add(parser)
    return parser.parse_args([*words, "--target", "t", "from"])


def test_options_are_values_of_the_parameters_types_and_what_was_not_given_is_left_out():
    assert OPTIONS.given(parsed()) == {"source": "from", "target": Path("t")}
    words = ["--count", "5", "--share", "0.5", "--word", "b", "--place", "x/y", "--text", "t",
             "--several", "1.0", "--several", "2.0", "--again", "m", "--again", "n"]
    found = parsed(*words, "--quick", "--no-careful", "--marks", "m", "n", "--file", "f")
    assert OPTIONS.given(found) == {
        "source": "from", "target": Path("t"), "count": 5, "share": 0.5, "word": "b",
        "place": "x/y", "text": "t", "quick": True, "careful": False, "several": [2.0],
        "marks": ["m", "n"], "again": ["m", "n"], "file": Path("f")}
    assert Options(work, "count", "again", "file", "several").again(found) == [
        "--count", "5", "--again", "m", "--again", "n", "--file", "f", "--several", "2.0"]
    for wrong in (["--count", "1.5"], ["--share", "x"], ["--word", "c"]):
        with pytest.raises(argparse.ArgumentError, match=wrong[0]):
            parsed(*wrong)


def test_help_and_defaults_are_those_of_the_library():
    parser = argparse.ArgumentParser()
    OPTIONS.add(parser)
    text = " ".join(parser.format_help().split())
    assert "--count N how many, 100% of them. (default: 3)" in text
    assert "--share X in [0, 1]. (default: 0.0)" in text and "hurry. (def" not in text
    assert "--place PATH for people." in text and "--text TEXT for people." in text
    assert "source where it is." in text and "--no-careful" in text and "Nothing" not in text
    for words in ([], ["from"], ["--target", "t"]):  # without a default they are required
        with pytest.raises(SystemExit):
            parser.parse_args(words)


def test_a_path_of_any_bytes_can_be_said(capsys):
    say("out\udcff")
    assert capsys.readouterr().out == "out\\udcff\n"


def test_settings_are_numbers_words_or_auto_for_what_was_calibrated():
    found = Settings(**read_settings([
        "steps=25", "noise_scale=auto", "replay=0.5", "update_rule=symmetric", "solver=heun",
        "timestep_spacing=scheduler", "source_prompt=a photo", "guidance_interval=[0, 0.5]"]))
    assert found == Settings(
        steps=25, noise_scale=None, replay=0.5, update_rule="symmetric", solver="heun",
        timestep_spacing="scheduler", source_prompt="a photo", guidance_interval=(0, 0.5))
    for wrong in ("steps", "=3"):
        with pytest.raises(ValueError, match=f"expected NAME=VALUE, got '{wrong}'"):
            read_settings([wrong])


def test_class_names_stand_in_a_file_one_in_a_line(tmp_path):
    path = tmp_path / "names"
    path.write_text("cat\n\n dog \n", "utf-8-sig")
    assert read_classes(path) == ["cat", "dog"] and read_classes() is None
    for text in (b"", b"cat\ncat\n", b"\xff"):
        path.write_bytes(text)
        with pytest.raises((ValueError, StorageError), match="names.*: expected"):
            read_classes(path)


@pytest.mark.parametrize("command", entry._COMMANDS)
def test_every_command_describes_all_of_its_options(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and entry._COMMANDS[command][1] in " ".join(text.split())


def test_the_list_of_commands_needs_no_heavy_import(monkeypatch, capsys):
    monkeypatch.setattr(entry.importlib, "import_module", lambda name: pytest.fail(name))
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "recommend" in capsys.readouterr().out
