"""From names, folders and pipelines to models; what is refused, and what is left alone."""

import copy
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from pipelines import pixel_pipeline, sampler
from safetensors.torch import load_file, save_file

from dreamda_aug import DreamDAugment, load_model
from dreamda_aug.errors import ModelError
from dreamda_aug.generation.sampler import Request
from dreamda_aug.models.unet import UNetModel

QUICK = dict(preset="paper", steps=2, strength=0.5, noise_scale=1.0, p=1.0, cache=None)


@pytest.fixture
def pipeline(sd_pipeline):
    """A copy, whose parts may be changed."""
    return copy.deepcopy(sd_pipeline)


def test_a_saved_pixel_pipeline_opens_from_its_folder(tmp_path):
    pipeline = pixel_pipeline("v_prediction")
    pipeline.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert isinstance(model, UNetModel) and model.vae is None
    assert (model.image_size, model.channels) == ((16, 16), 1)
    assert (model.condition_kind, model.guidable) == ("none", False)
    assert model.schedule(10, 0.5).prediction_type == "v_prediction"
    assert model.fingerprint == UNetModel(pipeline).fingerprint
    pipeline.unet.conv_out.bias.data += 1e-3
    assert model.fingerprint != UNetModel(pipeline).fingerprint
    assert load_model(tmp_path, device="cpu", image_size=(16, 16)).image_size == (16, 16)
    with pytest.raises(ValueError, match="image_size is for latent models, and .* makes images of"):
        load_model(tmp_path, device="cpu", image_size=(32, 32))


def test_latents_and_prompts_are_those_of_diffusers(sd_pipeline):
    model = load_model(sd_pipeline)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = sd_pipeline.vae.encode(images * 2 - 1).latent_dist.mode()
        expected = expected * sd_pipeline.vae.config.scaling_factor
        torch.testing.assert_close(model.encode(images), expected)
        embedding, _ = sd_pipeline.encode_prompt("a cat", "cpu", 1, False)
    condition = model.embed(["a cat", None])["encoder_hidden_states"]
    assert torch.equal(condition[0], embedding[0])
    assert not torch.equal(condition[0], condition[1])
    with pytest.raises(ModelError, match="takes text prompts, got 3"):
        model.embed([3])


def test_class_conditional_pipelines_take_indices_names_and_the_null_class(class_folder):
    model = load_model(class_folder, device="cpu")
    assert model.embed([1, "down", None])["class_labels"].tolist() == [1, 2, 3]
    assert model.guidable
    with pytest.raises(ModelError, match="has the classes .* got 'fox'"):
        model.embed(["fox"])
    with pytest.raises(ModelError, match="class labels 0 to 3, got 4"):
        model.embed([4])
    with pytest.raises(ModelError, match="without a null class"):
        UNetModel(model.pipeline).embed([None])


