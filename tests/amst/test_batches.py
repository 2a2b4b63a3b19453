"""What a batch holds, and which labels are taken."""

import pytest
import torch

from dreamda_aug.amst.batches import MixedImages, batch_counts, mixed_batches


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


def test_each_source_is_gone_through_before_it_repeats():
    batches, same, other = (mixed_batches(
        4, [0, 2, 4], [1, 3], batch_size=8, ratio=(4, 3, 1), steps=4, rng_seed=rng_seed)
        for rng_seed in (0, 0, 1))
    assert len(batches) == 4 and batches == same != other
    for batch in batches:
        assert sorted(batch[:4]) == [0, 1, 2, 3]
        assert sorted(batch[4:7]) == [4, 6, 8]
    assert {batches[0][7], batches[1][7]} == {5, 7}


IMAGES = torch.arange(30.0)[:, None, None, None].expand(-1, 1, 2, 2) / 30


def mixed(targets=(0, 1, 2), labels=range(30)):
    return MixedImages(list(zip(IMAGES, targets)), list(zip(IMAGES, labels)), 30)


def test_a_batch_holds_real_images_and_those_of_the_pool_with_their_labels():
    batch = mixed()[[2, 0, 3 + 7, 3 + 5]]
    assert torch.equal(batch.real, IMAGES[[2, 0]]) and batch.targets.tolist() == [2, 0]
    assert torch.equal(batch.synthetic, IMAGES[[7, 5]])
    assert batch.indices.tolist() == batch.seed_labels.tolist() == [7, 5]
    assert len(mixed()[[0]].synthetic) == len(mixed()[[3]].real) == 0


@pytest.mark.parametrize("label", [None, -1, torch.tensor(-1)], ids=repr)
def test_an_image_of_the_pool_may_have_no_label_but_a_labeled_one_may_not(label):
    assert mixed(labels=[label] * 30)[[3]].seed_labels == -1
    for wrong in (label, 2.0, 30):
        with pytest.raises(ValueError, match="a label must be"):
            mixed(targets=[wrong] * 3)[[0]]
