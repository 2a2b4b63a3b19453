import pytest
import torch
from sklearn.decomposition import PCA

from dreamda_aug.report.figures import histogram, scatter


def test_histograms_count_every_value_once():
    found = histogram("x", [0.0, 0.5, 0.5, 1.0], 0.25)
    assert sum(found.counts) == 4 and found.counts[0] == found.counts[-1] == 1
    assert (found.median, found.mean, found.edges[0], found.edges[-1]) == (0.5, 0.5, 0, 1)
    assert (found.mark, found.marked) == (0.25, 0.25)
    assert histogram("x", [0.0, 1.0], 1.5).mark is None
    flat = histogram("x", [0.3, 0.3], 0.3)
    assert flat.counts[0] == 2 and flat.mark is None
    assert histogram("x", [1.0, 2.0]).median == 1.5


@pytest.mark.parametrize("rng_seed", [0, 1, 2])
def test_the_scatter_is_what_scikit_learn_makes_of_it(rng_seed):
    generator = torch.Generator().manual_seed(rng_seed)
    features = torch.rand(40, 16, generator=generator) * torch.arange(1.0, 17.0)
    found = scatter(features[:15], features[15:])
    reference = PCA(2, svd_solver="full").fit(features.double().numpy())
    assert found.explained == pytest.approx(reference.explained_variance_ratio_)
    axes = torch.tensor(reference.components_)
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    points = torch.tensor(reference.transform(features.double().numpy()))
    points = points * (axes * torch.tensor(reference.components_)).sum(1).sign()
    low, high = points.amin(0), points.amax(0)
    expected = (points - low) / (high - low)
    torch.testing.assert_close(torch.tensor(found.real + found.synthetic).double(), expected,
                               atol=1e-6, rtol=0)
    assert found.aspect == pytest.approx(((high - low)[1] / (high - low)[0]).item())
    spreads = [(part - part.mean(0)).square().sum(1).mean().sqrt()
               for part in (points[:15], points[15:])]
    assert found.spread == pytest.approx((spreads[1] / spreads[0]).item())
    offset = (points[:15].mean(0) - points[15:].mean(0)).norm() / spreads[0]
    assert found.offset == pytest.approx(offset.item())


def test_without_enough_images_there_is_no_scatter():
    none = torch.zeros(0, 16)
    assert scatter(none, torch.rand(2, 16)) is None
    assert scatter(torch.ones(3, 16), torch.ones(5, 16)) is None
    line = torch.arange(4.0)[:, None] * torch.ones(16)
    assert scatter(none, line) is None  # they differ in one direction only
    alone = scatter(none, torch.rand(6, 16))
    assert alone.real == [] and alone.offset is None and alone.spread is None
