import zipfile
from dataclasses import fields, replace

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import Dataset, TensorDataset

from dreamda_aug.amst import (
    AMSTWrapper,
    LabelPrior,
    PseudoLabels,
    RunPlan,
    SeedLabeler,
    SelfTraining,
    VotingRule,
    WeakView,
)
from dreamda_aug.amst.labeling import CollapseWarning
from dreamda_aug.amst.self_training import _averaged
from dreamda_aug.errors import StorageError

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


def make(pool=None, labeled=None, **options):
    """A small run; options are fields of its plan, or arguments."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(36, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(16, CLASSES))
    voting = VotingRule(confidence_threshold=0.6)
    wrapper = AMSTWrapper(model, weak=WeakView(flip=0.0, padding=0.0), voting=voting)
    optimizer = torch.optim.AdamW(wrapper.parameter_groups(0.01))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    images, labels = blobs(30, seed=1)
    defaults = {"batch_size": 12, "steps_per_epoch": 8, "pretraining_epochs": 3, "epochs": 2}
    options = defaults | options
    plan = {field.name: options.pop(field.name) for field in fields(RunPlan)
            if field.name in options}
    return SelfTraining(
        wrapper, TensorDataset(*blobs(6, seed=0)) if labeled is None else labeled,
        TensorDataset(images, labels) if pool is None else pool, optimizer,
        scheduler=scheduler, plan=RunPlan(**plan), **options)


def weights(training):
    return training.wrapper.state_dict()


def assert_equal_weights(one, other):
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


def test_the_stages_run_and_the_classifier_learns():
    training = make(truth=blobs(30, seed=1)[1], pretraining_epochs=5, epochs=3, relabel_every=2)
    training.wrapper.compile(backend="eager")
    assert training.stage == "pretraining"
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    reports = training.run()
    assert torch.equal(torch.rand(1), expected)  # the global generator is left alone
    assert training.stage == "done" and [report.epoch for report in reports] == [0, 2]
    assert reports[-1].accuracy > 0.9 and reports[-1].accepted > 10
    images, labels = blobs(60, seed=5)
    classifier = training.wrapper.to_classifier().eval()
    assert (classifier(images).argmax(1) == labels).float().mean() > 0.9
    with pytest.raises(ValueError, match="all 8 epochs are done; .*replace"):
        training.train_epoch()
    training.plan = replace(training.plan, epochs=4)
    assert training.stage == "training"


def test_unlabeled_real_images_may_be_the_pool():
    images, _ = blobs(20, seed=3)
    for pool in ([(image, None) for image in images], TensorDataset(images)):
        reports = make(pool=pool).run()
        assert reports[-1].accepted > 0 and reports[-1].seed_label_agreement is None


def test_another_labeler_takes_the_place_of_the_heads():
    training = make(labeler=SeedLabeler(), truth=blobs(30, seed=1)[1])
    report = training.label_pool()
    assert report.accepted_share == 1 and report.accuracy == 1
    assert report.seed_label_agreement == 1
    training.labeling.labeler = None
    assert training.label_pool().accepted_share < 1, "by the heads again"


def test_soft_targets_and_soft_pseudo_labels_train():
    class Soft:
        def label(self, images, seed_labels=None):
            rows = torch.full((len(images), CLASSES), 1 / CLASSES)
            return PseudoLabels(rows, *torch.ones(2, len(images)), torch.ones(len(images)) > 0)

    images, labels = blobs(6, seed=0)
    targets = nn.functional.one_hot(labels, CLASSES).float()
    training = make(labeled=TensorDataset(images, targets), labeler=Soft())
    with pytest.warns(CollapseWarning, match="miss the classes"):
        training.run()
    assert training.pseudo_labels.labels.shape == (30, CLASSES)


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


def test_online_labels_what_is_fresh():
    pool = Fresh()
    training = make(pool=pool, online=True, truth=blobs(30, seed=1)[1])
    reports = training.run()
    assert pool.epochs == [3, 4]
    assert pool.calls == 16, "one call per batch"
    assert [report.epoch for report in reports] == [0, 1]
    assert reports[-1].images == 8 * 8 and reports[-1].accuracy > 0.9
    assert training.pseudo_labels is None


@pytest.mark.parametrize("options", [
    {"ema_decay": 0.9}, {"online": True, "distribution_alignment": True}], ids=["pool", "online"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, options):
    whole = make(**options)
    whole.run()
    first = make(**options)
    for _ in range(4):
        first.train_epoch()
    first.save(tmp_path / "run.pt")
    torch.manual_seed(999)
    second = make(**options)
    second.run(checkpoint=tmp_path / "run.pt")
    assert_equal_weights(whole, second)
    assert whole.reports == second.reports
    assert second.scheduler.last_epoch == whole.scheduler.last_epoch


def test_the_averaged_weights_label_and_are_left_in_the_wrapper():
    training = make(ema_decay=0.99)
    for _ in range(training.plan.pretraining_epochs):
        training.train_epoch()
    images = blobs(30, seed=1)[0]
    averaged = training._average.module.label(images).confidence
    assert not torch.equal(averaged, training.wrapper.label(images).confidence)
    training.label_pool()
    torch.testing.assert_close(training.pseudo_labels.confidence, averaged)
    training.run()
    torch.testing.assert_close(weights(training), training._average.module.state_dict())


def test_the_average_follows_torchs_once_the_first_steps_are_over():
    module = nn.BatchNorm1d(4)
    ours, theirs, slow = _averaged(module, 0.5), AveragedModel(
        module, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True), _averaged(module, 0.9)
    for step, value in enumerate((1.0, 3.0, 5.0), 1):
        module(torch.randn(5, 4))
        nn.init.constant_(module.bias, value)
        for average in (ours, theirs, slow):
            average.update_parameters(module)
        # the mean of all, as long as that forgets faster
        assert slow.module.bias[0].item() == pytest.approx(step)
    for name in ("weight", "bias", "running_mean", "running_var"):
        torch.testing.assert_close(getattr(ours.module, name), getattr(theirs.module, name))
    assert ours.module.num_batches_tracked == 3


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    make().save(path)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]
    with pytest.raises(ValueError, match="other settings: batch_size; batch_size: expected 16, f"):
        make(batch_size=16).load(path)
    with pytest.raises(ValueError, match="other settings: label_prior"):
        make(label_prior=LabelPrior(torch.eye(CLASSES))).load(path)


def test_files_that_are_no_checkpoint_are_refused_by_name(tmp_path):
    path = tmp_path / "run.pt"
    torch.save({"format": 1}, path)
    with pytest.raises(StorageError, match="run.pt: expected .* of format 2 .* found format 1"):
        make().run(checkpoint=path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(StorageError, match="found another file, or a damaged one"):
        make().run(checkpoint=path)
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"hello")
    with pytest.raises(StorageError, match="found another file, or a damaged one"):
        make().run(checkpoint=path)


@pytest.mark.parametrize(("options", "message"), [
    ({"truth": [0, 1]}, "truth must have 30 labels, got 2"),
    ({"pool": TensorDataset(torch.zeros(0, 1, 6, 6))}, "must hold images, got 6 and 0"),
    ({"labeled": [(object(), 0)] * 4}, r"must be tensors \(C, H, W\), got object; .*v2.ToImage"),
])
def test_data_that_do_not_fit_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(**options).train_epoch()
