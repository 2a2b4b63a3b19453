"""Transformer pipelines as models: loading, conditions, changes, refusals."""

import copy
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("transformers")

from diffusers import FlowMatchHeunDiscreteScheduler, FluxTransformer2DModel

from benchmarks.families import checks, parts, pipelines
from dreamda_aug import LatentCache, Synthesizer, load_model
from dreamda_aug.errors import ModelError
from dreamda_aug.generation.tensors import Request, TensorSynthesizer
from dreamda_aug.models.transformer import TransformerModel

SIZE = (pipelines.SIDE, pipelines.SIDE)
X = checks.images(2)
ASKED = [Request(0, "a cat"), Request(1, "a cat")]


def make(model, cache=None):
    return TensorSynthesizer(model, "paper", steps=4, noise_scale=0.0, guidance_scale=1.0,
                             source_prompt="a cat", cache=cache)


@pytest.fixture(scope="module")
def sd3():
    return load_model(pipelines.sd3(), image_size=SIZE)


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


def test_dit_knows_the_classes_of_its_pipeline():
    pipeline = pipelines.dit()
    names = {number: f"class {number}, n{number:08}" for number in range(1000)}
    named = type(pipeline)(pipeline.transformer, pipeline.vae, pipeline.scheduler, names)
    model = load_model(named)
    assert model.class_names[7] == "class 7" and len(model.class_names) == 1000
    assert model.embed(["class 7"])["class_labels"].tolist() == [7]
    assert load_model(pipeline).class_names is None


def test_a_synthesizer_drops_the_text_encoders_once_all_prompts_are_embedded(tmp_path):
    pipeline = pipelines.sd3()
    synthesizer = Synthesizer(
        pipeline, "paper", prompt="a {class_name}", class_names=["cat", "dog"],
        keep_text_encoder=False, steps=3, noise_scale=1.0, cache=None)
    made = synthesizer.synthesize(list(X), [0, 1], [0, 1])
    assert pipeline.text_encoder is pipeline.text_encoder_2 is pipeline.text_encoder_3 is None
    assert all(image.isfinite().all() for image in made)
    with pytest.raises(ModelError, match="'a bird' was not embedded before"):
        synthesizer.model.embed(["a bird"])


def add_lora(model, targets=("to_q", "to_v")):
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False))


@torch.no_grad()
def scale_weights(model):
    for weight in model.parameters():
        weight.mul_(1.1)


