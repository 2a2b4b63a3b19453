"""The hook behind a transformer's block: where it sits, what it leaves alone, what it refuses."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.common.plain import plain_rows
from benchmarks.families import checks, pipelines
from dreamda_aug import load_model
from dreamda_aug.errors import GenerationError, ModelError
from dreamda_aug.generation.tensors import Request, TensorSynthesizer
from dreamda_aug.method.perturbation import BottleneckNoise

SIZE = (pipelines.SIDE, pipelines.SIDE)
# one family for each kind of stream: image and text apart; both joined behind the first list of
# blocks; image first; text first with lengths of their own; long skips
STREAMS = ["sd3", "flux2", "z_image", "lumina2", "hunyuan_dit"]


@pytest.fixture(scope="module")
def load():
    made = {}

    def load(name, **options):
        if name not in made:
            made[name] = pipelines.PIPELINES[name]()
        return load_model(made[name], image_size=SIZE, **options)

    return load


class Add:
    """A perturbation that adds 1 to 3 to every entry, and notes what it was given."""

    def __call__(self, h, **_):
        self.shape = tuple(h.shape)
        return h + torch.linspace(1, 3, h.shape[2])  # no constant: a layer norm would take it out


def inputs(model, prompts=("a cat", "two dogs sat", "")):
    x = model.encode(checks.images(len(prompts)))
    return x, torch.tensor(500.0), model.embed(list(prompts))


@pytest.mark.parametrize("name", STREAMS)
def test_branching_at_the_hook_equals_running_every_row(load, name):
    model = load(name)
    x, t, condition = inputs(model)
    rows = torch.tensor([0, 1, 2, 1, 0, 2, 2])
    seeds = dict(seeds=torch.arange(4), step=torch.tensor(1), scale=torch.ones(4),
                 unconditional=torch.zeros(4, dtype=torch.bool))
    model.hook.set(BottleneckNoise(), rows, 3, 3, **seeds)
    branched = model.predict(x, t, condition)
    model.hook.set(BottleneckNoise(), None, 3, 7, **seeds)
    plain = model.predict(x[rows], t, {name: value[rows] for name, value in condition.items()})
    model.hook.clear()
    assert len(branched) == 7
    torch.testing.assert_close(branched, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(branched[:3], model.predict(x, t, condition), atol=1e-5, rtol=0)
    assert (branched[3:] - branched[rows[3:]]).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("name", STREAMS)
def test_only_the_images_tokens_are_perturbed(load, name):
    model = load(name)
    x, t, condition = inputs(model)
    seen = []
    hook = model.hook._tapped.register_forward_hook(
        lambda module, args, output: seen.append(output[-1] if isinstance(output, tuple)
                                                 else output))
    add = Add()
    model.predict(x, t, condition)
    model.hook.set(add, None, 0, 3)
    model.predict(x, t, condition)
    model.hook.clear()
    hook.remove()
    assert add.shape == (3, 16, 16)
    changed = (seen[1] - seen[0]).abs().amax(2) > 0.5
    assert changed.sum(1).tolist() == [16, 16, 16]
    texts = {"lumina2": condition.get("encoder_attention_mask", x).sum(1).tolist(),
             "flux2": [512] * 3}.get(name, [0, 0, 0])
    for row, text in zip(changed, texts):
        assert row[int(text) : int(text) + 16].all()


@pytest.mark.parametrize("name, index", [("flux", 0), ("flux", 1), ("flux", 3), ("flux2", 1),
                                         ("sd3", 0), ("sd3", 3), ("hunyuan_dit", 2),
                                         ("hunyuan_dit", 5), ("z_image", 0)])
def test_any_block_can_be_tapped(load, name, index):
    model = load(name, block_index=index)
    assert model.block_index == index
    x, t, condition = inputs(model)
    rows = torch.tensor([0, 1, 2, 2])
    model.hook.set(Add(), rows, 3, 3)
    branched = model.predict(x, t, condition)
    model.hook.clear()
    plain = model.predict(x, t, condition)
    torch.testing.assert_close(branched[:3], plain, atol=1e-5, rtol=0)
    assert (branched[3] - plain[2]).abs().max() > 1e-3
    features = model.features(x, t, condition)
    assert features.shape[0] == 3 and features.shape[2:] in {(4, 4), (8, 8)}


@pytest.mark.parametrize("name, index, message", [
    ("flux", 4, r"from 0 to 3 for FluxTransformer2DModel, which has 4 blocks \(2 "
                r"transformer_blocks, then 2 single_transformer_blocks\); got 4"),
    ("sd3", -1, r"which has 4 blocks \(4 transformer_blocks\); got -1"),
    ("sd3", True, "got True"), ("sd3", 1.0, "got 1.0"),
    ("hunyuan_dit", 1, "from 2 to 5 .* those before it also feed skips; got 1"),
])
def test_a_hook_index_without_a_block_is_refused(load, name, index, message):
    with pytest.raises(ValueError, match=f"block_index must be a whole number .*{message}"):
        load(name, block_index=index)


def test_long_skips_stay_as_they_are(load):
    """What HunyuanDiT's last blocks get of its first ones is not perturbed."""
    model = load("hunyuan_dit")
    blocks, skips = model.pipeline.transformer.blocks, []
    assert blocks[4].skip_linear is not None and blocks[3].skip_linear is None
    hooks = [block.register_forward_pre_hook(
        lambda module, args, kwargs: skips.append(kwargs["skip"].clone()), with_kwargs=True)
        for block in blocks[4:]]
    x, t, condition = inputs(model)
    model.predict(x, t, condition)
    plain, skips[:] = list(skips), []
    model.hook.set(Add(), torch.tensor([0, 1, 2, 0]), 3, 3)
    model.predict(x, t, condition)
    model.hook.clear()
    for hook in hooks:
        hook.remove()
    assert len(plain) == len(skips) == 2
    for before, now in zip(plain, skips):
        assert torch.equal(now, before[[0, 1, 2, 0]])


