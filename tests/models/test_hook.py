"""Hooks on U-Nets and transformers: where they sit, what they leave alone, what they refuse."""

import copy

import pytest
import torch
from pipelines import pixel_pipeline, sampler

pytest.importorskip("transformers")

from diffusers import FirstBlockCacheConfig

from benchmarks.families import checks, pipelines
from dreamda_aug import load_model
from dreamda_aug.errors import GenerationError, ModelError
from dreamda_aug.method.perturbation import BottleneckNoise
from dreamda_aug.models.hook import UNetHook

SIZE = (pipelines.SIDE, pipelines.SIDE)
# one family for each kind of stream: image and text apart; both joined behind the first list of
# blocks; image first; text first with lengths of their own; long skips
STREAMS = ["sd3", "flux2", "z_image", "lumina2", "hunyuan_dit"]


class Add:
    """A perturbation that adds a tensor, or 1 to 3 to every entry."""

    def __call__(self, h, noise=None):
        self.shape = tuple(h.shape)
        # no constant: a layer norm would take it out
        return h + (torch.linspace(1, 3, h.shape[2]) if noise is None else noise)


def test_a_unets_bottleneck_is_diffusers_own_residual_input_bit_for_bit(sd_pipeline):
    unet, noise = copy.deepcopy(sd_pipeline.unet), torch.randn(3, 16, 4, 4)
    x, t, text = torch.randn(3, 4, 8, 8), torch.tensor(500), torch.randn(3, 6, 8)
    skips = [torch.zeros(3, *shape) for shape in ((8, 8, 8), (8, 8, 8), (8, 4, 4), (16, 4, 4))]
    with torch.no_grad():
        expected = unet(x, t, text, mid_block_additional_residual=noise,
                        down_block_additional_residuals=skips).sample
        hook = UNetHook(unet)
        with hook.perturbing(Add(), None, 0, noise=noise):
            assert torch.equal(unet(x, t, text).sample, expected)
        assert not torch.equal(unet(x, t, text).sample, expected)


@pytest.fixture(scope="module")
def load():
    made = {}

    def load(name, **options):
        if name not in made:
            made[name] = pipelines.PIPELINES[name]()
        return load_model(made[name], image_size=SIZE, **options)

    return load


def inputs(model, prompts=("a cat", "two dogs sat", "")):
    x = model.encode(checks.images(len(prompts)))
    return x, torch.tensor(500.0), model.embed(list(prompts))


@pytest.mark.parametrize("name", STREAMS)
def test_branching_behind_a_block_equals_running_every_row(load, name):
    model = load(name)
    x, t, condition = inputs(model)
    rows = torch.tensor([0, 1, 2, 1, 0, 2, 2])
    seeds = dict(seeds=torch.arange(4), step=torch.tensor(1), scale=torch.ones(4),
                 unconditional=torch.zeros(4, dtype=torch.bool))
    with model.hook.perturbing(BottleneckNoise(), rows, 3, **seeds):
        branched = model.predict(x, t, condition)
    with model.hook.perturbing(BottleneckNoise(), None, 3, **seeds):
        plain = model.predict(x[rows], t, {name: value[rows] for name, value in condition.items()})
    assert len(branched) == 7
    torch.testing.assert_close(branched, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(branched[:3], model.predict(x, t, condition), atol=1e-5, rtol=0)
    assert (branched[3:] - branched[rows[3:]]).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("name", STREAMS)
def test_only_the_images_tokens_are_perturbed(load, name):
    model = load(name)
    x, t, condition = inputs(model)
    seen, add = [], Add()
    hook = model.hook._hooked.register_forward_hook(
        lambda module, args, output: seen.append(output[-1] if isinstance(output, tuple)
                                                 else output))
    model.predict(x, t, condition)
    with model.hook.perturbing(add, None, 0):
        model.predict(x, t, condition)
    hook.remove()
    assert add.shape == (3, 16, 16)
    changed = (seen[1] - seen[0]).abs().amax(2) > 0.5
    assert changed.sum(1).tolist() == [16, 16, 16]
    texts = {"lumina2": condition.get("encoder_attention_mask", x).sum(1).tolist(),
             "flux2": [512] * 3}.get(name, [0, 0, 0])
    for row, text in zip(changed, texts):
        assert row[int(text) : int(text) + 16].all()


@pytest.mark.parametrize("name, index", [("flux", 1), ("flux", 3), ("sd3", 0), ("hunyuan_dit", 5)])
def test_any_block_can_be_hooked(load, name, index):
    model = load(name, block_index=index)
    assert model.block_index == index
    x, t, condition = inputs(model)
    with model.hook.perturbing(Add(), torch.tensor([0, 1, 2, 2]), 3):
        branched = model.predict(x, t, condition)
    plain = model.predict(x, t, condition)
    torch.testing.assert_close(branched[:3], plain, atol=1e-5, rtol=0)
    assert (branched[3] - plain[2]).abs().max() > 1e-3
    features = model.features(x, t, condition)
    assert features.shape[0] == 3 and features.shape[2:] in {(4, 4), (8, 8)}


@pytest.mark.parametrize("name, index, message", [
    ("flux", 4, "from 0 to 3 for FluxTransformer2DModel, got 4"),
    ("hunyuan_dit", 1, "from 2 to 5 for HunyuanDiT2DModel, got 1"),
])
def test_an_index_without_a_block_is_refused(load, name, index, message):
    with pytest.raises(ValueError, match=f"block_index must be an integer .*{message}"):
        load(name, block_index=index)


@pytest.mark.parametrize("make", [pixel_pipeline, pipelines.dit])
def test_generation_raises_if_the_hook_is_gone(make):
    model = load_model(make())
    model.hook.remove()
    generator = sampler(model, "paper", steps=4)
    with pytest.raises(GenerationError, match="hook never fired"):
        generator.generate(generator.invert(torch.rand(1, model.channels, 16, 16)))


def test_a_block_that_is_not_recalled_is_noticed(load):
    """As where somebody has compiled the blocks in place."""
    model = load("sd3")
    x, t, condition = inputs(model)
    first = model.pipeline.transformer.transformer_blocks[0]
    first._compiled_call_impl = type(first).forward.__get__(first)
    try:
        with (pytest.raises(GenerationError, match="recalled 2 of 3 blocks before the hook"),
              model.hook.perturbing(Add(), torch.tensor([0, 1, 2, 0]), 3)):
            model.predict(x, t, condition)
    finally:
        first._compiled_call_impl = None


def test_a_cache_that_skips_blocks_is_refused():
    pipeline = pipelines.flux()
    model = load_model(pipeline, image_size=SIZE)
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    with pytest.raises(ModelError, match=r"cache enabled.*transformer\.disable_cache\(\)"):
        model.predict(*inputs(model))
    pipeline.transformer.disable_cache()
    assert model.predict(*inputs(model)).isfinite().all()


def test_compiled_blocks_agree_and_the_plain_model_stays(load):
    model = load("sd3")
    torch._dynamo.reset()
    found = []
    for each in (model, model.compiled(backend="eager")):
        with each.hook.perturbing(Add(), torch.tensor([0, 1, 2, 0]), 3):
            found.append(each.predict(*inputs(model)))
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)
    assert "forward" not in vars(model.pipeline.transformer.transformer_blocks[0])
