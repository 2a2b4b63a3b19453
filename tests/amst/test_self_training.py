import copy
import logging
import warnings
from dataclasses import fields, replace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from dreamda_aug.amst import (
    AMSTWrapper,
    CollapseWarning,
    LabelingRule,
    LabelPrior,
    LossWeights,
    MixedBatchSampler,
    PseudoLabels,
    RunPlan,
    SeedLabeler,
    SelfTraining,
    VotingRule,
    WeakView,
)
from dreamda_aug.amst.pool import batch_counts
from dreamda_aug.amst.report import RoundReport, make_report, warn_of_collapse

CLASSES = 3


def blobs(count, seed, noise=0.15):
    """Images whose brightest third tells the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    images = torch.full((count, 1, 6, 6), 0.3)
    for row, label in enumerate(labels.tolist()):
        images[row, :, 2 * label : 2 * label + 2] += 0.4
    images += noise * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 1), labels


def make(dropout=0.2, pool=None, labeled=None, **options):
    """A small run; options are fields of its plan and labeling rule, or arguments."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout),
        nn.Linear(16, CLASSES),
    )  # fmt: skip
    voting = VotingRule(confidence_threshold=0.6)
    wrapper = AMSTWrapper(model, weak=WeakView(flip=0.0, padding=0.0), voting=voting)
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(0.01))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    images, labels = blobs(30, seed=1)
    defaults = {"batch_size": 12, "steps_per_epoch": 8, "pretraining_epochs": 3, "epochs": 2}
    options = defaults | options
    plan, rule = ({field.name: options.pop(field.name) for field in fields(kind)
                   if field.name in options} for kind in (RunPlan, LabelingRule))  # fmt: skip
    return SelfTraining(
        wrapper,
        TensorDataset(*blobs(6, seed=0)) if labeled is None else labeled,
        TensorDataset(images, labels) if pool is None else pool,
        optimizer,
        scheduler=scheduler,
        plan=RunPlan(**plan),
        labeling=LabelingRule(**rule),
        **options,
    )


def weights(training):
    return training.wrapper.state_dict()


def assert_equal_weights(one, other):
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


# --- sampling ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "ratio", "sizes", "expected"),
    [
        (64, (1, 2, 1), (9, 9, 9), (16, 32, 16)),
        (10, (1, 1, 1), (9, 9, 9), (4, 3, 3)),
        (12, (1, 2, 1), (9, 0, 9), (3, 0, 9)),
        (12, (1, 2, 1), (9, 9, 0), (3, 9, 0)),
        (12, (1, 2, 1), (9, 0, 0), (12, 0, 0)),
        (12, (1, 0, 0), (9, 9, 9), (12, 0, 0)),
        (4, (0.01, 1, 1), (9, 9, 9), (1, 2, 1)),
    ],
)
def test_a_batch_is_split_at_the_stated_ratio(size, ratio, sizes, expected):
    counts = batch_counts(size, ratio, sizes)
    assert sum(counts) == size and sorted(counts) == sorted(expected)
    assert counts[0] == expected[0]


def test_the_sampler_goes_through_each_source_before_it_repeats():
    sampler = MixedBatchSampler(
        4, accepted=[0, 2, 4], unlabeled=[1, 3], batch_size=8, ratio=(4, 3, 1), steps=4
    )
    batches = list(sampler)
    assert len(sampler) == len(batches) == 4 and batches == list(sampler)
    for batch in batches:
        assert sorted(batch[:4]) == [0, 1, 2, 3]
        assert sorted(batch[4:7]) == [4, 6, 8]
    assert {batches[0][7], batches[1][7]} == {5, 7}
    other = MixedBatchSampler(
        4, [0, 2, 4], [1, 3], batch_size=8, ratio=(4, 3, 1), steps=4, rng_seed=1
    )
    assert list(other) != batches


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"ratio": (0, 1, 1)}, r"ratio must be three numbers ≥ 0.*got \(0, 1, 1\)"),
        ({"ratio": (1, 1)}, r"ratio must be three numbers"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"labeled": 0}, "labeled must hold at least one image, got 0"),
    ],
)
def test_sampling_options_out_of_range_are_refused(options, message):
    arguments = {"labeled": 4, "batch_size": 8, "steps": 1} | options
    with pytest.raises(ValueError, match=message):
        MixedBatchSampler(accepted=[0], unlabeled=[1], **arguments)


