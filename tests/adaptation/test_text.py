"""Text-to-image priors: plain prompts, learned tokens, and LoRA files of diffusers' own kind."""

import pytest
import torch
from adaptation_images import squares
from diffusers import DiffusionPipeline

from dreamda_aug import Synthesizer, adapt, load_model
from dreamda_aug.errors import ModelError
from dreamda_aug.models.adapted import add_tokens
from dreamda_aug.models.conditioning import put_tokens

QUICK = dict(rank=2, train_steps=10, learning_rate=5e-3, batch_size=4, evaluate_every=5,
             device="cpu")
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
    found = adapt(x, folder, out, labels=labels, class_names=NAMES, **QUICK)
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


@pytest.mark.parametrize("kind", ["sd_folder", "sdxl_folder"])
def test_learned_tokens_take_the_place_of_class_names(kind, request, tmp_path):
    folder, out = request.getfixturevalue(kind), tmp_path / "adapted"
    x, labels = images(folder)
    found = adapt(x, folder, out, labels=labels, class_names=NAMES, tokens="learned", **QUICK)
    assert found.after < found.before
    model = load_model(folder, lora=out, device="cpu")
    assert model.conditioning.tokens == {"left": "<dreamda-0>", "right": "<dreamda-1>"}
    by_name, by_token = (model.embed([f"A photo of a {word}."]) for word in
                         ("left", "<dreamda-0>"))
    for name, value in by_name.items():
        assert torch.equal(value, by_token[name])
    plain = load_model(folder, device="cpu").embed(["A photo of a left.", "a cat"])
    assert not torch.allclose(plain["encoder_hidden_states"][:1], by_name["encoder_hidden_states"])
    same = model.embed(["a cat"])["encoder_hidden_states"]
    torch.testing.assert_close(plain["encoder_hidden_states"][1:], same)
    made = Synthesizer(folder, "paper", lora=out, class_names=NAMES, cache=None, device="cpu",
                       steps=2).synthesize([x[0]], [0])
    assert made[0].shape == (3, 16, 16)


def test_images_without_labels_are_trained_under_the_empty_prompt(sd_folder, tmp_path):
    x, _ = images(sd_folder)
    found = adapt(x, sd_folder, tmp_path / "adapted", labels=None, gradient_checkpointing=True,
                  **QUICK)
    assert found.verdict == "helped" and found.started_from == {}


def test_a_lent_pipeline_keeps_its_text_encoder_and_weights(sd_pipeline, tmp_path):
    x, labels = images(sd_pipeline)
    model = load_model(sd_pipeline)
    before, unet = model.fingerprint, sd_pipeline.unet
    size = sd_pipeline.text_encoder.get_input_embeddings().num_embeddings
    for tokens in ("prompt", "learned"):
        adapt(x, sd_pipeline, tmp_path / tokens, labels=labels, class_names=NAMES, tokens=tokens,
              **QUICK | {"train_steps": 1, "device": None})
    assert sd_pipeline.text_encoder.get_input_embeddings().num_embeddings == size
    assert sd_pipeline.unet is unet and model.fingerprint == before
    assert "<dreamda-0>" not in sd_pipeline.tokenizer.get_vocab()


def test_tokens_stand_for_whole_words_and_the_longest_name_first():
    tokens = {"red": "<0>", "red_car": "<1>"}
    assert put_tokens("A red car, a redder one, red.", tokens) == "A <1>, a redder one, <0>."
    assert put_tokens("A photo of a (red).", tokens) == "A photo of a (<0>)."
    assert put_tokens("A photo.", {}) == "A photo."


def test_prompts_that_cannot_take_a_token_are_refused(sd_folder, tmp_path):
    x, labels = images(sd_folder)
    for names, prompt in ((["photo", "right"], "A photo of a {class_name}."),
                          (NAMES, "A picture.")):
        with pytest.raises(ValueError, match="the prompt must hold the class name once"):
            adapt(x, sd_folder, tmp_path / "adapted", labels=labels, class_names=names,
                  prompt=prompt, tokens="learned", **QUICK)


def test_tokens_that_are_known_already_are_refused(sd_folder):
    pipeline = DiffusionPipeline.from_pretrained(sd_folder)
    with pytest.raises(ModelError, match="knows the token 'a' already"):
        add_tokens(pipeline, {"text_encoder/a": torch.zeros(16)})


def test_foreign_weights_that_are_none_are_refused(sd_folder, tmp_path):
    for name, message in (("a.bin", "only .safetensors files are opened"),
                          ("b.safetensors", "could not load .* as LoRA weights")):
        (tmp_path / name).write_bytes(b"no weights")
        with pytest.raises(ModelError, match=message):
            load_model(sd_folder, lora=tmp_path / name)
