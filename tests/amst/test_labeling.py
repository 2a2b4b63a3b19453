import pytest
import torch
from torch import nn

from dreamda_aug.amst import (
    AMSTWrapper,
    LabelingRule,
    MixedBatch,
    SeedLabeler,
    VotingRule,
    agree_and_confident,
    align_distribution,
)
from dreamda_aug.amst.labeling import PoolLabeling

CPU = torch.device("cpu")
CLASSES = 3
SHARES = torch.tensor([0.5, 0.3, 0.2])


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        images = torch.rand(size, 1, 4, 4, generator=generator)
        nothing = torch.zeros(0, dtype=torch.int64)
        yield MixedBatch(images[:0], nothing, images, torch.arange(size), torch.arange(size) % 3,
                         nothing)


def labeling(aligned, labeler=None, shares=SHARES):
    torch.manual_seed(0)
    wrapper = AMSTWrapper(nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)))
    rule = LabelingRule(distribution_alignment=aligned, expected_shares=shares)
    return PoolLabeling(wrapper, labeler, rule)


def test_a_pool_is_aligned_by_its_own_average_whatever_the_batches():
    one, other = labeling(True), labeling(True)
    labels, seed_labels = one.label_pool(batches(8), CPU)
    images = next(batches(8)).synthetic
    probabilities = one.wrapper.head_probabilities(images)
    average = probabilities.mean((0, 1))
    expected = one.wrapper.vote(align_distribution(probabilities, average, SHARES))
    torch.testing.assert_close(vars(labels), vars(expected))
    torch.testing.assert_close(one.average, average)
    assert seed_labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    in_parts, _ = other.label_pool(batches(5, 3), CPU)
    torch.testing.assert_close(vars(in_parts), vars(labels))


def test_a_batch_is_aligned_by_a_running_average():
    aligned = labeling(True)
    batch = next(batches(6))
    labels = aligned.label(batch.synthetic, batch.seed_labels)
    probabilities = aligned.wrapper.head_probabilities(batch.synthetic)
    average = 0.99 * SHARES + 0.01 * probabilities.mean((0, 1))
    expected = aligned.wrapper.vote(align_distribution(probabilities, average, SHARES))
    torch.testing.assert_close(vars(labels), vars(expected))
    torch.testing.assert_close(aligned.average, average)


def test_images_without_a_seed_label_have_a_voting_rule_of_their_own():
    torch.manual_seed(0)
    wrapper = AMSTWrapper(nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)),
                          voting=VotingRule("majority", confidence_threshold=0.0))
    strict = VotingRule(confidence_threshold=0.99)
    batch = next(batches(40))
    seed_labels = torch.where(torch.arange(40) % 2 == 0, batch.seed_labels, -1)
    found = PoolLabeling(wrapper, None, LabelingRule(unlabeled_voting=strict)).label(
        batch.synthetic, seed_labels)
    probabilities = wrapper.head_probabilities(batch.synthetic)
    lenient, strictly = wrapper.vote(probabilities), agree_and_confident(probabilities, strict)
    differs = lenient.mask != strictly.mask
    assert differs[::2].any() and differs[1::2].any()
    torch.testing.assert_close(vars(found[::2]), vars(lenient[::2]))
    torch.testing.assert_close(vars(found[1::2]), vars(strictly[1::2]))


def test_adaptive_thresholds_of_unlabeled_images_are_of_the_whole_pool():
    def labels_of(*sizes):
        torch.manual_seed(0)
        wrapper = AMSTWrapper(nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)))
        rule = LabelingRule(unlabeled_voting=VotingRule("majority", threshold="adaptive"))
        images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        nothing = torch.zeros(0, dtype=torch.int64)
        parts = [MixedBatch(images[:0], nothing, part, torch.arange(len(part)),
                            torch.full((len(part),), -1), nothing)
                 for part in images.split(list(sizes))]
        return PoolLabeling(wrapper, None, rule).label_pool(parts, CPU)[0]

    torch.testing.assert_close(vars(labels_of(40)), vars(labels_of(2, 3, 35)))


def test_without_alignment_the_heads_vote_as_they_are():
    plain = labeling(False)
    labels, _ = plain.label_pool(batches(6), CPU)
    expected = plain.wrapper.label(next(batches(6)).synthetic)
    torch.testing.assert_close(vars(labels), vars(expected))
    torch.testing.assert_close(plain.average, SHARES)


def test_shares_are_equal_unless_they_are_stated():
    assert LabelingRule().shares_of(4).tolist() == [0.25] * 4
    assert LabelingRule(expected_shares=SHARES).shares_of(3).tolist() == SHARES.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"expected_shares": [1, 1, 1]}, r"numbers ≥ 0 with sum 1, one per class, got \[1.0, 1"),
        ({"expected_shares": [1.5, -0.5]}, r"numbers ≥ 0 with sum 1.*got \[1.5, -0.5\]"),
        ({"expected_shares": [float("nan"), 1]}, r"numbers ≥ 0 with sum 1.*got \[nan, 1.0\]"),
        ({"expected_shares": []}, r"numbers ≥ 0 with sum 1.*got \[\]"),
        ({"collapse_factor": 0}, "collapse_factor must be > 0, got 0"),
        ({"collapse_factor": float("nan")}, "collapse_factor must be > 0, got nan"),
    ],
)
def test_labeling_rules_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LabelingRule(**options)


def test_a_rule_that_does_not_fit_the_wrapper_is_refused():
    with pytest.raises(ValueError, match="must have 3 numbers, one per class .*, got 2"):
        labeling(False, shares=(0.5, 0.5))
    with pytest.raises(ValueError, match="works on the wrapper's heads; leave labeler out"):
        labeling(True, labeler=SeedLabeler())
