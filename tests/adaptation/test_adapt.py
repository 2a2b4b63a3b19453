"""The whole way: images and a prior to files, and back into a model."""

import json
import re
import subprocess
import sys

import pytest
import torch
from adaptation_images import squares
from pipelines import pixel_pipeline
from safetensors.torch import load_file

from dreamda_aug import ModelSpec, adapt, load_model
from dreamda_aug.adaptation import AdaptationSettings, loop
from dreamda_aug.adaptation.training_images import held_out_losses, noise_levels, read_images
from dreamda_aug.errors import AdaptationError, ModelError, StorageError
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models.unet import UNetModel

QUICK = dict(rank=2, train_steps=20, learning_rate=5e-3, batch_size=4, evaluate_every=10)
LORA, CARD = "pytorch_lora_weights.safetensors", "adaptation.json"


def on_cpu(folder):
    return ModelSpec(folder, "cpu")


def predict(model):
    x_t = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    return model.predict(x_t, torch.tensor(500), model.embed(["right"]))


def test_adaptation_helps_is_saved_and_loads_back_equal_in_a_fresh_process(
    class_folder, image_folder, tmp_path
):
    out = tmp_path / "adapted"
    (image_folder / "left" / "broken.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match=r"left/broken\.png"):
        found = adapt(image_folder, on_cpu(class_folder), out, **QUICK)
    assert found.verdict == "helped" and found.after < found.before and found.best_step > 0
    assert found.started_from == {"left": "class 'left'", "right": "the null class"}
    assert sorted(path.name for path in out.iterdir()) == [
        CARD, "class_embedding.safetensors", LORA]
    # the card is for other people's eyes: a model and a broken image, without the way to them
    card = (out / CARD).read_text()
    assert str(tmp_path) not in card and json.loads(card)["base"]["name"] == "prior"
    assert found.left_out == ["left/broken.png (UnidentifiedImageError)"]

    prior, adapted = (load_model(class_folder, lora=lora, device="cpu") for lora in (None, out))
    assert adapted.class_names == ["left", "right"] and adapted.guidable
    assert adapted.lora == str(out) and prior.lora is None
    assert adapted.fingerprint != prior.fingerprint
    code = f"""
import torch
from safetensors.torch import save_file
from dreamda_aug import load_model
torch.set_num_threads(1)
model = load_model({str(class_folder)!r}, lora={str(out)!r}, device="cpu")
x_t = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
output = model.predict(x_t, torch.tensor(500), model.embed(["right"]))
save_file({{"output": output}}, {str(tmp_path / 'output.safetensors')!r})
print(model.fingerprint)
"""
    fresh = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                           check=True)
    assert fresh.stdout.strip() == adapted.fingerprint
    assert torch.equal(load_file(tmp_path / "output.safetensors")["output"], predict(adapted))


def test_the_loaded_model_has_the_loss_of_the_card(class_folder, tmp_path):
    images = squares(12)
    found = adapt(images, on_cpu(class_folder), tmp_path / "adapted", labels=None, **QUICK)
    model = load_model(class_folder, lora=tmp_path / "adapted", device="cpu")
    assert model.class_names == ["left", "up", "down"]  # without labels they stay

    read = read_images(open_seed_images(images, labels=None), model, 0.2, 0)
    null = model.embed([None])["class_labels"]

    def losses(model):
        return held_out_losses(
            lambda x, t, labels: model.predict(x, t, {"class_labels": null.expand(len(x))}),
            read.held_out, read.held_out_labels, noise_levels(model), 0).mean()

    assert losses(model).item() == pytest.approx(found.after, rel=1e-4)
    prior = load_model(class_folder, device="cpu")
    assert losses(prior).item() == pytest.approx(found.before, rel=1e-6)


