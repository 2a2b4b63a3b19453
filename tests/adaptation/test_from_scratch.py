"""`train`: a model of one's own images, whatever happens on the way."""

import io
import json

import PIL.Image
import pytest
import torch
from adaptation_images import squares
from safetensors import safe_open
from safetensors.torch import save_file

from dreamda_aug import load_model, train
from dreamda_aug.adaptation import from_scratch, loop, new_model
from dreamda_aug.errors import AdaptationError, StorageError

QUICK = dict(image_size=16, width="small", train_steps=8, batch_size=4, device="cpu")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Measurements after every third step; samples in two steps."""
    monkeypatch.setattr(from_scratch, "_EVALUATE_EVERY", 3)
    monkeypatch.setattr(new_model, "_SHEET_STEPS", 2)


@pytest.fixture
def grey_classes(image_folder):
    return image_folder, dict(grey=True)


@pytest.fixture
def colour_without_labels():
    return squares(12, 3, 20), dict(labels=None, flip=0.5)


def _without_losses_by_image(path):
    """As checkpoints were before they kept the loss of each image at each measurement."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    progress = json.loads(metadata["progress"])
    progress["before"] = progress.pop("measured")[0]
    save_file(tensors, path, metadata | {"progress": json.dumps(progress)})


@pytest.mark.parametrize("kind", ["grey_classes", "colour_without_labels"])
def test_an_interrupted_training_resumes_to_the_same_model(kind, request, tmp_path, monkeypatch):
    source, options = request.getfixturevalue(kind)
    state = torch.get_rng_state()
    straight = train(source, tmp_path / "straight", **QUICK, **options)
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
    _without_losses_by_image(tmp_path / "broken" / "checkpoint.safetensors")
    resumed = train(source, tmp_path / "broken", **QUICK, **options)
    assert steps[4:] == [4, 4, 5, 6, 7]
    assert resumed.history == straight.history and straight.loss < straight.history[0][2]
    assert [entry[0] for entry in straight.history] == [0, 3, 6, 8]
    for name in (WEIGHTS, "samples.png"):
        assert (tmp_path / "broken" / name).read_bytes() == (
            tmp_path / "straight" / name).read_bytes()
    model = load_model(tmp_path / "broken", device="cpu")
    labeled = kind == "grey_classes"
    assert (model.condition_kind, model.channels, model.guidable) == (
        ("class", 1, True) if labeled else ("none", 3, False))
    assert PIL.Image.open(tmp_path / "broken" / "samples.png").size == (
        8 * 17 + 1, (2 if labeled else 8) * 17 + 1)


def test_the_model_loads_with_its_classes_and_its_sheet_has_a_row_for_each(image_folder, tmp_path):
    found = train(image_folder, tmp_path / "model", grey=True, **QUICK)
    assert found.class_names == ["left", "right"] and found.steps == 8
    model = load_model(tmp_path / "model", device="cpu")
    assert model.class_names == ["left", "right"] and model.conditioning.null_class == 2
    card = json.loads((tmp_path / "model" / "training.json").read_text())
    assert card["data"] == {"name": "images", "images": 7, "held_out": 5}
    assert str(tmp_path) not in json.dumps(card)


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
    monkeypatch.setattr(new_model.NewModel, "after_step", lambda self: None)
    monkeypatch.setattr(from_scratch, "_PATIENCE", 1)
    found = train(image_folder, tmp_path / "model", **QUICK | {"train_steps": 1000})
    assert (found.steps, found.best_step) == (3, 0)


def test_training_stops_when_its_time_is_over(image_folder, tmp_path):
    found = train(image_folder, tmp_path / "model", minutes=1e-5,
                  **QUICK | {"train_steps": 10**6})
    assert found.steps == 1 and [entry[0] for entry in found.history] == [0, 1]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_time_left_and_memory_are_shown_on_a_terminal_and_in_the_log_elsewhere(
    image_folder, tmp_path, monkeypatch, caplog
):
    for stream in (io.StringIO(), Terminal()):
        caplog.clear()
        monkeypatch.setattr("sys.stderr", stream)
        out = tmp_path / type(stream).__name__
        train(image_folder, out, progress=True, **QUICK)
        lines = [record.message for record in caplog.records]
        assert lines[0].startswith(
            "training on 7 images, measuring on 5, in 2 classes; 1.3 million parameters")
        shown = stream.getvalue() if stream.isatty() else lines[1]
        assert " of 8, held-out loss " in shown
        assert " s left at most, " in shown and "B of memory" in shown
        assert (len(lines) == 1) is stream.isatty()
        assert stream.isatty() or stream.getvalue() == ""


def test_a_folder_of_one_class_and_mixed_sizes_with_a_damaged_file_is_trained_on(tmp_path):
    folder = tmp_path / "images" / "only"
    folder.mkdir(parents=True)
    for number in range(6):
        PIL.Image.new("RGB", (10 + 7 * number, 33), (40 * number, 0, 9)).save(
            folder / f"{number}.png")
    (folder / "damaged.png").write_bytes((folder / "3.png").read_bytes()[:60])
    with pytest.warns(UserWarning, match="1 images could not be read.*only/damaged.png"):
        found = train(tmp_path / "images", tmp_path / "model", **QUICK)
    assert found.class_names == ["only"] and found.left_out[0].startswith("only/damaged.png")
    assert load_model(tmp_path / "model", device="cpu").guidable


@pytest.mark.parametrize("options, message", [
    (dict(image_size=30), "must be a multiple of 4 for small models, got 30; use 28 or 32"),
    (dict(image_size=4), "image_size must be an integer >= 8 and <= 1024, got 4"),
    (dict(width="huge"), "width must be 'small', 'medium' or 'large', got 'huge'"),
    (dict(minutes=0), "minutes must be above 0, got 0"),
    (dict(train_steps=0), "train_steps must be an integer >= 1, got 0"),
    (dict(flip=2), r"flip must lie in \[0, 1\], got 2"),
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
    with pytest.raises(FileNotFoundError, match="nothing"):
        train(tmp_path / "no such", tmp_path / "model", **QUICK)
    assert not (image_folder / "model").exists() and not (tmp_path / "model").exists()
