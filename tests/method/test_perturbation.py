import pytest
import torch

from dreamda_aug.method.perturbation import BottleneckNoise


def arguments(rows):
    return dict(seeds=torch.arange(rows), step=torch.tensor(0),
                unconditional=torch.arange(rows) < rows // 2, scale=torch.ones(rows))


def test_relative_noise_has_the_stated_share_of_the_rms():
    h = torch.randn(4, 32, 16, 16) * torch.tensor([1.0, 2.0, 5.0, 10.0])[:, None, None, None]
    moved = BottleneckNoise()(h, **{**arguments(4), "scale": torch.full((4,), 0.5)}) - h
    ratio = moved.square().mean((1, 2, 3)).sqrt() / h.square().mean((1, 2, 3)).sqrt()
    assert torch.allclose(ratio, torch.full((4,), 0.5), atol=0.02)


def test_absolute_noise_ignores_the_rms_and_is_fresh_at_every_step():
    h, noise = 100 * torch.randn(2, 32, 16, 16), BottleneckNoise(relative=False)
    moved = noise(h, **{**arguments(2), "scale": torch.tensor([3.0, 0.0])}) - h
    torch.testing.assert_close(moved.std((1, 2, 3)), torch.tensor([3.0, 0.0]), atol=0.1, rtol=0)
    later = noise(h, **{**arguments(2), "step": torch.tensor(1)}) - h
    assert abs(torch.corrcoef(torch.stack([moved[0].flatten(), later[0].flatten()]))[0, 1]) < 0.05


@pytest.mark.parametrize("shared", [True, False])
def test_guidance_branches_share_their_noise_or_do_not(shared):
    h = torch.ones(4, 8, 8, 8)
    call = {**arguments(4), "seeds": torch.tensor([7, 8, 7, 8])}
    moved = BottleneckNoise(shared=shared)(h, **call)
    assert torch.equal(moved[:2], moved[2:]) == shared


def test_noise_on_tokens_counts_in_each_channels_own_size():
    h = torch.randn(2, 4096, 3) * torch.tensor([1.0, 100.0, 0.01])
    made = BottleneckNoise()(h, **{**arguments(2), "scale": torch.tensor([0.5, 0.0])})
    size = (made - h).square().mean(1).sqrt() / h.square().mean(1).sqrt()
    torch.testing.assert_close(size[0], torch.full((3,), 0.5), atol=0.05, rtol=0)
    assert torch.equal(made[1], h[1])