def test_batches_hold_what_the_labels_say():
    training = make(ratio=(1, 1, 1))
    training.epoch = training.plan.pretraining_epochs
    mask = torch.arange(30) < 10
    training.pseudo_labels = PseudoLabels(torch.zeros(30).long(), *torch.ones(2, 30), mask)
    images, labels = training.data.pool.tensors
    for batch in training.loader():
        assert (len(batch.real), len(batch.synthetic)) == (4, 8)
        assert mask[batch.indices].tolist() == [True] * 4 + [False] * 4
        assert torch.equal(batch.synthetic, images[batch.indices])
        assert torch.equal(batch.seed_labels, labels[batch.indices])


def test_pretraining_batches_are_real_images_alone():
    for batch in make().loader():
        assert len(batch.real) == 12 and len(batch.synthetic) == 0


# --- the stages --------------------------------------------------------------------------------


def test_the_stages_run_and_the_classifier_learns():
    training = make(truth=blobs(30, seed=1)[1], pretraining_epochs=6)
    assert training.stage == "pretraining"
    reports = training.run()
    assert training.stage == "done" and len(reports) == 2
    assert reports[-1].accuracy > 0.9 and reports[-1].accepted > 10
    assert sum(reports[-1].class_counts) == reports[-1].accepted
    images, labels = blobs(60, seed=5)
    classifier = training.wrapper.to_classifier().eval()
    assert (classifier(images).argmax(1) == labels).float().mean() > 0.9
    with pytest.raises(ValueError, match="all 8 epochs are done; .*replace"):
        training.train_epoch()
    training.plan = replace(training.plan, epochs=3)
    assert training.stage == "training"


def test_the_pool_is_labeled_every_so_many_epochs_and_rebuilt():
    training = make(epochs=4, relabel_every=2)
    training.run()
    assert [report.epoch for report in training.reports] == [0, 2]
    assert len(training.pseudo_labels) == 30


def test_restart_trains_every_round_from_the_first_weights():
    training = make(restart=True, epochs=1, pretraining_epochs=6)
    first = {name: value.clone() for name, value in weights(training).items()}
    for _ in range(6):
        training.train_epoch()
    assert not torch.equal(first["model.1.weight"], weights(training)["model.1.weight"])
    seen = []
    losses = training._losses
    training._losses = lambda batch: seen.append(copy.deepcopy(weights(training))) or losses(batch)
    training.train_epoch()
    assert all(torch.equal(first[name], value) for name, value in seen[0].items())
    assert training.reports[0].accepted > 0, "labeled by the weights of before"


def test_labels_come_from_the_evaluation_view_of_the_current_weights():
    training = make()
    training.run()
    training.label_pool()
    expected = training.wrapper.label(training.data.pool.tensors[0])
    assert torch.equal(training.pseudo_labels.mask, expected.mask)
    torch.testing.assert_close(training.pseudo_labels.confidence, expected.confidence)


def test_unlabeled_real_images_may_be_the_pool():
    class Images(Dataset):
        images, labels = blobs(20, seed=3)

        def __len__(self):
            return 20

        def __getitem__(self, index):
            return self.images[index] if index % 2 else (self.images[index], None)

    for pool in (Images(), TensorDataset(Images.images)):
        reports = make(pool=pool, seed_vote=True).run()
        assert reports[-1].accepted > 0 and reports[-1].seed_label_agreement is None


def test_the_seed_vote_rejects_what_contradicts_the_seed_label():
    images, labels = blobs(30, seed=1)
    wrong = TensorDataset(images, (labels + 1) % CLASSES)
    with pytest.warns(CollapseWarning, match="no image of 30 was accepted"):
        reports = make(pool=wrong, seed_vote=True, pretraining_epochs=6, epochs=1).run()
    assert reports[0].accepted == 0
    assert make(pool=wrong, pretraining_epochs=6, epochs=1).run()[0].accepted > 0


def test_another_labeler_takes_the_place_of_the_heads():
    training = make(labeler=SeedLabeler(), truth=blobs(30, seed=1)[1])
    report = training.label_pool()
    assert report.accepted_share == 1 and report.accuracy == 1
    assert report.seed_label_agreement == 1
    training.run()


def test_the_labeler_may_be_exchanged_later():
    training = make()
    assert training.labeler is training.wrapper
    training.labeler = SeedLabeler()
    assert training.label_pool().accepted_share == 1


def test_soft_targets_and_soft_pseudo_labels_train():
    class Soft:
        def label(self, images, seed_labels=None):
            rows = torch.full((len(images), CLASSES), 1 / CLASSES)
            return PseudoLabels(rows, *torch.ones(2, len(images)), torch.ones(len(images)) > 0)

    images, labels = blobs(6, seed=0)
    targets = nn.functional.one_hot(labels, CLASSES).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CollapseWarning)
        training = make(labeled=TensorDataset(images, targets), labeler=Soft())
        training.run()
    assert training.pseudo_labels.labels.shape == (30, CLASSES)