def test_an_interrupted_training_goes_on_to_the_same_files(
    class_folder, image_folder, tmp_path, monkeypatch, caplog
):
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    expected = adapt(image_folder, on_cpu(class_folder), straight, progress=True, **QUICK)
    assert re.match(r"7 images to train on, 5 to measure on, in 2 classes; .* s a step, about .* "
                    r"minutes at most; .* of memory", caplog.messages[0])
    step = loop.TrainingLoop._step
    with monkeypatch.context() as patch:
        def stop(self, number):
            if number == 14:
                raise KeyboardInterrupt
            return step(self, number)

        patch.setattr(loop.TrainingLoop, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            adapt(image_folder, on_cpu(class_folder), broken, **QUICK)
    assert [path.name for path in broken.iterdir()] == ["checkpoint.safetensors"]
    with pytest.raises(AdaptationError, match="rank was 2 and is 3"):
        adapt(image_folder, on_cpu(class_folder), broken, **QUICK | {"rank": 3})
    steps = []
    monkeypatch.setattr(loop.TrainingLoop, "_step",
                        lambda self, number: steps.append(number) or step(self, number))
    found = adapt(image_folder, on_cpu(class_folder), broken, **QUICK)
    assert steps == list(range(10, 20)) and found.history == expected.history
    for name in (LORA, "class_embedding.safetensors"):
        assert (broken / name).read_bytes() == (straight / name).read_bytes()

    # finished: the same call returns the result, and others are refused
    again = adapt(image_folder, on_cpu(class_folder), broken, **QUICK)
    assert again == found and len(steps) == 10
    with pytest.raises(AdaptationError, match="train_steps was 20 and is 30"):
        adapt(image_folder, on_cpu(class_folder), broken, **QUICK | {"train_steps": 30})


def test_the_best_step_is_kept_and_no_gain_is_said_aloud(class_folder, image_folder, tmp_path):
    noise = torch.rand(12, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="adaptation did not help on held-out images"):
        found = adapt(noise, on_cpu(class_folder), tmp_path / "adapted", labels=None,
                      **QUICK | {"learning_rate": 0.2, "patience": 1, "train_steps": 40})
    assert found.verdict == "did not help" and found.best_step == 0 and found.steps == 10
    adapted = load_model(class_folder, lora=tmp_path / "adapted", device="cpu")
    assert torch.equal(
        adapted.unet.conv_in.weight, load_model(class_folder, device="cpu").unet.conv_in.weight)


def test_without_early_stopping_one_image_is_enough(class_folder, tmp_path):
    found = adapt(squares(1), on_cpu(class_folder), tmp_path / "adapted", labels=None,
                  early_stopping=False, **QUICK | {"train_steps": 3})
    assert (found.verdict, found.steps, found.before) == ("not measured", 3, None)
    assert json.loads((tmp_path / "adapted" / CARD).read_text())["data"] == {
        "name": "Tensor", "images": 1, "held_out": 0, "labels": False}


def test_the_prior_is_held_on_to(class_folder, tmp_path):
    """With a heavy weight on the prior's own predictions, the weights hardly move."""
    def moved(weight):
        out = tmp_path / f"weight{weight}"
        adapt(squares(4), on_cpu(class_folder), out, labels=None, early_stopping=False,
              prior_weight=weight, **QUICK | {"train_steps": 15})
        x_t, t = torch.zeros(1, 1, 16, 16), torch.tensor(500)
        loaded = [load_model(class_folder, lora=lora, device="cpu") for lora in (None, out)]
        rows = [b.predict(x_t, t, b.embed([None])) for b in loaded]
        return (rows[0] - rows[1]).square().mean().item()

    assert moved(30.0) < 0.5 * moved(0.0)


def test_bad_settings_and_cards_are_refused(class_folder, image_folder, tmp_path):
    with pytest.raises(ValueError, match="settings must be given alone, got rank too"):
        adapt(image_folder, class_folder, tmp_path / "a", settings=AdaptationSettings(), rank=2)
    with pytest.raises(ValueError, match="class_map is for class-conditional"):
        adapt(image_folder, class_folder, tmp_path / "a", labels=None, class_map={"left": "up"})
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / CARD).write_text('{"format": "a poem"}')
    with pytest.raises(ModelError, match="expected dreamda-adaptation 1, found"):
        load_model(class_folder, lora=tmp_path / "card")
    with pytest.raises(ModelError, match="could not load 'somebody/some-lora' as LoRA weights"):
        load_model(class_folder, lora="somebody/some-lora")
    with pytest.raises(ValueError, match="train_steps must be given where early_stopping is False"):
        AdaptationSettings(early_stopping=False)
    with pytest.raises(ValueError, match=r"held_out must lie in \(0, 0.5\], got 0.9"):
        AdaptationSettings(held_out=0.9)


def test_a_loss_that_is_nan_is_an_error(class_folder, tmp_path):
    pipeline = pixel_pipeline("v_prediction", num_classes=4)
    with torch.no_grad():
        pipeline.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(AdaptationError, match="training loss is nan at step 0"):
        adapt(squares(4), UNetModel(pipeline, null_class=3), tmp_path / "adapted", labels=None,
              early_stopping=False, train_steps=2)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", CARD])
def test_a_damaged_file_is_named(class_folder, tmp_path, name):
    (tmp_path / "adapted").mkdir()
    (tmp_path / "adapted" / name).write_bytes(b"torn")
    with pytest.raises((AdaptationError, StorageError), match=f"{name}: expected "):
        adapt(squares(4), on_cpu(class_folder), tmp_path / "adapted", labels=None, **QUICK)


def test_half_precision_keeps_lora_in_float32(class_folder, tmp_path):
    out = tmp_path / "adapted"
    model = ModelSpec(class_folder, "cpu", "float16")
    found = adapt(squares(12), model, out, labels=None, **QUICK)
    assert found.verdict == "helped"
    assert all(t.dtype == torch.float32 for t in load_file(out / LORA).values())
    # the base in float32 is the same model
    assert load_model(class_folder, lora=out, device="cpu").dtype == torch.float32