CHANGES = {
    "transformer": lambda p: scale_weights(p.transformer),
    "lora": lambda p: add_lora(p.transformer),
    "vae": lambda p: scale_weights(p.vae),
    "first text encoder": lambda p: scale_weights(p.text_encoder),
    "third text encoder": lambda p: scale_weights(p.text_encoder_3),
    "shift": lambda p: setattr(p, "scheduler", parts.flow(shift=1.5)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_of_a_live_pipeline_is_noticed(tmp_path, change):
    if change == "lora":
        pytest.importorskip("peft")
    pipeline = copy.deepcopy(pipelines.sd3())
    pipeline.text_encoder = copy.deepcopy(pipeline.text_encoder)  # not the second one, too
    core = make(load_model(pipeline, image_size=SIZE), LatentCache(tmp_path))
    core.synthesize(X, ASKED)
    core.synthesize(X, ASKED)
    assert core.inversions == 2
    CHANGES[change](pipeline)
    made = core.synthesize(X, ASKED).images
    assert core.inversions == 4
    # the image comes back only if it was inverted with what it was generated with
    torch.testing.assert_close(made, core.model.decode(core.model.encode(X)), atol=1e-3,
                               rtol=0)


def test_lora_weights_count_through_the_hook(sd3):
    pytest.importorskip("peft")
    pipeline = pipelines.sd3()
    add_lora(pipeline.transformer)
    adapted = load_model(pipeline, image_size=SIZE)
    assert abs(checks.moved(adapted, 1.0) - checks.moved(sd3, 1.0)) > 1e-4
    assert checks.rows_per_step(adapted) == (2, 4)


def test_low_memory_gives_the_same_images_and_leaves_the_lent_vae_alone():
    pipeline = pipelines.flux2()
    plain = make(load_model(pipeline, image_size=SIZE)).synthesize(X, ASKED).images
    model = load_model(pipeline, image_size=SIZE, low_memory=True)
    assert model.vae is not pipeline.vae and model.vae.use_tiling and model.low_memory
    torch.testing.assert_close(make(model).synthesize(X, ASKED).images, plain, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["sd3", "z_image", "qwen_image", "flux2"])
def test_half_precision_replays_exactly_and_float32_is_borrowed(name):
    pipeline = pipelines.PIPELINES[name]()
    for part in (pipeline.transformer, pipeline.vae):
        part.to(torch.bfloat16)
    model = load_model(pipeline, image_size=SIZE)
    assert model.dtype == torch.bfloat16
    assert checks.replay_error(model, 1) <= 1e-3
    with model.in_float32():
        assert model.dtype == torch.float32
        assert checks.replay_error(model, 1) <= 1e-4
    assert {p.dtype for p in pipeline.transformer.parameters()} == {torch.bfloat16}


def test_the_guidance_of_distilled_models_is_an_input_and_not_a_second_row():
    pipeline = pipelines.flux()
    assert not load_model(pipeline).guidable
    assert load_model(pipeline).embed(["a"])["guidance"].tolist() == [3.5]
    strong = load_model(pipeline, embedded_guidance=6)
    assert strong.embed(["a", "b"])["guidance"].tolist() == [6, 6]
    assert strong.condition_digest("a") != load_model(pipeline).condition_digest("a")
    klein = pipelines.flux2()
    assert load_model(klein).guidable
    klein.register_to_config(is_distilled=True)
    assert not load_model(klein).guidable


def test_flow_matching_with_heuns_scheduler_and_solver(sd3):
    pipeline = pipelines.sd3()
    pipeline.scheduler = FlowMatchHeunDiscreteScheduler(shift=3.0)
    model = load_model(pipeline, image_size=SIZE)
    schedule = model.schedule(4, 1.0, "scheduler")
    assert len(schedule) == 4 and schedule.noise[0] == 1 and schedule.noise[-1] == 0
    core = TensorSynthesizer(model, "paper", steps=4, noise_scale=0.0, guidance_scale=1.0,
                             source_prompt="a cat", solver="heun", eta=0.0)
    torch.testing.assert_close(core.synthesize(X, ASKED).images,
                               model.decode(model.encode(X)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["flux", "flux2", "lumina2"])
def test_dynamic_shifting_is_what_the_pipeline_computes(name):
    """Against the noise levels that the pipeline itself ran with."""
    pipeline = pipelines.PIPELINES[name]()
    pipeline.scheduler = parts.flow(use_dynamic_shifting=True)
    pipeline.set_progress_bar_config(disable=True)
    options = {"height": 64, "width": 64} if name == "lumina2" else {"height": 16, "width": 16}
    pipeline(prompt="a", num_inference_steps=4, output_type="latent", **options)
    model = load_model(pipeline, image_size=SIZE)
    ours = model.schedule(4, 1.0, "scheduler")
    assert torch.equal(ours.noise, pipeline.scheduler.sigmas)
    assert torch.equal(ours.timesteps, pipeline.scheduler.timesteps)
    assert model.schedule(4, 0.5).noise[0] > 0.5  # shifted, too


def test_a_dynamic_shift_that_no_pipeline_computes_is_refused():
    pipeline = pipelines.sana()
    pipeline.scheduler = parts.flow(use_dynamic_shifting=True)
    with pytest.raises(ModelError, match="use_dynamic_shifting=True, and its pipeline does not"):
        load_model(pipeline, image_size=SIZE).schedule(4, 1.0)


def test_calibrations_belong_to_the_hook_and_to_the_embedded_guidance():
    pipeline = pipelines.flux()
    fingerprints = {load_model(pipeline, **options).fingerprint for options in (
        {}, {"block_index": 0}, {"embedded_guidance": 2.0})}
    assert len(fingerprints) == 3
    # the middle one, and the default of FluxPipeline's own call
    said = load_model(pipeline, block_index=2, embedded_guidance=3.5)
    assert said.fingerprint == load_model(pipeline).fingerprint
    assert (said.block_index, said.embedded_guidance) == (2, 3.5)


def test_an_embedded_guidance_that_is_not_taken_or_not_known_is_refused():
    with pytest.raises(ValueError, match="must be None for this SD3Transformer2DModel.* got 2"):
        load_model(pipelines.sd3(), image_size=SIZE, embedded_guidance=2.0)
    pipeline = pipelines.flux()
    for wrong in (-1.0, float("nan"), True):
        with pytest.raises(ValueError, match=f"must be a number >= 0, got {wrong}"):
            load_model(pipeline, embedded_guidance=wrong)

    class NoDefault(type(pipeline)):
        def __call__(self, prompt, guidance_scale=None):
            raise AssertionError

    pipeline.__class__ = NoDefault
    with pytest.raises(ModelError, match="NoDefault has no default for it; give embedded_guid"):
        load_model(pipeline)
    assert load_model(pipeline, embedded_guidance=2).embedded_guidance == 2


def test_another_hook_on_the_same_weights_is_that_of_another_load(sd3):
    def noisy(model):
        return TensorSynthesizer(model, "paper", steps=2, noise_scale=8.0,
                                 source_prompt="a cat").synthesize(X, ASKED).images

    pipeline = pipelines.sd3()
    model = load_model(pipeline, image_size=SIZE)
    plain = noisy(model)
    hooks = sum(len(part._forward_hooks) for part in pipeline.transformer.modules())
    other = model.with_block(1)
    assert (model.block_index, other.block_index) == (2, 1)
    loaded = load_model(pipelines.sd3(), image_size=SIZE, block_index=1)
    assert other.fingerprint == loaded.fingerprint != model.fingerprint
    made = noisy(other)
    assert torch.equal(made, noisy(loaded)) and not torch.equal(made, plain)
    assert torch.equal(noisy(model), plain)  # with both hooks in place
    assert checks.rows_per_step(other) == (2, 4)
    other.hook.remove()
    assert sum(len(part._forward_hooks) for part in pipeline.transformer.modules()) == hooks
    with pytest.raises(ValueError, match="block_index must be a whole number from 0 to 3 .*got 4"):
        model.with_block(4)


def test_a_transformer_that_is_not_known_is_refused_with_what_was_found():
    class AnotherTransformer(FluxTransformer2DModel):
        pass

    pipeline = pipelines.flux()
    other = AnotherTransformer.from_config(pipeline.transformer.config)
    pipeline.register_modules(transformer=other)
    with pytest.raises(ModelError, match=(
            r"AnotherTransformer of FluxPipeline is not .*found transformer_blocks \(2 × "
            r"FluxTransformerBlock\), single_transformer_blocks \(2 × FluxSingleTransformerBlock\)"
            r".*FluxTransformer2DModel.*family=Family")):
        load_model(pipeline)
    known = load_model(pipelines.flux()).family
    assert TransformerModel(pipeline, image_size=SIZE, family=known).block_index == 2


def test_a_pipeline_without_anything_to_perturb_is_refused():
    nothing = SimpleNamespace(scheduler=None)
    with pytest.raises(ModelError, match="has no transformer and no vae.*such as Stable Diff"):
        load_model(nothing)
    with pytest.raises(ModelError, match="has no vae"):
        load_model(SimpleNamespace(transformer=torch.nn.Identity()))


def test_transformers_that_need_an_image_beside_the_noise_are_refused():
    pipeline = pipelines.flux()
    wide = FluxTransformer2DModel.from_config({**pipeline.transformer.config, "in_channels": 32,
                                               "out_channels": 16})
    pipeline.register_modules(transformer=wide)
    with pytest.raises(ModelError, match="takes 32 channels, and the VAE's latents have 16"):
        load_model(pipeline)


def test_an_editing_pipeline_is_refused():
    pipeline = pipelines.qwen_image()

    class EditPipeline(type(pipeline)):
        def encode_prompt(self, image, prompt):
            raise AssertionError

    pipeline.__class__ = EditPipeline
    with pytest.raises(ModelError, match="EditPipeline needs an image beside the prompt"):
        load_model(pipeline)


def test_weights_on_the_meta_device_and_sizes_that_do_not_fit_are_refused():
    pipeline = pipelines.sd3()
    with pytest.raises(ValueError, match=r"image_size must be a multiple of 4 .*\(16, 18\)"):
        load_model(pipeline, image_size=(16, 18))
    with pytest.raises(ValueError, match=r"must be square for DiTTransformer2DModel"):
        load_model(pipelines.dit(), image_size=(16, 32))
    pipeline.register_modules(transformer=copy.deepcopy(pipeline.transformer).to("meta"))
    with pytest.raises(ModelError, match="weights on the meta device"):
        load_model(pipeline)


def test_options_of_transformers_are_refused_for_a_unet():
    for option in ("block_index", "embedded_guidance"):
        with pytest.raises(ValueError, match=f"{option} is for transformers, and bundled .* got 1"):
            load_model("bundled", device="cpu", **{option: 1})


def test_an_image_size_is_refused_where_the_model_has_one_of_its_own():
    with pytest.raises(ValueError, match=r"image_size is for latent models, and bundled makes"):
        load_model("bundled", device="cpu", image_size=(32, 32))
    assert load_model("bundled", device="cpu", image_size=(28, 28)).image_size == (28, 28)


def test_a_scheduler_that_is_not_understood_is_refused():
    from diffusers import SCMScheduler

    pipeline = pipelines.sana()
    pipeline.scheduler = SCMScheduler()
    with pytest.raises(ModelError, match="SCMScheduler is not a scheduler"):
        load_model(pipeline, image_size=SIZE)
