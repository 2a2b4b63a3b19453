"""The rows of the ablations, and noise in other places than the bottleneck."""

import pytest
import torch

from benchmarks.accuracy.ablations import ABLATIONS
from benchmarks.accuracy.places import make_at
from benchmarks.accuracy.pools import PoolSpec, settings_of
from dreamda_aug.generation.tensors import Request, TensorSynthesizer


@pytest.mark.parametrize("where", ["x_T", "up block"])
def test_noise_elsewhere_moves_images_with_its_scale_and_not_at_all_at_zero(
    where, backbone, tiny, numbered
):
    images = numbered(2).pixels.float() / 255
    requests = [Request(i, None, k) for i in range(2) for k in range(2)]
    synthesizer = TensorSynthesizer(backbone, settings_of(tiny, 0.5, 1.0, 0.0))
    distances = []
    for scale in (0.0, 0.3, 0.9):
        made = make_at(f"{where} {scale}", synthesizer)(images, requests)
        distances.append((made - images.repeat_interleave(2, dim=0)).square().mean().item())
        assert torch.equal(made[0], made[1]) == (scale == 0)
    assert distances[0] < 1e-6 < distances[1] < distances[2]


def test_ablations_have_distinct_rows(tiny):
    base = PoolSpec("replicas", 3, settings_of(tiny, 0.5, 0.6, 1.0))
    for build in ABLATIONS.values():
        names = [variant.named_arm().name for variant in build(base)]
        assert len(set(names)) == len(names) > 1
