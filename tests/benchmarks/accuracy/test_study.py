"""The whole command on a tiny task: it resumes, can be thinned, and takes earlier choices."""

import json
from dataclasses import replace

import pytest

from benchmarks.accuracy import recipes, study
from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.tasks import TASKS


@pytest.fixture
def command(tmp_path, monkeypatch, setup_with_model):
    """The command on a tiny task: call it with further arguments."""
    setup = setup_with_model
    task = replace(setup.task, guidances=(1.0,), weak_views=((0.0, 0.1),), classical=("affine",))
    monkeypatch.setattr(recipes, "TUNED", recipes.TUNED[:1])
    monkeypatch.setitem(TASKS, "fashion_mnist", task)

    def call(*arguments: str) -> None:
        main([
            "fashion_mnist", "--data", "none", "--state", str(setup.state),
            "--out", str(tmp_path / "out"), "--rng-seeds", "0", "1", "--processes", "1",
            "--model", setup.model, "--device", "cpu", *arguments,
        ])  # fmt: skip

    return call


def test_the_whole_command_resumes_to_the_same_json(tmp_path, command):
    arms = ("--arms", "real only", "DreamDA, tuned, AMST")
    command(*arms)
    first = (tmp_path / "out" / "tiny.json").read_text()
    facts = json.loads(first)
    assert {run["steps"] for run in facts["runs"]} == {8} and len(facts["runs"]) == 4
    assert facts["choices"]["tuned"]["chosen"] == 0
    command(*arms)
    assert (tmp_path / "out" / "tiny.json").read_text() == first
    assert (tmp_path / "out" / "tiny.png").exists()
    assert "| DreamDA, tuned, AMST |" in (tmp_path / "out" / "tiny.md").read_text()


def test_choices_of_an_earlier_result_are_taken_and_others_refused(tmp_path, command, monkeypatch):
    arms = ("--arms", "real only", "DreamDA, tuned")
    command(*arms)
    earlier = tmp_path / "earlier.json"
    earlier.write_text((tmp_path / "out" / "tiny.json").read_text())
    monkeypatch.setattr(study, "compare", None)  # would fail if it were called
    command(*arms, "--choices", str(earlier))
    assert (tmp_path / "out" / "tiny.json").read_text() == earlier.read_text()
    monkeypatch.setattr(recipes, "TUNED", ((0.7, 0.0, 0.0, (0.0, 1.0)),))
    with pytest.raises(SystemExit, match="today's candidates"):
        command(*arms, "--choices", str(earlier))


def test_a_dry_run_counts_what_is_missing(command, capsys):
    arms = ("--arms", "real only", "DreamDA, tuned")
    command(*arms, "--dry-run")
    text = capsys.readouterr().out
    assert "4 of 4 runs are missing, 32 optimizer steps; they need 2 pools" in text
    command(*arms)
    command(*arms, "--dry-run")
    assert "0 of 4 runs are missing" in capsys.readouterr().out