def test_noise_counts_in_each_channels_own_size():
    h = torch.randn(2, 4096, 3) * torch.tensor([1.0, 100.0, 0.01])
    made = BottleneckNoise()(h, torch.tensor([1, 2]), torch.tensor(0), torch.zeros(2, dtype=bool),
                             torch.tensor([0.5, 0.0]))
    size = (made - h).square().mean(1).sqrt() / h.square().mean(1).sqrt()
    torch.testing.assert_close(size[0], torch.full((3,), 0.5), atol=0.05, rtol=0)
    assert torch.equal(made[1], h[1])


def test_a_copy_of_the_model_has_weights_of_its_own(load):
    """Nothing of the first one is left in it, such as a hook that runs the first one's blocks."""
    model = load("sd3")
    x, t, condition = inputs(model)
    model.hook.set(Add(), torch.tensor([0, 1, 2, 0]), 3, 3)
    expected = model.predict(x, t, condition)
    model.hook.clear()
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for weight in model.pipeline.transformer.parameters():
            weight.mul_(0.5)
    clone.hook.set(Add(), torch.tensor([0, 1, 2, 0]), 3, 3)
    made = clone.predict(x, t, condition)
    with torch.no_grad():
        for weight in model.pipeline.transformer.parameters():
            weight.mul_(2)
    assert torch.equal(made, expected)


def test_generation_raises_if_the_hook_is_gone():
    model = load_model(pipelines.sd3(), image_size=SIZE)
    model.hook.remove()
    with pytest.raises(GenerationError, match="hook never fired"):
        checks.moved(model, 1.0)


def test_a_block_that_is_not_recalled_is_noticed(load):
    """As where somebody has compiled the blocks in place."""
    model = load("sd3")
    x, t, condition = inputs(model)
    first = model.pipeline.transformer.transformer_blocks[0]
    first._compiled_call_impl = type(first).forward.__get__(first)
    model.hook.set(Add(), torch.tensor([0, 1, 2, 0]), 3, 3)
    try:
        with pytest.raises(GenerationError, match="recalled 2 of 3 blocks before the hook"):
            model.predict(x, t, condition)
    finally:
        first._compiled_call_impl = None
        model.hook.clear()


def test_a_cache_that_skips_blocks_is_refused():
    from diffusers import FirstBlockCacheConfig

    pipeline = pipelines.flux()
    model = load_model(pipeline, image_size=SIZE)
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    for act in (lambda: load_model(pipeline, image_size=SIZE),
                lambda: model.predict(*inputs(model))):
        with pytest.raises(ModelError, match=r"cache enabled.*transformer\.disable_cache\(\)"):
            act()
    pipeline.transformer.disable_cache()
    assert model.predict(*inputs(model)).isfinite().all()


def made(model, batch_size=3, static_shapes=False, **dials):
    x = checks.images(2)
    synthesizer = TensorSynthesizer(model, "paper", steps=4, noise_scale=1.0, guidance_scale=3.0,
                                    batch_size=batch_size, **dials)
    synthesizer.static_shapes = static_shapes
    requests = [Request(0, "a cat", 0), Request(0, "a cat", 1), Request(0, None, 2),
                Request(1, "a much longer prompt", 0)]
    return synthesizer.synthesize(x, requests).images


@pytest.mark.parametrize("name", ["flux2", "qwen_image"])
@pytest.mark.parametrize("rule", ["asymmetric", "symmetric"])
def test_branched_batched_and_shared_rows_agree_with_plain_ones(load, name, rule):
    model = load(name)
    plain = made(plain_rows(model), batch_size=1, update_rule=rule)
    torch.testing.assert_close(made(model, update_rule=rule), plain, atol=2e-4, rtol=0)
    torch.testing.assert_close(made(model, static_shapes=True, update_rule=rule), plain,
                               atol=2e-4, rtol=0)


def test_compiled_blocks_agree_and_the_plain_model_stays(load):
    model = load("sd3")
    expected = made(model)
    torch._dynamo.reset()
    twin = model.compiled(backend="eager")
    torch.testing.assert_close(made(twin, static_shapes=True), expected, atol=2e-4, rtol=0)
    assert "forward" not in vars(model.pipeline.transformer.transformer_blocks[0])
    assert torch.equal(made(model), expected)
