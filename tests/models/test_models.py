import copy
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMPipeline
from pipelines import pixel_pipeline

from dreamda_aug import DreamDAugment, load_model
from dreamda_aug.bundled import CLASSES
from dreamda_aug.errors import ModelError
from dreamda_aug.generation.tensors import Request, TensorSynthesizer
from dreamda_aug.models import ModelSpec, conditioning, is_model
from dreamda_aug.models.latent import LatentModel
from dreamda_aug.models.unet import PixelModel


def test_a_saved_pixel_pipeline_opens_from_its_folder(tmp_path):
    pipeline = pixel_pipeline("v_prediction")
    pipeline.save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert isinstance(model, PixelModel)
    assert (model.image_size, model.channels) == ((16, 16), 1)
    assert (model.condition_kind, model.guidable) == ("none", False)
    assert model.schedule(10, 0.5).prediction_type == "v_prediction"
    assert model.fingerprint == PixelModel(pipeline).fingerprint


def test_a_saved_stable_diffusion_pipeline_opens_from_its_folder(sd_pipeline, tmp_path):
    sd_pipeline.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), device="cpu")
    assert isinstance(model, LatentModel)
    assert model.image_size == (16, 16)
    assert (model.condition_kind, model.guidable) == ("text", True)
    assert model.fingerprint == load_model(sd_pipeline).fingerprint


def test_the_fingerprint_follows_the_weights(sd_pipeline):
    before, after = pixel_pipeline(), pixel_pipeline()
    after.unet.conv_out.bias.data += 1e-3
    assert PixelModel(before).fingerprint != PixelModel(after).fingerprint


def test_the_bundled_backbone_needs_no_network_and_is_small(bundled):
    assert (bundled.image_size, bundled.channels, bundled.condition_kind) == ((28, 28), 1, "class")
    assert bundled.class_names == CLASSES and bundled.guidable
    assert sum(p.numel() for p in bundled.unet.parameters()) < 4e6


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


def test_class_conditional_pipelines_take_indices_names_and_the_null_class(tmp_path):
    pixel_pipeline(num_classes=4).save_pretrained(tmp_path)
    (tmp_path / "training.json").write_text(json.dumps({"class_names": ["cat", "dog", "emu"]}))
    model = load_model(tmp_path, device="cpu")
    assert model.embed([1, "emu", None])["class_labels"].tolist() == [1, 2, 3]
    assert model.guidable
    made = TensorSynthesizer(model, "paper", steps=4).synthesize(
        torch.rand(2, 1, 16, 16), [Request(0, "cat"), Request(1, 2)]).images
    assert made.shape == (2, 1, 16, 16)
    with pytest.raises(ModelError, match="knows the classes .* got 'fox'"):
        model.embed(["fox"])
    with pytest.raises(ModelError, match="class labels 0 to 3, got 4"):
        model.embed([4])


def test_without_a_null_class_the_label_guides_the_inversion_too():
    model = PixelModel(pixel_pipeline(num_classes=3))
    generator = TensorSynthesizer(model, "paper", steps=4, noise_scale=0.0)
    x = torch.rand(1, 1, 16, 16)
    assert (generator.synthesize(x, [Request(0, 2)]).images - x).abs().max() < 1e-4
    with pytest.raises(ModelError, match="without a null class"):
        generator.synthesize(x, [Request(0)])


def test_text_backbones_refuse_bare_labels(sd_pipeline):
    with pytest.raises(ModelError, match="takes text prompts, got 3"):
        load_model(sd_pipeline).embed([3])


def test_models_without_a_bottleneck_are_refused_with_a_reason():
    transformer = SimpleNamespace(transformer=torch.nn.Identity())
    with pytest.raises(ModelError, match="has no U-Net, so there is no bottleneck.*has no vae"):
        load_model(transformer)
    headless = pixel_pipeline()
    del headless.unet.mid_block
    with pytest.raises(ModelError, match="has no U-Net bottleneck"):
        load_model(headless)


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path):
    with pytest.raises(ModelError, match=r"model_index\.json is missing"):
        load_model(tmp_path)