# --- in-batch mode -----------------------------------------------------------------------------


class Fresh(Dataset):
    """A pool whose images are new in every epoch, and which makes them in batches."""

    def __init__(self):
        self.epochs, self.calls = [], 0

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __len__(self):
        return 30

    def __getitems__(self, indices):
        self.calls += 1
        images, labels = blobs(30, seed=100 + self.epochs[-1])
        return [(images[i], int(labels[i])) for i in indices]

    def __getitem__(self, index):
        return self.__getitems__([index])[0]


def test_in_batch_mode_labels_what_is_fresh():
    pool = Fresh()
    training = make(pool=pool, online=True, truth=blobs(30, seed=1)[1])
    reports = training.run()
    assert pool.epochs == [3, 4]
    assert pool.calls == 16, "one call per batch"
    assert [report.epoch for report in reports] == [0, 1]
    assert reports[-1].images == 8 * 8 and reports[-1].accuracy > 0.9
    assert training.pseudo_labels is None


# --- collapse ----------------------------------------------------------------------------------


def report_of(counts, images=100):
    accepted = sum(counts)
    return RoundReport(0, images, accepted, accepted / images, 1.0, 1.0, tuple(counts))


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ((0, 0, 0), "no image of 100 was accepted"),
        ((10, 0, 10), r"miss the classes \[1\]"),
        ((80, 10, 10), r"crowd into class 0 \(80%, expected 33%\)"),
    ],
)
def test_collapse_is_warned_of(counts, message):
    with pytest.warns(CollapseWarning, match=message):
        warn_of_collapse(report_of(counts), [1 / 3] * 3, factor=2.0)


def test_balanced_labels_give_no_warning_and_shares_are_what_is_expected():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_collapse(report_of((30, 30, 30)), [1 / 3] * 3, factor=2.0)
        warn_of_collapse(report_of((80, 20, 0)), [0.8, 0.2, 0.0], factor=2.0)


def test_a_report_counts_by_hand():
    labels = PseudoLabels(
        labels=torch.tensor([0, 1, 1, 2]),
        confidence=torch.tensor([1.0, 0.8, 0.6, 0.4]),
        agreement=torch.tensor([1.0, 1.0, 1.0, 0.5]),
        mask=torch.tensor([True, True, False, False]),
    )
    report = make_report(
        labels, 3, CLASSES, seed_labels=torch.tensor([0, 0, -1, 2]),
        truth=torch.tensor([0, 1, 0, -1]),
    )  # fmt: skip
    assert report.class_counts == (1, 1, 0) and report.accepted_share == 0.5
    assert report.agreement == 0.75 and report.confidence == pytest.approx(0.7)
    assert report.seed_label_agreement == 0.5
    assert report.accuracy == 1.0 and report.accuracy_all == pytest.approx(2 / 3)


def test_alignment_lets_a_crowded_out_class_through():
    def label(aligned):
        training = make(distribution_alignment=aligned, expected_shares=[0.5, 0.25, 0.25])
        with torch.no_grad():
            for head in training.wrapper.auxiliary_heads:
                head.weight.zero_()
                head.bias.copy_(torch.tensor([0.2, 0.3, 0.1]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CollapseWarning)
            training.label_pool()
        return training.pseudo_labels.labels.unique().tolist()

    assert label(aligned=False) == [1]
    assert label(aligned=True) == [0]


@pytest.mark.parametrize("online", [False, True])
def test_alignment_trains_in_both_modes(online):
    training = make(distribution_alignment=True, online=online)
    training.run()
    assert training.labeling.average.sum() == pytest.approx(1, abs=1e-4)


# --- saving and resuming -----------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [1, 3, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"restart": True, "steps_per_epoch": 40},
     {"online": True, "distribution_alignment": True}, {"ema_decay": 0.9}],
    ids=["pool", "restart", "in-batch", "averaged"],
)  # fmt: skip
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, stop_after, options):
    whole = make(**options)
    whole.run()
    first = make(**options)
    for _ in range(stop_after):
        first.train_epoch()
    first.save(tmp_path / "run.pt")
    torch.manual_seed(999)
    second = make(**options)
    second.run(checkpoint=tmp_path / "run.pt")
    assert_equal_weights(whole, second)
    assert whole.reports == second.reports
    assert second.scheduler.last_epoch == whole.scheduler.last_epoch


