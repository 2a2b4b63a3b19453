"""What others would run: the same weights, without our hooks."""


import pytest
import torch
from pipelines import pixel_pipeline

from benchmarks.common.architectures import build, made, sample_images
from benchmarks.speed.peers import Peer, without_hooks
from dreamda_aug import BottleneckNoise, Settings
from dreamda_aug.models.unet import UNetModel


@pytest.mark.parametrize("arch", ["tiny-sdxl", "tiny-sd3"])
def test_diffusers_own_pipeline_runs_on_the_weights_of_a_model(arch):
    model = build(arch, "cpu")
    peer = Peer(model, Settings(steps=2, strength=0.5))
    images = sample_images(model, 2)
    torch.manual_seed(0)
    first = peer.img2img(images)
    assert first.shape == images.shape and first.isfinite().all() and first.std() > 0
    assert peer.rows == 4 and not peer.has_cycle  # one step, two images, with guidance
    next(model.denoiser.parameters()).data.mul_(1.5)
    torch.manual_seed(0)
    assert not torch.equal(peer.img2img(images), first)


@pytest.mark.parametrize("arch, parameters", [
    ("sdxl", {"unet": 2_567_463_684, "vae": 83_653_863}),
    ("sd3", {"transformer": 2_028_328_000, "vae": 83_819_683 + 1_328}),
])
def test_large_architectures_have_the_published_number_of_weights(arch, parameters):
    pipeline = made(arch, "meta")
    assert {name: sum(p.numel() for p in getattr(pipeline, name).parameters())
            for name in parameters} == parameters


def test_a_model_without_hooks_shares_its_weights_and_leaves_the_hooks_where_they_were():
    model = UNetModel(pixel_pipeline())
    twin, x = without_hooks(model.unet), torch.rand(1, 1, 16, 16)
    assert [id(p) for p in twin.parameters()] == [id(p) for p in model.unet.parameters()]
    seeds, scale = torch.tensor([1]), torch.ones(1)
    noise = model.hook.perturbing(
        BottleneckNoise(), None, 0, seeds=seeds, step=torch.tensor(0), scale=scale,
        unconditional=torch.zeros(1, dtype=torch.bool))
    with torch.no_grad():
        with noise:
            plain, hooked = (unet(x, 10, return_dict=False)[0] for unet in (twin, model.unet))
        assert torch.equal(plain, model.unet(x, 10, return_dict=False)[0])
    assert not torch.equal(plain, hooked)
