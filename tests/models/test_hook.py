"""The hooks on the bottleneck, against diffusers' own way in and against rows run one by one."""

import pytest
import torch
from pipelines import pixel_pipeline, tiny_text_unet, tiny_unet

from dreamda_aug.errors import GenerationError
from dreamda_aug.generation.tensors import TensorSynthesizer
from dreamda_aug.models.hook import UNetHook
from dreamda_aug.models.unet import PixelModel


class Add:
    """A perturbation that adds a tensor."""

    def __call__(self, h, noise):
        return h + noise


def text_inputs(rows):
    torch.manual_seed(1)
    return torch.randn(rows, 4, 8, 8), torch.tensor(500), torch.randn(rows, 6, 16)


def test_the_hook_equals_diffusers_own_residual_input_bit_for_bit():
    unet = tiny_text_unet()
    x, t, text = text_inputs(3)
    noise = torch.randn(3, 16, 4, 4)
    skips = [torch.zeros(3, 8, 8, 8), torch.zeros(3, 8, 8, 8), torch.zeros(3, 8, 4, 4),
             torch.zeros(3, 16, 4, 4)]
    with torch.no_grad():
        expected = unet(x, t, text, mid_block_additional_residual=noise,
                        down_block_additional_residuals=skips).sample
        hook = UNetHook(unet)
        hook.set(Add(), None, 0, 3, noise=noise)
        assert torch.equal(unet(x, t, text).sample, expected)
        hook.clear()
        assert not torch.equal(unet(x, t, text).sample, expected)


@pytest.mark.parametrize("kind", ["text", "pixel"])
def test_branching_at_the_bottleneck_equals_running_every_row(kind):
    unet = tiny_text_unet() if kind == "text" else tiny_unet()
    x, t, text = text_inputs(2)
    inputs = (x, t, text) if kind == "text" else (torch.randn(2, 1, 16, 16), t)
    rows = torch.tensor([0, 1, 0, 0, 1])
    noise = torch.randn(3, 16, 4, 4) if kind == "text" else torch.randn(3, 16, 8, 8)
    hook = UNetHook(unet)
    with torch.no_grad():
        hook.set(Add(), rows, 2, 2, noise=noise)
        branched = unet(*inputs).sample
        assert len(branched) == 5
        repeated = [i[rows] if i.ndim else i for i in inputs]
        hook.set(Add(), None, 2, 5, noise=noise)
        # kernels differ with the batch size, in the last bits
        torch.testing.assert_close(branched, unet(*repeated).sample, atol=1e-5, rtol=1e-5)


def test_generation_raises_if_the_hook_never_fires():
    model = PixelModel(pixel_pipeline())
    model.hook.remove()
    generator = TensorSynthesizer(model, "paper", steps=4)
    with pytest.raises(GenerationError, match="hook never fired"):
        generator.generate(generator.invert(torch.rand(1, 1, 16, 16)))
