"""The averaged weights, against torch's own moving average."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dreamda_aug.amst.averaging import WeightAverage


def drift(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_it_equals_torchs_average_once_the_ramp_is_over():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours, theirs = WeightAverage(module, 0.5), None
    for step in range(6):
        drift(module)
        module(torch.randn(5, 3))
        ours.update()
        if step == 0:  # the first step forgets the weights that were there before
            theirs = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.5))
            theirs.update_parameters(module)
        else:
            theirs.update_parameters(module)
    for name, value in theirs.module.named_parameters():
        torch.testing.assert_close(ours.weights[name], value)
    assert ours.weights["1.num_batches_tracked"] == 6


def test_within_the_context_the_module_has_the_average_and_then_its_own_again():
    module = nn.Linear(2, 2)
    average = WeightAverage(module, 0.9)
    for _ in range(3):
        drift(module)
        average.update()
    own = copy.deepcopy(module.state_dict())
    with pytest.raises(RuntimeError, match="in between"), average.in_use():
        torch.testing.assert_close(dict(module.state_dict()), average.weights)
        raise RuntimeError("in between")
    torch.testing.assert_close(module.state_dict(), own)
    average.copy_to_module()
    torch.testing.assert_close(dict(module.state_dict()), average.weights)
    assert not torch.equal(module.weight, own["weight"])
