"""`train`: a model of one's own images, whatever happens on the way."""

import io
import json
import re
import sys
import time
from pathlib import Path

import PIL.Image
import pytest
import torch
from adaptation_images import squares

from dreamda_aug import load_model, train
from dreamda_aug.adaptation import from_scratch, loop
from dreamda_aug.errors import AdaptationError, StorageError

QUICK = dict(image_size=16, width="small", train_steps=8, batch_size=4, device="cpu")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measurements after every third step."""
    monkeypatch.setattr(from_scratch, "_EVALUATE_EVERY", 3)


@pytest.fixture
def grey_classes(image_folder):
    return image_folder, dict(grey=True)


@pytest.fixture
def colour_without_labels():
    return squares(12, 3, 20), dict(labels=None, flip=0.5)


@pytest.mark.parametrize("kind", ["grey_classes", "colour_without_labels"])
def test_an_interrupted_training_resumes_to_the_same_model(kind, request, tmp_path, monkeypatch):
    source, options = request.getfixturevalue(kind)
    state = torch.get_rng_state()
    straight = train(source, tmp_path / "straight", progress=True, **QUICK, **options)
    assert torch.equal(torch.get_rng_state(), state)  # dropout and first weights have their own

    steps, step = [], loop.TrainingLoop._step

    def stop(self, number):
        steps.append(number)
        if steps == [0, 1, 2, 3, 4]:  # neither at a measurement nor at its end
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(loop.TrainingLoop, "_step", stop)
    monkeypatch.setattr(loop, "_SAVE_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        train(source, tmp_path / "broken", **QUICK, **options)
    assert [path.name for path in (tmp_path / "broken").iterdir()] == ["checkpoint.safetensors"]
    with pytest.raises(AdaptationError, match="width was 'small' and is 'medium'"):
        train(source, tmp_path / "broken", **QUICK | {"width": "medium"}, **options)
    resumed = train(source, tmp_path / "broken", **QUICK, **options)
    assert steps[4:] == [4, 4, 5, 6, 7]
    assert resumed.history == straight.history and straight.loss < straight.history[0][2]
    assert [entry[0] for entry in straight.history] == [0, 3, 6, 8]
    for name in (WEIGHTS, "samples.png"):
        assert (tmp_path / "broken" / name).read_bytes() == (
            tmp_path / "straight" / name).read_bytes()
    model = load_model(tmp_path / "broken", device="cpu")
    labeled = kind == "grey_classes"
    assert (model.class_names, model.channels, model.guidable) == (
        (["left", "right"], 1, True) if labeled else (None, 3, False))
    card = (tmp_path / "broken" / "training.json").read_text()
    assert str(tmp_path) not in card and json.loads(card)["data"]["held_out"] == 5
    assert PIL.Image.open(tmp_path / "broken" / "samples.png").size == (
        8 * 17 + 1, (2 if labeled else 8) * 17 + 1)


def test_a_finished_folder_returns_its_result_and_refuses_other_settings(
    image_folder, tmp_path, caplog
):
    found = train(image_folder, tmp_path / "model", **QUICK)
    before = {path: path.read_bytes() for path in (tmp_path / "model").rglob("*.*")}
    assert train(image_folder, tmp_path / "model", **QUICK | {"train_steps": 50}) == found
    assert "model holds the finished model; delete it to train anew" in caplog.text
    with pytest.raises(AdaptationError, match="grey was False and is True"):
        train(image_folder, tmp_path / "model", grey=True, **QUICK)
    (image_folder / "left" / "0.png").unlink()
    with pytest.raises(AdaptationError, match="images was .* and is"):
        train(image_folder, tmp_path / "model", **QUICK)
    assert before == {path: path.read_bytes() for path in (tmp_path / "model").rglob("*.*")}


def test_training_stops_where_the_loss_no_longer_falls(image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(from_scratch.NewModel, "after_step", lambda self: None)
    monkeypatch.setattr(from_scratch, "_PATIENCE", 1)
    found = train(image_folder, tmp_path / "model", **QUICK | {"train_steps": 1000})
    assert (found.steps, found.best_step) == (3, 0)


def test_training_stops_when_its_time_is_over(image_folder, tmp_path):
    found = train(image_folder, tmp_path / "model", minutes=1e-5,
                  **QUICK | {"train_steps": 10**6})
    assert found.steps == 1 and [entry[0] for entry in found.history] == [0, 1]


@pytest.mark.parametrize("is_terminal", [False, True])
def test_time_left_and_memory_are_shown_on_a_terminal_and_in_the_log_elsewhere(
    image_folder, tmp_path, monkeypatch, caplog, is_terminal
):
    monkeypatch.setattr("sys.stderr", stream := io.StringIO())
    stream.isatty = lambda: is_terminal
    train(image_folder, tmp_path / "model", progress=True, **QUICK)
    lines = [record.message for record in caplog.records[1:]]
    shown = stream.getvalue() if is_terminal else lines[0]
    assert " of 8, held-out loss " in shown and " left at most, " in shown and " of memory" in shown
    assert (lines == []) is is_terminal is (stream.getvalue() != "")


@pytest.mark.parametrize("options, most", [
    (dict(train_steps=600), None), (dict(train_steps=10**6, minutes=2), 2.0)])
def test_what_training_takes_is_measured_and_stated_before_its_first_step(
    options, most, image_folder, tmp_path, monkeypatch, caplog
):
    losses = from_scratch.NewModel.losses
    monkeypatch.setattr(from_scratch.NewModel, "losses", lambda *args: (
        time.sleep(0.2), losses(*args))[1])
    monkeypatch.setattr(loop.TrainingLoop, "_step", lambda *_: sys.exit())
    monkeypatch.setattr(loop, "peak_memory", lambda device: 10**8)
    with pytest.raises(SystemExit):
        train(image_folder, tmp_path / "model", progress=True, **QUICK | options)
    found = re.fullmatch(
        r"7 images to train on, 5 to measure on, in 2 classes; 1\.3 million parameters; (.*) s a "
        r"step, about (.*) minutes at most; (.*) MB of memory", caplog.records[-1].message)
    seconds, minutes, megabytes = map(float, found.groups())
    assert 0.2 <= seconds < 1
    assert minutes == most if most else seconds * 10 - 0.1 < minutes < seconds * 10 + 5
    assert megabytes == pytest.approx(100 + 2 * 4 * 1.3, abs=0.5)  # AdamW's two moments
    assert list((tmp_path / "model").iterdir()) == []


def test_the_peak_of_memory_is_that_of_the_system():
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("this system has no /proc")
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]) * 1024
    assert loop.peak_memory(torch.device("cpu")) == pytest.approx(peak, rel=0.02)


@pytest.mark.parametrize("options, message", [
    (dict(image_size=30), "must be a multiple of 4 for small models, got 30; use 28 or 32"),
    (dict(width="huge"), "width must be 'small', 'medium' or 'large', got 'huge'"),
    (dict(minutes=0), "minutes must be above 0, got 0"),
])
def test_bad_arguments_are_refused(options, message, image_folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(image_folder, tmp_path / "model", **QUICK | options)
    assert not (tmp_path / "model").exists()


def test_bad_folders_are_refused_and_left_as_they_are(image_folder, tmp_path):
    with pytest.raises(ValueError, match="at least 4 images.*got 1"):
        train(squares(1, 3), tmp_path / "one", labels=None, **QUICK)
    with pytest.raises(ValueError, match="out must lie outside the images' folder"):
        train(image_folder, image_folder / "model", **QUICK)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    with pytest.raises(AdaptationError, match="holds other files, such as 'thesis.tex'"):
        train(image_folder, tmp_path / "full", **QUICK)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "training.json").write_text('{"class_names": ["left"]}')
    with pytest.raises(StorageError, match="expected dreamda-model 1, found"):
        train(image_folder, tmp_path / "old", **QUICK)
    assert not (image_folder / "model").exists()
