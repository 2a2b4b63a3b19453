"""Transformer pipelines as models: loading, conditions, changes, refusals."""

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import FluxTransformer2DModel

from benchmarks.families import checks, parts, pipelines
from dreamda_aug import load_model
from dreamda_aug.errors import ModelError
from dreamda_aug.models.transformer import TransformerModel

SIZE = (pipelines.SIDE, pipelines.SIDE)


def load(name, **options):
    return load_model(pipelines.PIPELINES[name](), image_size=SIZE, **options)


def test_a_saved_pipeline_is_opened_and_has_its_own_size(tmp_path):
    pipelines.dit().save_pretrained(tmp_path / "dit")
    model = load_model(tmp_path / "dit", device="cpu")
    assert isinstance(model, TransformerModel) and model.image_size == (16, 16)
    assert (model.block_index, model.condition_kind, model.channels) == (2, "class", 3)
    assert model.pipeline.vae is model.vae and model.guidable
    assert model.embed([None, 3])["class_labels"].tolist() == [1000, 3]
    with pytest.raises(ModelError, match="class labels 0 to 1000, got 1001"):
        model.embed([1001])
    assert load_model(tmp_path / "dit", device="cpu", block_index=1).block_index == 1


def test_dit_has_the_classes_of_its_pipeline():
    pipeline = pipelines.dit()
    names = {number: f"class {number}, n{number:08}" for number in range(1000)}
    named = type(pipeline)(pipeline.transformer, pipeline.vae, pipeline.scheduler, names)
    model = load_model(named)
    assert model.class_names[7] == "class 7" and len(model.class_names) == 1000
    assert model.embed(["class 7"])["class_labels"].tolist() == [7]
    assert load_model(pipeline).class_names is None


def test_sd3_may_be_saved_without_t5(tmp_path):
    pipeline = pipelines.sd3()
    pipeline.register_modules(text_encoder_3=None, tokenizer_3=None)
    pipeline.save_pretrained(tmp_path)
    made, expected = load_model(tmp_path, device="cpu", image_size=SIZE), load_model(pipeline)
    for name, value in made.embed(["a cat"]).items():
        torch.testing.assert_close(value, expected.embed(["a cat"])[name])


@pytest.mark.parametrize("name", ["sd", "sd3", "z_image"])
def test_half_precision_replays_exactly_and_float32_is_borrowed(name):
    pipeline = pipelines.PIPELINES[name]()
    model = load_model(pipeline, image_size=SIZE)
    for part in (model.denoiser, pipeline.vae):
        part.to(torch.bfloat16)
    assert model.dtype == torch.bfloat16
    assert checks.replay_error(model, 1) <= 1e-3
    with model.in_float32():
        assert model.dtype == torch.float32
        assert checks.replay_error(model, 1) <= 1e-4
    assert {p.dtype for p in model.denoiser.parameters()} == {torch.bfloat16}


def test_the_guidance_of_distilled_models_is_an_input_and_not_a_second_row():
    pipeline = pipelines.flux()
    model, strong = load_model(pipeline), load_model(pipeline, embedded_guidance=6)
    assert not model.guidable and model.embed(["a"])["guidance"].tolist() == [3.5]
    assert strong.embed(["a", "b"])["guidance"].tolist() == [6, 6]
    assert strong.condition_digest("a") != model.condition_digest("a")
    assert model.fingerprint != strong.fingerprint  # calibrations belong to the guidance
    klein = pipelines.flux2()
    assert load_model(klein).guidable
    klein.register_to_config(is_distilled=True)
    assert not load_model(klein).guidable


def test_flux_schnell_takes_half_the_tokens_of_dev():
    pipeline = pipelines.flux()
    assert load_model(pipeline).embed(["a"])["encoder_hidden_states"].shape[1] == 512
    pipeline.transformer.register_to_config(guidance_embeds=False)
    condition = load_model(pipeline).embed(["a"])
    assert condition["encoder_hidden_states"].shape[1] == condition["txt_ids"].shape[1] == 256
    assert "guidance" not in condition


