"""The training script on a folder of one's own."""

import importlib.util
import json
from pathlib import Path

import PIL.Image
import pytest
import torch

from dreamda_aug import load_model

SCRIPT = Path(__file__).parents[2] / "examples/train_backbone.py"


@pytest.fixture
def folder(tmp_path):
    """Class folders with images whose left half is white."""
    for name in ("left", "more"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(6):
            image = PIL.Image.new("RGB", (20, 16))
            image.paste("white", (0, 0, 10, 16))
            image.save(tmp_path / "images" / name / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("train_model", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def train(folder, script, tmp_path, monkeypatch):
    """Run the script with further arguments; its record."""
    def call(*arguments: str, out: str = "model") -> dict:
        monkeypatch.setattr("sys.argv", [
            "train_backbone.py", "--data", str(folder), "--out", str(tmp_path / out),
            "--image-size", "16", "--widths", "8", "16", "--batch-size", "4", "--held-out", "4",
            "--device", "cpu", *arguments])  # fmt: skip
        script.main()
        return json.loads((tmp_path / out / "training.json").read_text())

    return call


def test_it_trains_goes_on_and_loads(train, tmp_path):
    first = train("--steps", "2")
    assert first["steps"] == 2 and first["images"] == 8 and first["class_names"] == ["left", "more"]
    assert train("--steps", "4")["steps"] == 4
    model = load_model(tmp_path / "model")
    assert model.channels == 3 and model.guidable
    assert (tmp_path / "model" / "samples.png").exists()


def test_it_starts_from_given_weights(train, tmp_path):
    train("--steps", "2")
    train("--steps", "1", "--start-from", str(tmp_path / "model"), "--learning-rate", "1e-12",
          "--widths", "64", out="second")
    first, second = (load_model(tmp_path / name).unet for name in ("model", "second"))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_images_are_mirrored_only_where_that_is_asked_for(script, train, monkeypatch):
    seen = []
    loss = script.denoising_loss
    monkeypatch.setattr(script, "denoising_loss", lambda unet, scheduler, x_0, *rest: (
        seen.append((unet.training, x_0[..., 0].flatten())) or loss(unet, scheduler, x_0, *rest)))

    def white_at_the_left() -> tuple[bool, bool]:
        """Whether all images are, in training and held out."""
        found = tuple(bool((torch.cat([each for is_training, each in seen if is_training == which])
                            > 0).all()) for which in (True, False))
        seen.clear()
        return found

    train("--steps", "4", "--grey")
    assert white_at_the_left() == (True, True)
    train("--steps", "4", "--grey", "--random-flip", out="flipped")
    assert white_at_the_left() == (False, True)
