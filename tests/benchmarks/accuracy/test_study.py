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


def test_an_ablation_can_be_thinned(tmp_path, command):
    rows = ["DreamDA, tuned, strength 0.5, seed labels", "DreamDA, tuned, strength 1, seed labels"]
    command("--ablation", "strength", "--replicas", "2", "--arms", *rows,
            "DreamDA, tuned")
    found = json.loads((tmp_path / "out" / "tiny_strength.json").read_text())["runs"]
    assert {run["arm"] for run in found} == set(rows)
    assert {run["pool"] for run in found} == {12} and all(run["diversity"] > 0 for run in found)


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


def test_a_quick_run_takes_the_recorded_choices_and_says_where_they_should_be(
    tmp_path, command, monkeypatch
):
    monkeypatch.setattr("benchmarks.accuracy.__main__.RESULTS", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=r"takes the choices of .*tiny\.json, which is not there"):
        command("--quick")
    command("--arms", "real only", "DreamDA, tuned")
    (tmp_path / "accuracy").mkdir()
    (tmp_path / "out" / "tiny.json").rename(tmp_path / "accuracy" / "tiny.json")
    monkeypatch.setattr("benchmarks.accuracy.__main__.MAIN", ("DreamDA, tuned + classical",))
    command("--quick")
    runs = json.loads((tmp_path / "build" / "quick" / "tiny.json").read_text())["runs"]
    assert {(run["arm"], run["rng_seed"]) for run in runs} == {
        (arm, seed) for arm in ("affine", "DreamDA, tuned + classical") for seed in (0, 1, 2)}
    assert (tmp_path / "build" / "quick" / "pictures" / "tiny_tuned.png").exists()
