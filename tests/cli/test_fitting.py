import json

import numpy as np
import PIL.Image
import pytest
from pipelines import pixel_pipeline

from dreamda_aug.cli.main import main


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    for name, low in (("left", 2), ("right", 8)):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            array = rng.integers(0, 30, (16, 16), dtype=np.uint8)
            array[4:12, low : low + 6] = 230
            PIL.Image.fromarray(array).save(tmp_path / "images" / name / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def prior(tmp_path):
    pixel_pipeline("v_prediction", num_classes=3).save_pretrained(tmp_path / "prior")
    (tmp_path / "prior" / "training.json").write_text('{"class_names": ["up", "down"]}')
    return str(tmp_path / "prior")


def test_adapt_then_expand_then_regenerate(images, prior, tmp_path, capsys):
    out, data = tmp_path / "adapted", tmp_path / "data"
    assert main(["adapt", str(images), "--model", prior, "--out", str(out), "--rank", "2",
                 "--train-steps", "15", "--learning-rate", "0.005", "--evaluate-every", "5",
                 "--class-map", "left=up", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "class left: began as class 'up'" in text and "right: began as the null class" in text
    assert "held-out loss" in text and text.strip().endswith(": helped")
    assert json.loads((out / "adaptation.json").read_text())["identity"]["rank"] == 2

    expand = ["expand", str(images), "--model", prior, "--lora", str(out), "--expansion-ratio", "1",
              "--set", "steps=2", "--limit", "2", "--device", "cpu", "--out"]
    assert main([*expand, str(data)]) == 0
    line = json.loads((data / "manifest.jsonl").read_text().splitlines()[0])
    assert main(["regenerate", str(data), line["id"], "--device", "cpu"]) == 0
    assert "equal to the stored image" in capsys.readouterr().out
    del expand[4:6]
    assert main([*expand, str(data)]) == 2  # without the weights it is another model
    assert "begun with other settings" in capsys.readouterr().err


def test_train_writes_a_model_that_other_commands_take(images, tmp_path, capsys):
    model = tmp_path / "model"
    command = ["train", str(images), "--out", str(model), "--image-size", "16", "--grey", "--width",
               "small", "--train-steps", "4", "--batch-size", "4", "--device", "cpu"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "held-out loss" in said and (model / "samples.png").exists()
    assert main(command) == 0 and capsys.readouterr().out == said  # a finished one is read
    assert main(["info", "--model", str(model)]) == 0
    assert "16×16, 1 channel(s), condition: class" in capsys.readouterr().out


def test_evaluate_recommends_a_command_and_keeps_its_numbers(images, prior, tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main(["evaluate", str(images), "--model", prior, "--set", "steps=2", "--no-calibrate",
                 "--preset", "fast", "--expansion-ratios", "1", "--draws", "6", "--shots", "2",
                 "--train-steps", "8", "--out", str(out), "--device", "cpu"]) == 0
    assert "RandAugment" in capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [arm["name"] for arm in found["arms"][2:]] == ["fast x1"]
    assert found["command"] == (
        f"dreamda expand {images} --out OUT --model {prior} --set steps=2 --no-calibrate "
        "--preset {preset} --expansion-ratio {expansion_ratio}")
