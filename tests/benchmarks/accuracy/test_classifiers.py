"""The classifiers of the accuracy study."""


import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from benchmarks.accuracy.arms import arms_of
from benchmarks.accuracy.classifiers import frozen
from benchmarks.accuracy.training import train


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_frozen_features_stay_as_they_are(name, tmp_path, tiny, images, noise_pool):
    network = getattr(models, name)().eval()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    arm = next(arm for arm in arms_of(tiny) if arm.frozen)
    found = train(tiny, arm, images, noise_pool(0), torch.zeros(0), 0,
                  tmp_path / "weights.safetensors").classifier
    before = frozen(tiny, tmp_path / "weights.safetensors")
    for key, value in found.body.state_dict().items():
        assert torch.equal(value, before.body.state_dict()[key])
    assert not torch.equal(found.head.weight, before.head.weight)
    x = torch.rand(2, 1, 16, 16)
    larger = torch.nn.functional.interpolate(x.expand(-1, 3, -1, -1), scale_factor=2,
                                             mode="bilinear")
    if name == "resnet18":
        network.fc = torch.nn.Identity()
    else:
        network.classifier = torch.nn.Identity()
    expected = found.head(network(found.norm(larger)))
    torch.testing.assert_close(found(x), expected)