def test_the_averaged_weights_label_and_are_left_in_the_wrapper(monkeypatch):
    training = make(ema_decay=0.99)
    labeling = []
    label_pool = training.labeling.label_pool

    def watch(*arguments):
        labeling.append(training.wrapper.auxiliary_heads[0].weight.clone())
        return label_pool(*arguments)

    monkeypatch.setattr(training.labeling, "label_pool", watch)
    for _ in range(training.plan.pretraining_epochs):
        training.train_epoch()
    own = training.wrapper.auxiliary_heads[0].weight.clone()
    average = training._teacher.weights["auxiliary_heads.0.weight"].clone()
    training.train_epoch()
    torch.testing.assert_close(labeling[0], average)
    assert not torch.equal(labeling[0], own)
    training.run()
    torch.testing.assert_close(dict(training.wrapper.state_dict()), training._teacher.weights)


def test_what_was_asked_for_decides_where_the_heads_doubt():
    """The heads see nothing in these images; the class asked for is right nine times in ten."""
    prior = LabelPrior(torch.full((3, 3), 0.05) + 0.85 * torch.eye(3))
    training = make(label_prior=prior)
    training.label_pool()
    labels, mask = training.pseudo_labels.labels, training.pseudo_labels.mask
    plain = make()
    plain.label_pool()
    assert mask.sum() > plain.pseudo_labels.mask.sum()
    seeds = torch.tensor([int(seed) for _, seed in training.data.pool])
    known = seeds >= 0
    assert (labels == seeds)[known].float().mean() > 0.9


def test_workers_change_nothing():
    alone, helped = make(), make(num_workers=2)
    for training in (alone, helped):
        for _ in range(4):
            training.train_epoch()
    assert_equal_weights(alone, helped)


def test_training_leaves_the_global_generator_alone():
    training = make()
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    training.train_epoch()
    assert torch.equal(torch.rand(1), expected)


def test_another_rng_seed_gives_another_run():
    one, other = make(), make(rng_seed=1)
    one.train_epoch()
    other.train_epoch()
    assert not torch.equal(one.wrapper.model[1].weight, other.wrapper.model[1].weight)


def test_a_checkpoint_follows_no_link_that_lies_beside_it(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    (tmp_path / "run.pt.partial").symlink_to(victim)
    (tmp_path / "run.pt").symlink_to(victim)
    make().save(tmp_path / "run.pt")
    assert victim.read_text() == "untouched"
    make().load(tmp_path / "run.pt")


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    make().save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    with pytest.raises(ValueError, match="other settings: batch_size; batch_size: expected 16, f"):
        make(batch_size=16).load(path)
    for change in ({"head_share": 0.5}, {"label_prior": LabelPrior(torch.eye(CLASSES))}):
        with pytest.raises(ValueError, match=f"other settings: {next(iter(change))}"):
            make(**change).load(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="run.pt: not a SelfTraining checkpoint, or damaged"):
        make().load(path)
    torch.save({"weights": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="expected a checkpoint of format 1, found None"):
        make().load(path)
    with pytest.raises(FileNotFoundError):
        make().load(tmp_path / "nothing.pt")


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"truth": [0, 1]}, "truth must have 30 labels, got 2"),
        ({"expected_shares": [0.5, 0.5]}, "expected_shares must have 3 numbers"),
        ({"pool": TensorDataset(torch.zeros(0, 1, 6, 6))}, "must hold images, got 6 and 0"),
        (
            {"distribution_alignment": True, "labeler": SeedLabeler()},
            "distribution_alignment works on the wrapper's heads",
        ),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_heads_that_a_restart_left_untrained_do_not_label():
    training = make(restart=True, epochs=2)
    training.wrapper.weights = LossWeights(auxiliary=0.0)
    message = r"restart puts the auxiliary heads back .*LossWeights\(auxiliary=0\)"
    with pytest.raises(ValueError, match=message):
        training.run()
    assert training.training_epoch == 1, "one round needs no heads after it"


def test_images_that_are_no_tensors_are_refused_with_the_way_out():
    pool = [(object(), 0)] * 4
    with pytest.raises(TypeError, match=r"must be tensors \(C, H, W\), got object; .*v2.ToImage"):
        make(pool=pool).label_pool()


def test_progress_is_logged_and_not_printed(caplog, capsys):
    with caplog.at_level(logging.INFO, logger="dreamda_aug"):
        make().train_epoch()
    assert "epoch 1 (pretraining)" in caplog.text
    assert capsys.readouterr().out == ""
