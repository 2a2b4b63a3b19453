import json
import re

import PIL.Image
import pytest
from expansion.folders import write_images
from pipelines import pixel_pipeline

from dreamda_aug.cli.main import main


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images", {"cat": 3, "dog": 3})


@pytest.fixture
def model(tmp_path):
    pixel_pipeline().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def test_the_demo_does_the_whole_job(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("dreamda_aug.cli.demo.SEEDS_PER_CLASS", 1)
    monkeypatch.setattr("dreamda_aug.cli.demo.EXPANSION_RATIO", 2)
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert "20 synthetic images" in capsys.readouterr().out
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["images"] == 20
    with PIL.Image.open(tmp_path / "grid.png") as picture:
        assert picture.height > 10 * 56
    # what a stranger looks for: other images of the same class
    assert figures["agreement"] >= 0.8
    assert figures["distance"] > 0.1 and figures["diversity"] > 0.1
    files = list((tmp_path / "dataset").rglob("*.png"))
    assert len(files) == 20 and len({file.parent for file in files}) == 10


@pytest.mark.parametrize("command", [
    ["demo"], ["report", "out"], ["regenerate", "out", "00000000_0000"], ["adapt", "images"],
])
def test_a_url_is_refused_by_what_writes_to_this_machine_alone(
    tmp_path, monkeypatch, capsys, command
):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--out", "s3://bucket/x.png"]) == 2
    assert capsys.readouterr().err == (
        f"dreamda {command[0]}: --out must be a path on this machine, got the URL "
        "'s3://bucket/x.png'; write to this machine, and copy it there.\n")
    assert not list(tmp_path.iterdir())


def test_calibrate_writes_a_plot_and_the_next_run_finds_it(folder, model, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    cache = str(tmp_path / "cache")
    arguments = [str(folder), "--model", model, "--cache", cache, "--images", "4"]
    assert main(["calibrate", *arguments, "--expansion-ratio", "2",
                 "--out", str(tmp_path / "plot.png")]) == 0
    assert re.search("chosen: .*noise_scale=", capsys.readouterr().out)
    assert PIL.Image.open(tmp_path / "plot.png").width > 300
    assert main(["preview", *arguments, "--out", str(tmp_path / "p.png")]) == 0
    assert "not calibrated" not in capsys.readouterr().err


def test_preview_measures_what_expand_would_and_both_say_the_same(
    folder, model, tmp_path, few_choices, caplog
):
    arguments = [str(folder), "--model", model, "--cache", str(tmp_path / "cache")]
    assert main(["preview", *arguments, "--images", "1", "--out", str(tmp_path / "p.png")]) == 0
    measured, chosen = [record.getMessage() for record in caplog.records]
    assert "not calibrated for these images yet" in measured and "calibrated: strength=" in chosen
    caplog.clear()
    assert main(["expand", *arguments, "--limit", "2", "--out", str(tmp_path / "out")]) == 0
    assert [record.getMessage() for record in caplog.records] == [chosen]


def test_info_names_versions_cache_and_model(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert "torch " in text and "28×28" in text and "empty" in text


def test_a_transformer_is_calibrated_at_several_blocks_and_made_with_the_best(
    folder, tmp_path, capsys
):
    pytest.importorskip("matplotlib")
    pytest.importorskip("transformers")
    from benchmarks.families import pipelines

    pipelines.dit().save_pretrained(tmp_path / "dit")
    arguments = [str(folder), "--model", str(tmp_path / "dit"), "--cache",
                 str(tmp_path / "cache"), "--images", "4", "--device", "cpu"]
    assert main(["calibrate", *arguments, "--expansion-ratio", "2", "--max-rows", "100",
                 "--max-distance", "1", "--block-indices", "0", "3",
                 "--out", str(tmp_path / "plot.png")]) == 0
    said = capsys.readouterr().out
    best = re.search(r"chosen: .*block_index=(\d).* found again with --block-index (\d)", said)
    assert best and best[1] == best[2] in ("0", "3")
    assert "block 0  " in said and "block 3  " in said
    preview = ["preview", *arguments, "--images", "1", "--expansion-ratio", "1", "--out",
               str(tmp_path / "p.png")]
    assert main([*preview, "--block-index", best[1]]) == 0
    assert "not calibrated" not in capsys.readouterr().err
    assert main([*preview, "--no-calibrate", "--noise-scales", "1", "4", "--low-memory"]) == 0
    with PIL.Image.open(tmp_path / "p.png") as grid:
        assert grid.width > 3 * 56
    assert "was not calibrated for these settings yet" in capsys.readouterr().err