def test_a_hub_that_cannot_be_reached_is_told_what_to_do_about(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr("diffusers.DiffusionPipeline.from_pretrained", unreachable)
    with pytest.raises(ModelError, match="(?s)couldn't connect.*pass the folder.*'bundled'"):
        load_model("somebody/some-model", device="cpu")


def test_a_size_that_the_vae_cannot_make_is_refused(sd_pipeline):
    with pytest.raises(ValueError, match="multiple of 2"):
        load_model(sd_pipeline, image_size=(17, 16))


def test_the_backbone_can_still_be_used_by_its_pipeline(tmp_path):
    pipeline = pixel_pipeline()
    expected = DDPMPipeline(pipeline.unet, pipeline.scheduler)(
        num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images
    load_model(pipeline)
    again = pipeline(num_inference_steps=3, generator=torch.Generator().manual_seed(0),
                     output_type="np").images
    assert (expected == again).all()


@pytest.fixture
def pipeline(sd_pipeline):
    """A copy, whose encoders may be dropped."""
    return copy.deepcopy(sd_pipeline)


QUICK = dict(preset="paper", steps=2, strength=0.5, noise_scale=1.0, p=1.0, cache=None)


def test_text_encoders_leave_memory_once_all_prompts_are_embedded(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    x = torch.rand(3, 16, 16)
    kept = DreamDAugment(tmp_path, class_names=["cat", "dog"], keep_text_encoder=True, **QUICK)
    dropped = DreamDAugment(tmp_path, class_names=["cat", "dog"], **QUICK)
    for label in (1, 0):
        expected = kept.synthesizer.synthesize([x], [label], [0])[0]
        assert torch.equal(dropped.synthesizer.synthesize([x], [label], [0])[0], expected)
    assert dropped.synthesizer.model.pipeline.text_encoder is None
    assert kept.synthesizer.model.pipeline.text_encoder is not None
    with pytest.raises(ModelError, match="(?s)dropped from memory.*keep_text_encoder=True"):
        dropped.synthesizer.model.embed(["something else"])


@pytest.mark.parametrize("told", [
    dict(prompt=lambda label: f"number {label}"), dict(captions=lambda name: "a cat"), {},
])
def test_text_encoders_stay_where_prompts_are_not_known_ahead(pipeline, tmp_path, told):
    pipeline.save_pretrained(tmp_path)
    augment = DreamDAugment(tmp_path, **told, **QUICK)
    assert augment.synthesizer.model.pipeline.text_encoder is not None


def test_a_pipeline_that_was_handed_over_keeps_its_encoders_unless_asked(pipeline):
    for model in (pipeline, load_model(pipeline)):
        assert DreamDAugment(model, prompt="a cat", **QUICK).synthesizer.core is not None
        assert pipeline.text_encoder is not None
    augment = DreamDAugment(pipeline, prompt="a cat", keep_text_encoder=False, **QUICK)
    augment(torch.rand(3, 16, 16))
    assert pipeline.text_encoder is None


def test_copies_know_the_prompts_after_the_encoders_of_a_pipeline_are_gone(pipeline):
    augment = DreamDAugment(pipeline, prompt="a cat", keep_text_encoder=False, **QUICK)
    x = torch.rand(3, 16, 16)
    expected = augment.synthesizer.synthesize([x], [None], [0])[0]
    for clone in (copy.deepcopy(augment), pickle.loads(pickle.dumps(augment))):
        assert torch.equal(clone.synthesizer.synthesize([x], [None], [0])[0], expected)


def test_many_prompts_are_neither_all_kept_nor_worth_dropping_the_encoders(pipeline, monkeypatch):
    monkeypatch.setattr(conditioning, "MAX_PROMPTS", 3)
    model = load_model(pipeline)
    first = model.embed(["0"])["encoder_hidden_states"]
    for number in range(1, 6):
        model.embed([str(number)])
    assert list(model.conditioning._embedded) == ["3", "4", "5"]
    assert torch.equal(model.embed(["0"])["encoder_hidden_states"], first)
    model.embed_only(["a", "b", "c", "d"])
    assert pipeline.text_encoder is not None


def test_low_memory_gives_the_same_images_with_the_vae_at_rest(pipeline, monkeypatch):
    """On the CPU nothing really moves, so the moves are written down."""
    x = torch.rand(3, 3, 16, 16)
    requests = [Request(i, "a cat") for i in range(3)]

    def run(model):
        generator = TensorSynthesizer(model, "paper", steps=3, noise_scale=1.0)
        return generator.synthesize(x, requests).images

    expected = run(load_model(copy.deepcopy(pipeline)))
    model = load_model(pipeline, low_memory=True)
    vae, log, to, predict = model.vae, [], model.vae.to, model.predict
    assert model.decode_batch == 1 and vae.use_slicing and vae.use_tiling
    monkeypatch.setattr(vae, "to", lambda place: log.append(str(place)) or to(place))
    monkeypatch.setattr(model, "predict", lambda *args: log.append("unet") or predict(*args))
    # the second "cpu" tells the U-Net's device and the resting place apart
    monkeypatch.setattr(type(model), "device", property(lambda self: torch.device("cpu", 0)))
    torch.testing.assert_close(run(model), expected, atol=1e-4, rtol=0)
    assert log == ["cpu:0", "cpu", *["unet"] * 4, "cpu:0", "cpu"]


def test_chunked_decoding_agrees(sd_pipeline):
    model = load_model(sd_pipeline)
    latents = torch.randn(5, 4, 8, 8)
    whole = model.decode(latents)
    model.decode_batch = 2
    torch.testing.assert_close(model.decode(latents), whole, atol=1e-5, rtol=0)


def test_low_memory_decodes_large_images_in_tiles(pipeline):
    plain = load_model(copy.deepcopy(pipeline), image_size=(64, 64))
    tiled = load_model(pipeline, image_size=(64, 64), low_memory=True)
    latents = torch.randn(1, 4, 32, 32)
    with torch.no_grad():
        whole, parts = plain.decode(latents), tiled.decode(latents)
    assert whole.shape == parts.shape and not torch.equal(whole, parts)
    assert (whole - parts).abs().mean() < 0.05  # tiles see their own borders


def test_inversions_of_other_sizes_and_in_tiles_are_not_mixed_up(pipeline, tmp_path):
    x = torch.rand(3, 24, 24)
    small, large, tiled, one_tile = (
        DreamDAugment(load_model(copy.deepcopy(pipeline), **loading), prompt="a cat",
                      **QUICK | {"cache": tmp_path})
        for loading in ({}, {"image_size": (64, 64)},
                        {"image_size": (64, 64), "low_memory": True},
                        {"low_memory": True}))  # fmt: skip
    for augment in (small, large, tiled):
        augment(x)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    one_tile(x)  # within the VAE's own size nothing changes
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


@pytest.mark.parametrize("loading, message", [
    (dict(dtype=torch.bfloat16), r"dtype must be that of the loaded StableDiffusionPipeline, "
     r"torch\.float32, got torch\.bfloat16; .*: pipeline\.to\(torch\.bfloat16\)"),
    (dict(device="meta"), r"device must be .* cpu, got meta; .*: pipeline\.to\('meta'\)"),
])
def test_device_and_dtype_of_a_pipeline_object_belong_to_who_loaded_it(pipeline, loading, message):
    with pytest.raises(ValueError, match=message):
        load_model(pipeline, **loading)
    assert (pipeline.unet.dtype, pipeline.unet.device.type) == (torch.float32, "cpu")
    same = load_model(pipeline, dtype=torch.float32, device="cpu")
    assert same.unet is pipeline.unet and same.vae is pipeline.vae


def test_unknown_options_of_loading_are_refused_with_a_list():
    with pytest.raises(TypeError, match="load_model has no option 'precision'; it has source, "):
        load_model(precision="half")


def test_a_specification_loads_what_its_options_say(tmp_path):
    pixel_pipeline(num_classes=4).save_pretrained(tmp_path)
    spec = ModelSpec(tmp_path, device="cpu", dtype=torch.bfloat16, null_class=3)
    model = spec.load()
    assert is_model(model) and model.name == spec.name == str(tmp_path)
    assert model.dtype == torch.bfloat16 and model.guidable
    assert ModelSpec(pixel_pipeline()).name == "DDPMPipeline"


def test_the_compiled_copy_leaves_the_lent_backbone_alone():
    model, graphs = load_model(pixel_pipeline()), []
    torch._dynamo.reset()
    inputs = torch.rand(2, 1, 16, 16), torch.tensor(5), model.embed([None] * 2)
    compiled = model.compiled(backend=lambda graph, _: graphs.append(graph) or graph.forward)
    assert compiled is not model and compiled.fingerprint == model.fingerprint
    expected = model.predict(*inputs)
    assert not graphs
    torch.testing.assert_close(compiled.predict(*inputs), expected)
    assert graphs


def test_low_memory_leaves_the_vae_of_a_lent_pipeline_alone(pipeline, tmp_path):
    model = load_model(pipeline, low_memory=True)
    assert model.vae is not pipeline.vae and model.unet is pipeline.unet
    assert not pipeline.vae.use_slicing and not pipeline.vae.use_tiling
    pipeline.save_pretrained(tmp_path)
    own = load_model(tmp_path, device="cpu", low_memory=True)
    assert own.pipeline.vae is own.vae  # no other VAE stays on the device


def test_a_model_with_learned_variance_is_used_without_it():
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(
        sample_size=16, in_channels=1, out_channels=2, layers_per_block=1,
        block_out_channels=(8, 16), norm_num_groups=4, down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2, attention_head_dim=8,
    ).eval()
    model = load_model(DDPMPipeline(unet, DDPMScheduler(clip_sample=False)))
    x = torch.rand(2, 1, 16, 16)
    core = TensorSynthesizer(model, "paper", steps=4, noise_scale=0.0)
    made = core.synthesize(x, [Request(0), Request(1)]).images
    torch.testing.assert_close(made, x, atol=1e-3, rtol=0)


def test_an_inpainting_unet_is_refused_by_its_channels(sd_pipeline):
    from pipelines import tiny_text_unet

    pipeline = copy.copy(sd_pipeline)
    pipeline.unet = tiny_text_unet(in_channels=9)
    with pytest.raises(ModelError, match="takes 9 channels and gives 4: an inpainting"):
        load_model(pipeline)


def test_weights_on_the_meta_device_are_refused(sd_pipeline):
    from pipelines import tiny_text_unet

    pipeline = copy.copy(sd_pipeline)
    pipeline.unet = tiny_text_unet().to("meta")
    with pytest.raises(ModelError, match="weights on the meta device"):
        load_model(pipeline)


def test_telling_a_backbone_from_a_source_hashes_no_weights(bundled, monkeypatch):
    def refuse(self):
        raise AssertionError("the weights were hashed")

    monkeypatch.setattr(PixelModel, "fingerprint", property(refuse))
    assert is_model(bundled)
    for source in ("bundled", ModelSpec(), pixel_pipeline(), None):
        assert not is_model(source)