def damaged(folder, name, **changes):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without_a_tensor(folder):
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_in.weight"]
    save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize("damage, message", [
    (without_a_tensor, "lacks the weights unet.conv_in.weight"),
    (lambda f: damaged(f, "unet/config.json", sample_size=None), "sample_size .* found None"),
    (lambda f: damaged(f, "unet/config.json", sample_size=-16), "sample_size .* found -16"),
    (lambda f: damaged(f, "model_index.json", scheduler=[None, None]), "must have a scheduler"),
    (lambda f: damaged(f, "training.json", class_names=[1]), "class_names must be a list of text"),
    (lambda f: damaged(f, "training.json", class_names=list("abcde")), "has 4 classes.* got 5"),
    (lambda f: (f / "model_index.json").unlink(), r"no file named model_index\.json"),
], ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_damaged_folders_are_refused_with_the_reason(class_folder, damage, message):
    damage(class_folder)
    with pytest.raises(ModelError, match=message):
        load_model(class_folder, device="cpu")


def no_bottleneck():
    pipeline = pixel_pipeline()
    del pipeline.unet.mid_block
    return pipeline


def with_unet(pipeline, unet):
    pipeline = copy.copy(pipeline)
    pipeline.unet = unet
    return pipeline


@pytest.mark.parametrize("make, message", [
    (lambda sd: SimpleNamespace(transformer=torch.nn.Identity()), "has no U-Net, and not both a "),
    (lambda sd: None, r"NoneType.* has no U-Net"),
    (lambda sd: no_bottleneck(), "has no U-Net bottleneck"),
    (lambda sd: with_unet(sd, sd.unet.from_config(sd.unet.config, in_channels=9)), "noise is 4: a"),
    (lambda sd: with_unet(sd, copy.deepcopy(sd.unet).to("meta")), "lacks the weights unet"),
])
def test_models_without_a_bottleneck_are_refused_with_a_reason(sd_pipeline, make, message):
    with pytest.raises(ModelError, match=message):
        load_model(make(sd_pipeline))


def test_a_hub_that_cannot_be_reached_is_told_what_to_do_about():
    with pytest.raises(ModelError, match="(?s)'somebody/some-model'.*pass the folder.*'bundled'"):
        load_model("somebody/some-model", device="cpu")


@pytest.mark.parametrize("options, message", [
    (dict(image_size=(17, 16)), "multiple of 2"), (dict(image_size=(0, 16)), "image_size .* got 0"),
    (dict(lora=" "), "lora must be a hub id, a folder or a file"),
    (dict(lora="x"), "lora must be None for the loaded StableDiffusionPipeline"),
    (dict(block_index=1), "block_index is for transformers.* got 1"),
    (dict(device="meta"), r"device must be None .* got 'meta'; .*: pipeline\.to\(\.\.\.\)"),
])
def test_options_that_do_not_suit_are_refused(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        load_model(pipeline, **options)
    assert (pipeline.unet.dtype, pipeline.unet.device.type) == (torch.float32, "cpu")


def test_text_encoders_leave_memory_once_all_prompts_are_embedded(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    x = torch.rand(3, 16, 16)
    kept, dropped = (DreamDAugment(tmp_path, class_names=["cat", "dog"], **QUICK, **options)
                     for options in ({"keep_text_encoder": True}, {}))
    for label in (1, 0):
        expected = kept.synthesizer.synthesize([x], [label], [0])[0]
        for clone in (dropped, copy.deepcopy(dropped), pickle.loads(pickle.dumps(dropped))):
            assert torch.equal(clone.synthesizer.synthesize([x], [label], [0])[0], expected)
    assert dropped.synthesizer.model.pipeline.text_encoder is None
    with pytest.raises(ModelError, match="(?s)dropped from memory.*keep_text_encoder=True"):
        dropped.synthesizer.model.embed(["something else"])


def test_low_memory_gives_the_same_images_with_the_vae_at_rest(pipeline, tmp_path, monkeypatch):
    """On the CPU nothing really moves, so the moves are written down."""
    x, requests = torch.rand(3, 3, 16, 16), [Request(i, "a cat") for i in range(3)]

    def run(model):
        generator = sampler(model, "paper", steps=3, noise_scale=1.0)
        return generator.synthesize(x, requests).images

    expected = run(load_model(copy.deepcopy(pipeline)))
    model = load_model(pipeline, low_memory=True)
    vae, log, to, predict = model.vae, [], model.vae.to, model.predict
    assert model.decode_batch == 1 and vae.use_slicing and vae.use_tiling
    assert vae is not pipeline.vae and not pipeline.vae.use_slicing and not pipeline.vae.use_tiling
    pipeline.save_pretrained(tmp_path)
    own = load_model(tmp_path, device="cpu", low_memory=True)
    assert own.pipeline.vae is own.vae  # no other VAE stays on the device
    monkeypatch.setattr(vae, "to", lambda place: log.append(str(place)) or to(place))
    monkeypatch.setattr(model, "predict", lambda *args: log.append("unet") or predict(*args))
    # the second "cpu" tells the U-Net's device and the resting place apart
    monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("cpu", 0)))
    torch.testing.assert_close(run(model), expected, atol=1e-4, rtol=0)
    assert log == ["cpu:0", "cpu", *["unet"] * 4, "cpu:0", "cpu"]