def test_the_unconditional_prompt_of_qwen_image_is_a_space():
    """As its own pipeline needs it: without a negative prompt, it is not guided."""
    pipeline = pipelines.qwen_image()
    pipeline.set_progress_bar_config(disable=True)
    model = load_model(pipeline, image_size=SIZE)
    expected = pipeline.encode_prompt(" ", device="cpu")[0]
    ours = model.embed([None])
    length = int(ours["encoder_attention_mask"].sum())
    assert torch.equal(ours["encoder_hidden_states"][:, :length], expected)


@pytest.mark.parametrize("name", ["sd3", "flux2"])
def test_prompts_that_a_tokenizer_makes_equal_are_warned_of_once(name):
    model, same = load(name), "a photo of a bird of the class " + "x" * 600
    with pytest.warns(UserWarning, match=rf"the prompts '{same} 1' and '{same} 2' apart") as found:
        model.embed([f"{same} 1", "a cat", f"{same} 2", f"{same} 3"])
    assert len(found) == 1


@pytest.mark.parametrize("name", ["flux", "flux2", "lumina2"])
def test_dynamic_shifting_is_what_the_pipeline_computes(name):
    """Against the noise levels that the pipeline itself ran with."""
    pipeline = pipelines.PIPELINES[name]()
    pipeline.scheduler = parts.flow(use_dynamic_shifting=True)
    pipeline.set_progress_bar_config(disable=True)
    side = 64 if name == "lumina2" else 16
    pipeline(prompt="a", num_inference_steps=4, output_type="latent", height=side, width=side)
    model = load_model(pipeline, image_size=SIZE)
    ours = model.schedule(4, 1.0, "scheduler")
    assert torch.equal(ours.noise, pipeline.scheduler.sigmas)
    assert torch.equal(ours.timesteps, pipeline.scheduler.timesteps)
    assert model.schedule(4, 0.5).noise[0] > 0.5  # shifted, too
    # FLUX.2's shift depends on the number of steps, and a strength must not
    assert model.schedule(6, 0.5).noise[0] == model.schedule(50, 0.5).noise[0]


def test_an_embedded_guidance_that_is_not_taken_is_refused():
    with pytest.raises(ValueError, match="must be None for this SD3Transformer2DModel.* got 2"):
        load("sd3", embedded_guidance=2.0)
    with pytest.raises(ValueError, match="must be a number >= 0, got -1.0"):
        load("flux", embedded_guidance=-1.0)


def test_a_transformer_that_is_not_known_is_refused_unless_it_is_described():
    class AnotherTransformer(FluxTransformer2DModel):
        pass

    pipeline = pipelines.flux()
    other = AnotherTransformer.from_config(pipeline.transformer.config)
    pipeline.register_modules(transformer=other)
    with pytest.raises(ModelError, match="AnotherTransformer of FluxPipeline is not .*FluxTransf"
                                         "ormer2DModel.*family=Family"):
        load_model(pipeline)
    known = load("flux").family
    assert TransformerModel(pipeline, image_size=SIZE, family=known).block_index == 2


def editing():
    pipeline = pipelines.qwen_image()

    class EditPipeline(type(pipeline)):
        def encode_prompt(self, prompt, image=None):  # as in diffusers
            raise AssertionError

    pipeline.__class__ = EditPipeline
    return pipeline


def shifting_sana():
    pipeline = pipelines.sana()
    pipeline.scheduler = parts.flow(use_dynamic_shifting=True)
    return pipeline


@pytest.mark.parametrize("make, message", [
    (editing, "EditPipeline needs an image beside the prompt"),
    (shifting_sana, "use_dynamic_shifting=True, and its pipeline does not"),
])
def test_pipelines_that_need_something_else_are_refused(make, message):
    with pytest.raises(ModelError, match=message):
        load_model(make(), image_size=SIZE).schedule(4, 1.0)


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"image_size must be a multiple of 4 .*\(16, 18\)"):
        load_model(pipelines.sd3(), image_size=(16, 18))
    with pytest.raises(ValueError, match="must be square for DiTTransformer2DModel"):
        load_model(pipelines.dit(), image_size=(16, 32))
