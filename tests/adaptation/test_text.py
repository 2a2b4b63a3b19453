"""Text-to-image priors: plain prompts, and LoRA files of diffusers' own kind."""

import pytest
import torch
from adaptation_images import squares
from diffusers import DiffusionPipeline

from dreamda_aug import ModelSpec, adapt, load_model

QUICK = dict(rank=2, train_steps=10, learning_rate=5e-3, batch_size=4, evaluate_every=5)
NAMES = ["left", "right"]
X, T = torch.linspace(-1, 1, 256).view(1, 4, 8, 8), torch.tensor(500)


def images(model):
    return squares(12, 3, 16), [0, 1] * 6


def predict(model, prompt="A photo of a left."):
    return model.predict(X, T, model.embed([prompt]))


@pytest.mark.parametrize("kind", ["sd_folder", "sdxl_folder"])
def test_the_file_is_what_diffusers_itself_loads(kind, request, tmp_path):
    folder, out = request.getfixturevalue(kind), tmp_path / "adapted"
    x, labels = images(folder)
    found = adapt(x, ModelSpec(folder, "cpu"), out, labels=labels, class_names=NAMES, **QUICK)
    assert found.verdict == "helped"
    assert found.started_from == {"left": "'A photo of a left.'", "right": "'A photo of a right.'"}
    ours = load_model(folder, lora=out, device="cpu")
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(out))
    assert {name.split(".")[0] for name, _ in pipeline.unet.named_parameters() if "lora" in name}
    theirs = load_model(pipeline)
    torch.testing.assert_close(predict(ours), predict(theirs), atol=1e-5, rtol=1e-4)
    prior = load_model(folder, device="cpu")
    assert not torch.allclose(predict(ours), predict(prior), atol=1e-3)
    # the file alone, as anybody's LoRA
    alone = load_model(folder, lora=out / "pytorch_lora_weights.safetensors", device="cpu")
    torch.testing.assert_close(predict(alone), predict(ours), atol=1e-5, rtol=1e-4)
    assert not any("lora" in name for name in alone.unet.state_dict())


def test_images_without_labels_are_trained_under_the_empty_prompt(sd_folder, tmp_path):
    x, _ = images(sd_folder)
    found = adapt(x, ModelSpec(sd_folder, "cpu"), tmp_path / "adapted", labels=None,
                  gradient_checkpointing=True, **QUICK)
    assert found.verdict == "helped" and found.started_from == {}


def test_a_lent_pipeline_keeps_its_text_encoder_and_weights(sd_pipeline, tmp_path):
    x, labels = images(sd_pipeline)
    model = load_model(sd_pipeline)
    before, unet = model.fingerprint, sd_pipeline.unet
    adapt(x, sd_pipeline, tmp_path / "adapted", labels=labels, class_names=NAMES,
          **QUICK)
    assert sd_pipeline.unet is unet and model.fingerprint == before
