"""The tap behind a transformer's block: where it sits, what it leaves alone, what it refuses."""

import copy

import pytest
import torch

pytest.importorskip("transformers")

from benchmarks.common.plain import plain_rows
from benchmarks.families import checks, pipelines
from dreamda_aug import load_backbone
from dreamda_aug.errors import BackboneError, GenerationError
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
        return load_backbone(made[name], image_size=SIZE, **options)

    return load


class Add:
    """A perturbation that adds 1 to 3 to every entry, and notes what it was given."""

    def __call__(self, h, **_):
        self.shape = tuple(h.shape)
        return h + torch.linspace(1, 3, h.shape[2])  # no constant: a layer norm would take it out


def inputs(backbone, prompts=("a cat", "two dogs sat", "")):
    x = backbone.encode(checks.images(len(prompts)))
    return x, torch.tensor(500.0), backbone.embed(list(prompts))


@pytest.mark.parametrize("name", STREAMS)
def test_branching_at_the_tap_equals_running_every_row(load, name):
    backbone = load(name)
    x, t, condition = inputs(backbone)
    rows = torch.tensor([0, 1, 2, 1, 0, 2, 2])
    seeds = dict(seeds=torch.arange(4), step=torch.tensor(1), scale=torch.ones(4),
                 unconditional=torch.zeros(4, dtype=torch.bool))
    backbone.tap.set(BottleneckNoise(), rows, 3, 3, **seeds)
    branched = backbone.predict(x, t, condition)
    backbone.tap.set(BottleneckNoise(), None, 3, 7, **seeds)
    plain = backbone.predict(x[rows], t, {name: value[rows] for name, value in condition.items()})
    backbone.tap.clear()
    assert len(branched) == 7
    torch.testing.assert_close(branched, plain, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(branched[:3], backbone.predict(x, t, condition), atol=1e-5, rtol=0)
    assert (branched[3:] - branched[rows[3:]]).abs().amax((1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("name", STREAMS)
def test_only_the_images_tokens_are_perturbed(load, name):
    backbone = load(name)
    x, t, condition = inputs(backbone)
    seen = []
    hook = backbone.tap._tapped.register_forward_hook(
        lambda module, args, output: seen.append(output[-1] if isinstance(output, tuple)
                                                 else output))
    add = Add()
    backbone.predict(x, t, condition)
    backbone.tap.set(add, None, 0, 3)
    backbone.predict(x, t, condition)
    backbone.tap.clear()
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
    backbone = load(name, tap_index=index)
    assert backbone.tap_index == index
    x, t, condition = inputs(backbone)
    rows = torch.tensor([0, 1, 2, 2])
    backbone.tap.set(Add(), rows, 3, 3)
    branched = backbone.predict(x, t, condition)
    backbone.tap.clear()
    plain = backbone.predict(x, t, condition)
    torch.testing.assert_close(branched[:3], plain, atol=1e-5, rtol=0)
    assert (branched[3] - plain[2]).abs().max() > 1e-3
    features = backbone.features(x, t, condition)
    assert features.shape[0] == 3 and features.shape[2:] in {(4, 4), (8, 8)}


@pytest.mark.parametrize("name, index, message", [
    ("flux", 4, r"from 0 to 3 for FluxTransformer2DModel, which has 4 blocks \(2 "
                r"transformer_blocks, then 2 single_transformer_blocks\); got 4"),
    ("sd3", -1, r"which has 4 blocks \(4 transformer_blocks\); got -1"),
    ("sd3", True, "got True"), ("sd3", 1.0, "got 1.0"),
    ("hunyuan_dit", 1, "from 2 to 5 .* those before it also feed skips; got 1"),
])
def test_a_tap_index_without_a_block_is_refused(load, name, index, message):
    with pytest.raises(ValueError, match=f"tap_index must be a whole number .*{message}"):
        load(name, tap_index=index)


def test_long_skips_stay_as_they_are(load):
    """What HunyuanDiT's last blocks get of its first ones is not perturbed."""
    backbone = load("hunyuan_dit")
    blocks, skips = backbone.pipeline.transformer.blocks, []
    assert blocks[4].skip_linear is not None and blocks[3].skip_linear is None
    hooks = [block.register_forward_pre_hook(
        lambda module, args, kwargs: skips.append(kwargs["skip"].clone()), with_kwargs=True)
        for block in blocks[4:]]
    x, t, condition = inputs(backbone)
    backbone.predict(x, t, condition)
    plain, skips[:] = list(skips), []
    backbone.tap.set(Add(), torch.tensor([0, 1, 2, 0]), 3, 3)
    backbone.predict(x, t, condition)
    backbone.tap.clear()
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
    backbone = load("sd3")
    x, t, condition = inputs(backbone)
    backbone.tap.set(Add(), torch.tensor([0, 1, 2, 0]), 3, 3)
    expected = backbone.predict(x, t, condition)
    backbone.tap.clear()
    clone = copy.deepcopy(backbone)
    with torch.no_grad():
        for weight in backbone.pipeline.transformer.parameters():
            weight.mul_(0.5)
    clone.tap.set(Add(), torch.tensor([0, 1, 2, 0]), 3, 3)
    made = clone.predict(x, t, condition)
    with torch.no_grad():
        for weight in backbone.pipeline.transformer.parameters():
            weight.mul_(2)
    assert torch.equal(made, expected)


def test_generation_raises_if_the_tap_is_gone():
    backbone = load_backbone(pipelines.sd3(), image_size=SIZE)
    backbone.tap.remove()
    with pytest.raises(GenerationError, match="tap never fired"):
        checks.moved(backbone, 1.0)


def test_a_block_that_is_not_recalled_is_noticed(load):
    """As where somebody has compiled the blocks in place."""
    backbone = load("sd3")
    x, t, condition = inputs(backbone)
    first = backbone.pipeline.transformer.transformer_blocks[0]
    first._compiled_call_impl = type(first).forward.__get__(first)
    backbone.tap.set(Add(), torch.tensor([0, 1, 2, 0]), 3, 3)
    try:
        with pytest.raises(GenerationError, match="recalled 2 of 3 blocks before the tap"):
            backbone.predict(x, t, condition)
    finally:
        first._compiled_call_impl = None
        backbone.tap.clear()


def test_a_cache_that_skips_blocks_is_refused():
    from diffusers import FirstBlockCacheConfig

    pipeline = pipelines.flux()
    backbone = load_backbone(pipeline, image_size=SIZE)
    pipeline.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.1))
    for act in (lambda: load_backbone(pipeline, image_size=SIZE),
                lambda: backbone.predict(*inputs(backbone))):
        with pytest.raises(BackboneError, match=r"cache enabled.*transformer\.disable_cache\(\)"):
            act()
    pipeline.transformer.disable_cache()
    assert backbone.predict(*inputs(backbone)).isfinite().all()


def made(backbone, batch_size=3, static_shapes=False, **dials):
    x = checks.images(2)
    synthesizer = TensorSynthesizer(backbone, "paper", steps=4, noise_scale=1.0, guidance_scale=3.0,
                                    batch_size=batch_size, **dials)
    synthesizer.static_shapes = static_shapes
    requests = [Request(0, "a cat", 0), Request(0, "a cat", 1), Request(0, None, 2),
                Request(1, "a much longer prompt", 0)]
    return synthesizer.synthesize(x, requests).images


@pytest.mark.parametrize("name", ["flux2", "qwen_image"])
@pytest.mark.parametrize("rule", ["asymmetric", "symmetric"])
def test_branched_batched_and_shared_rows_agree_with_plain_ones(load, name, rule):
    backbone = load(name)
    plain = made(plain_rows(backbone), batch_size=1, update_rule=rule)
    torch.testing.assert_close(made(backbone, update_rule=rule), plain, atol=2e-4, rtol=0)
    torch.testing.assert_close(made(backbone, static_shapes=True, update_rule=rule), plain,
                               atol=2e-4, rtol=0)


def test_compiled_blocks_agree_and_the_plain_model_stays(load):
    backbone = load("sd3")
    expected = made(backbone)
    torch._dynamo.reset()
    twin = backbone.compiled(backend="eager")
    torch.testing.assert_close(made(twin, static_shapes=True), expected, atol=2e-4, rtol=0)
    assert "forward" not in vars(backbone.pipeline.transformer.transformer_blocks[0])
    assert torch.equal(made(backbone), expected)
