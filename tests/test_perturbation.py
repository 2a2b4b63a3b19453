import pytest
import torch
from conftest import pixel_pipeline, tiny_text_unet, tiny_unet

from dreamda_aug.backbones.unet import PixelBackbone
from dreamda_aug.errors import GenerationError
from dreamda_aug.generator import Generator
from dreamda_aug.perturbation import BottleneckNoise, BottleneckTap


class Add:
    """A perturbation that adds a tensor."""

    def __call__(self, h, noise):
        return h + noise


def text_inputs(rows):
    torch.manual_seed(1)
    return torch.randn(rows, 4, 8, 8), torch.tensor(500), torch.randn(rows, 6, 16)


def arguments(rows):
    return dict(seeds=torch.arange(rows), step=torch.tensor(0),
                unconditional=torch.arange(rows) < rows // 2, scale=torch.ones(rows))


def test_the_tap_equals_diffusers_own_residual_input_bit_for_bit():
    unet = tiny_text_unet()
    x, t, text = text_inputs(3)
    noise = torch.randn(3, 16, 4, 4)
    skips = [torch.zeros(3, 8, 8, 8), torch.zeros(3, 8, 8, 8), torch.zeros(3, 8, 4, 4),
             torch.zeros(3, 16, 4, 4)]
    with torch.no_grad():
        expected = unet(x, t, text, mid_block_additional_residual=noise,
                        down_block_additional_residuals=skips).sample
        tap = BottleneckTap(unet)
        tap.set(Add(), None, 0, 3, noise=noise)
        assert torch.equal(unet(x, t, text).sample, expected)
        tap.clear()
        assert not torch.equal(unet(x, t, text).sample, expected)


@pytest.mark.parametrize("kind", ["text", "pixel"])
def test_branching_at_the_bottleneck_equals_running_every_row(kind):
    unet = tiny_text_unet() if kind == "text" else tiny_unet()
    x, t, text = text_inputs(2)
    inputs = (x, t, text) if kind == "text" else (torch.randn(2, 1, 16, 16), t)
    rows = torch.tensor([0, 1, 0, 0, 1])
    noise = torch.randn(3, 16, 4, 4) if kind == "text" else torch.randn(3, 16, 8, 8)
    tap = BottleneckTap(unet)
    with torch.no_grad():
        tap.set(Add(), rows, 2, 2, noise=noise)
        branched = unet(*inputs).sample
        assert len(branched) == 5
        repeated = [i[rows] if i.ndim else i for i in inputs]
        tap.set(Add(), None, 2, 5, noise=noise)
        # kernels differ with the batch size, in the last bits
        torch.testing.assert_close(branched, unet(*repeated).sample, atol=1e-5, rtol=1e-5)


def test_relative_noise_has_the_stated_share_of_the_rms():
    h = torch.randn(4, 32, 16, 16) * torch.tensor([1.0, 2.0, 5.0, 10.0])[:, None, None, None]
    moved = BottleneckNoise()(h, **{**arguments(4), "scale": torch.full((4,), 0.5)}) - h
    ratio = moved.square().mean((1, 2, 3)).sqrt() / h.square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(ratio, torch.full((4,), 0.5), atol=0.02)


def test_absolute_noise_ignores_the_rms():
    h = 100 * torch.randn(2, 32, 16, 16)
    moved = BottleneckNoise(relative=False)(h, **{**arguments(2), "scale": 3 * torch.ones(2)}) - h
    assert torch.allclose(moved.std((1, 2, 3)), torch.full((2,), 3.0), atol=0.1)


@pytest.mark.parametrize("shared", [True, False])
def test_guidance_branches_share_their_noise_or_do_not(shared):
    h = torch.ones(4, 8, 8, 8)
    call = {**arguments(4), "seeds": torch.tensor([7, 8, 7, 8])}
    moved = BottleneckNoise(shared=shared)(h, **call)
    assert torch.equal(moved[:2], moved[2:]) == shared


def test_zero_scale_leaves_h_as_it_is():
    h = torch.randn(2, 8, 4, 4)
    assert torch.equal(BottleneckNoise()(h, **{**arguments(2), "scale": torch.zeros(2)}), h)


def test_noise_is_fresh_at_every_step():
    h = torch.ones(1, 8, 4, 4)
    first, second = (BottleneckNoise()(h, **{**arguments(1), "step": torch.tensor(s)})
                     for s in (0, 1))
    assert not torch.allclose(first, second)


def test_generation_raises_if_the_tap_never_fires():
    backbone = PixelBackbone(pixel_pipeline())
    backbone.tap.remove()
    generator = Generator(backbone, "paper", steps=4)
    with pytest.raises(GenerationError, match="tap never fired"):
        generator.generate(generator.invert(torch.rand(1, 1, 16, 16)))
