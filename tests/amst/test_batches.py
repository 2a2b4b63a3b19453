"""What a batch holds, and which labels are taken."""

import pytest
import torch

from dreamda_aug.amst import RunPlan
from dreamda_aug.amst.batches import BatchLoading, MixedBatchSampler, batch_counts


@pytest.mark.parametrize(("size", "ratio", "sizes", "expected"), [
    (64, (1, 2, 1), (9, 9, 9), [16, 32, 16]),
    (10, (1, 1, 1), (9, 9, 9), [4, 3, 3]),
    (12, (1, 2, 1), (9, 0, 9), [3, 0, 9]),
    (12, (1, 2, 1), (9, 9, 0), [3, 9, 0]),
    (12, (1, 2, 1), (9, 0, 0), [12, 0, 0]),
    (12, (1, 0, 0), (9, 9, 9), [12, 0, 0]),
    (4, (0.01, 1, 1), (9, 9, 9), [1, 1, 2]),
])
def test_a_batch_is_split_at_the_stated_ratio(size, ratio, sizes, expected):
    assert batch_counts(size, ratio, sizes) == expected


def test_the_sampler_goes_through_each_source_before_it_repeats():
    sampler, other = (MixedBatchSampler(4, [0, 2, 4], [1, 3], batch_size=8, ratio=(4, 3, 1),
                                        steps=4, rng_seed=rng_seed) for rng_seed in (0, 1))
    batches = list(sampler)
    assert len(sampler) == len(batches) == 4 and batches == list(sampler) != list(other)
    for batch in batches:
        assert sorted(batch[:4]) == [0, 1, 2, 3]
        assert sorted(batch[4:7]) == [4, 6, 8]
    assert {batches[0][7], batches[1][7]} == {5, 7}


IMAGES = [torch.full((1, 2, 2), number / 30) for number in range(30)]


def loading(labels=None, targets=None, **plan):
    plan = {"batch_size": 12, "steps_per_epoch": 3} | plan
    labels = range(30) if labels is None else labels
    targets = [0, 1, 2] if targets is None else targets
    return BatchLoading(list(zip(IMAGES, targets)), list(zip(IMAGES, labels)), 30, RunPlan(**plan))


def test_batches_hold_what_the_labels_say():
    mask = torch.arange(30) < 10
    batches = list(loading().mixed(mask, 0, 0))
    assert len(batches) == 3
    for batch in batches:
        assert (len(batch.real), len(batch.synthetic)) == (4, 8)
        assert mask[batch.indices].tolist() == [True] * 4 + [False] * 4
        assert torch.equal(batch.synthetic, torch.stack([IMAGES[i] for i in batch.indices]))
        assert torch.equal(batch.seed_labels, batch.indices)
        assert torch.equal(batch.real[:, 0, 0, 0] * 30, batch.targets.float())


def test_batches_of_real_images_alone_have_no_others():
    for batch in loading().mixed(None, 0, 0):
        assert len(batch.real) == 12 and len(batch.synthetic) == len(batch.seed_labels) == 0


@pytest.mark.parametrize(("plan", "steps"), [
    (RunPlan(batch_size=12, ratio=(1, 1, 1)), 13),  # 8 of the pool in each batch
    (RunPlan(batch_size=12, ratio=[1, 0, 0]), 100),
    (RunPlan(steps_per_epoch=5), 5),
])
def test_an_epoch_goes_through_the_pool_once_unless_its_steps_are_stated(plan, steps):
    assert BatchLoading([], range(100), 3, plan).steps == steps


def label_at(data, index):
    return data.__getitems__([index])[0][1]


@pytest.mark.parametrize("label", [None, -1, torch.tensor(-1)], ids=repr)
def test_an_image_of_the_pool_may_have_no_label_but_a_labeled_one_may_not(label):
    assert label_at(loading([label] * 30), 3) == -1
    for wrong in (label, 2.0, 30):
        with pytest.raises(ValueError, match="a label must be"):
            label_at(loading(targets=[wrong] * 3), 0)
