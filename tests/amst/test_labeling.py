import pytest
import torch
from torch import nn

from dreamda_aug.amst import (
    AMST_PLUS,
    AMSTWrapper,
    LabelPrior,
    MixedBatch,
    PseudoLabels,
    RunPlan,
    SeedLabeler,
    VotingRule,
)
from dreamda_aug.amst.labeling import (
    CollapseWarning,
    PoolLabeling,
    RoundReport,
    make_report,
    warn_of_collapse,
)
from dreamda_aug.amst.losses import agree_and_confident, align_distribution

CPU = torch.device("cpu")
CLASSES = 3
SHARES = torch.full((3,), 1 / 3)


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        images = torch.rand(size, 1, 4, 4, generator=generator)
        nothing = torch.zeros(0, dtype=torch.int64)
        yield MixedBatch(images[:0], nothing, images, torch.arange(size), torch.arange(size) % 3)


def labeling(plan=None, labeler=None, prior=None):
    torch.manual_seed(0)
    wrapper = AMSTWrapper(nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES)))
    return PoolLabeling(wrapper, labeler, plan or RunPlan(), prior)


def test_a_pool_is_aligned_by_its_own_average_whatever_the_batches():
    aligned = RunPlan(distribution_alignment=True)
    one, other = labeling(aligned), labeling(aligned)
    labels, seed_labels = one.label_pool(batches(8), CPU)
    images = next(batches(8)).synthetic
    probabilities = one.wrapper.head_probabilities(images)
    average = probabilities.mean((0, 1))
    expected = agree_and_confident(
        align_distribution(probabilities, average, SHARES), one.wrapper.voting)
    torch.testing.assert_close(vars(labels), vars(expected))
    torch.testing.assert_close(one.average, average)
    assert seed_labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    in_parts, _ = other.label_pool(batches(5, 3), CPU)
    torch.testing.assert_close(vars(in_parts), vars(labels))


def test_a_batch_is_aligned_by_a_running_average():
    aligned = labeling(RunPlan(distribution_alignment=True))
    batch = next(batches(6))
    labels = aligned.label(batch.synthetic, batch.seed_labels)
    probabilities = aligned.wrapper.head_probabilities(batch.synthetic)
    average = 0.99 * SHARES + 0.01 * probabilities.mean((0, 1))
    expected = agree_and_confident(
        align_distribution(probabilities, average, SHARES), aligned.wrapper.voting)
    torch.testing.assert_close(vars(labels), vars(expected))
    torch.testing.assert_close(aligned.average, average)


def test_images_without_a_seed_label_follow_the_wrappers_own_rule():
    prior = LabelPrior(0.8 * torch.eye(CLASSES) + 0.2 / CLASSES)
    found = labeling(AMST_PLUS, prior=prior)
    found.wrapper.voting = VotingRule(confidence_threshold=0.99)
    batch = next(batches(40))
    seed_labels = torch.where(torch.arange(40) % 2 == 0, batch.seed_labels, -1)
    labels = found.label(batch.synthetic, seed_labels)
    votes = align_distribution(
        found.wrapper.head_probabilities(batch.synthetic), found.average, SHARES)
    votes = prior.update(votes, seed_labels, SHARES)
    own, trusting = (agree_and_confident(votes, rule)
                     for rule in (found.wrapper.voting, AMST_PLUS.voting))
    assert (own.mask != trusting.mask)[::2].any() and (own.mask != trusting.mask)[1::2].any()
    torch.testing.assert_close(vars(labels[::2]), vars(trusting[::2]))
    torch.testing.assert_close(vars(labels[1::2]), vars(own[1::2]))


def test_without_alignment_the_heads_vote_as_they_are():
    plain = labeling()
    labels, _ = plain.label_pool(batches(4, 2), CPU)
    images = torch.cat([batch.synthetic for batch in batches(4, 2)])
    torch.testing.assert_close(vars(labels), vars(plain.wrapper.label(images)))


def test_what_does_not_fit_together_is_refused():
    prior = LabelPrior(torch.eye(2))
    aligned = RunPlan(distribution_alignment=True)
    for plan, given in ((aligned, None), (None, LabelPrior(torch.eye(3)))):
        with pytest.raises(ValueError, match="works on the wrapper's heads; leave labeler out"):
            labeling(plan, SeedLabeler(), given)
    with pytest.raises(ValueError, match="label_prior must have 3 classes .*, got 2"):
        labeling(prior=prior)
    with pytest.raises(ValueError, match=r"give SelfTraining label_prior=LabelPrior.estimate"):
        labeling(AMST_PLUS)


# --- reports -----------------------------------------------------------------------------------


def report_of(counts, images=100):
    accepted = sum(counts)
    return RoundReport(0, images, accepted, accepted / images, 1.0, 1.0, tuple(counts))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((0, 0, 0, 0), "no image of 100 was accepted"),
        ((10, 0, 10, 10), r"miss the classes \[1\]"),
        ((80, 5, 5, 10), r"crowd into class 0 \(80%, expected 25%\)"),
    ],
)
def test_collapse_is_warned_of(counts, message):
    with pytest.warns(CollapseWarning, match=message):
        warn_of_collapse(report_of(counts))


@pytest.mark.filterwarnings("error")
def test_balanced_labels_give_no_warning():
    warn_of_collapse(report_of((30, 10, 20)))


def test_a_report_counts_by_hand():
    labels = PseudoLabels(
        labels=torch.tensor([0, 1, 1, 2]),
        confidence=torch.tensor([1.0, 0.8, 0.6, 0.4]),
        agreement=torch.tensor([1.0, 1.0, 1.0, 0.5]),
        mask=torch.tensor([True, True, False, False]),
    )
    report = make_report(labels, 3, CLASSES, seed_labels=torch.tensor([0, 0, -1, 2]),
                         truth=torch.tensor([0, 1, 0, -1]))
    assert report.class_counts == (1, 1, 0) and report.accepted_share == 0.5
    assert report.agreement == 0.75 and report.confidence == pytest.approx(0.7)
    assert report.seed_label_agreement == 0.5 and report.accuracy == 1.0
