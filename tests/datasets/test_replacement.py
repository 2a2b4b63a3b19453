"""Samples that are replaced by one of their replicas, with a probability."""

import math

import PIL.Image
import pytest
import torch
from expansion.folders import write_images
from pipelines import pixel_pipeline
from torch.utils.data import DataLoader, TensorDataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from dreamda_aug import AugmentedDataset, Synthesizer
from dreamda_aug.expansion import expand
from dreamda_aug.models.unet import UNetModel

K = 3


def synthesizer(rng_seed=0):
    return Synthesizer(UNetModel(pixel_pipeline()), "paper", steps=2, noise_scale=8.0, cache=None,
                       rng_seed=rng_seed)


def dataset(count, replace, rng_seed=0, **options):
    images = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return AugmentedDataset(TensorDataset(images, torch.arange(count)), synthesizer(rng_seed), K,
                            replace=replace, with_origin=True, **options)


def origins(data, epoch):
    data.set_epoch(epoch)
    return [data.origin(index) for index in range(len(data))]


@pytest.mark.parametrize("replace", [0.0, 0.3, 1.0])
def test_a_share_of_the_samples_is_replaced_by_any_of_their_replicas(replace):
    data = dataset(2000, replace)
    assert len(data) == 2000
    found = origins(data, 0)
    assert [origin.index for origin in found] == list(range(2000))
    replicas = [origin.replica for origin in found if origin.synthetic]
    # four standard deviations of a share among 2,000
    assert abs(len(replicas) / 2000 - replace) <= 4 * math.sqrt(replace * (1 - replace) / 2000)
    for replica in range(K) if replicas else ():
        assert abs(replicas.count(replica) / len(replicas) - 1 / K) < 0.08


def test_epoch_index_and_rng_seed_alone_decide():
    data, again, other = dataset(200, 0.5), dataset(200, 0.5), dataset(200, 0.5, rng_seed=1)
    first = origins(data, 0)
    assert origins(data, 1) != first and origins(data, 0) == origins(again, 0) == first
    assert origins(other, 0) != first
    # what is drawn in one epoch tells nothing of the next: half of the decisions agree
    same = [one.synthetic == two.synthetic for one, two in zip(first, origins(data, 1))]
    assert 60 < sum(same) < 140


def test_workers_serve_the_images_of_epoch_0_in_every_epoch_and_no_others():
    data = dataset(4, 0.6)
    plain = AugmentedDataset(data._dataset, synthesizer(), K)
    allowed = [torch.stack([plain[i][0], *(plain[4 + K * i + k][0] for k in range(K))])
               for i in range(4)]
    seen = set()
    loader = DataLoader(data, 3, num_workers=2, persistent_workers=True)
    for epoch in range(4):
        data.set_epoch(epoch)
        for images, labels, origin in loader:
            for image, label, synthetic, replica in zip(
                    images, labels.tolist(), origin.synthetic.tolist(), origin.replica.tolist()):
                assert data.origin(label) == (synthetic, label, replica, 0 if synthetic else -1)
                expected = allowed[label][replica + 1]
                torch.testing.assert_close(image, expected, atol=1e-5, rtol=0)
                seen.add((label, replica))
    assert len(seen) > 8 and data.synthesizer.sampler.inversions == 0  # workers have made them all
    data.set_epoch(9)
    assert len(data.__getitems__([0, 1, 2, 3])) == 4 >= data.synthesizer.sampler.inversions


def test_an_expansion_is_drawn_from_in_the_same_way(tmp_path):
    train, maker = write_images(tmp_path / "train", {"cat": 2, "dog": 2}), synthesizer(rng_seed=5)
    expand(train, tmp_path / "out", maker, K)
    real = ImageFolder(train, v2.ToImage(), loader=PIL.Image.open)
    stored = AugmentedDataset.from_folder(real, tmp_path / "out", replace=0.5, with_origin=True)
    live = AugmentedDataset(real, maker, K, replace=0.5, with_origin=True)
    assert len(stored) == len(live) == 4 and stored.targets == live.targets == [0, 0, 1, 1]
    for epoch in range(3):
        assert origins(stored, epoch) == origins(live, epoch)
        for (one, *rest), (other, *expected) in zip(map(stored.__getitem__, range(4)), live):
            assert rest == expected
            torch.testing.assert_close(one.float(), other.float(), atol=1, rtol=0)
    expand(train, tmp_path / "cats", maker, 1, only_classes=["cat"])
    cats = AugmentedDataset.from_folder(real, tmp_path / "cats", replace=1.0)
    assert [cats.origin(i).synthetic for i in range(4)] == [True, True, False, False]
    with pytest.warns(UserWarning, match="epoch 0 are being served a second time; call set_epoch"):
        [cats[i] for _ in range(2) for i in range(4)]
    with pytest.raises(ValueError, match=r"replace must lie in \[0, 1\] or be None, got 2"):
        AugmentedDataset.from_folder(real, tmp_path / "cats", replace=2)


def test_parts_have_no_place():
    data = dataset(4, 0.0)
    for name in ("real", "synthetic"):
        with pytest.raises(AttributeError, match="with replace, .* origin.index. tells which"):
            getattr(data, name)
