import zipfile
from dataclasses import fields, replace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from dreamda_aug.amst import (
    AMST_PLUS,
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
from dreamda_aug.amst.rules import agree_and_confident, align_distribution
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


def test_a_wrapper_that_torch_has_compiled_trains():
    plain, other = make(), make()
    compiled = SelfTraining(
        torch.compile(other.wrapper, backend="eager"), other.data.labeled, other.data.pool,
        other.optimizer, scheduler=other.scheduler, plan=other.plan)
    assert compiled.train_epoch() == plain.train_epoch()


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
    training.labeler = None
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
    {}, {"online": True, "distribution_alignment": True}], ids=["pool", "online"])
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


def test_batches_mix_accepted_and_other_images_at_the_ratio():
    training = make(steps_per_epoch=None, pretraining_epochs=1)
    assert training.steps_per_epoch == 4  # 8 of the pool's 30 in each batch
    assert make(steps_per_epoch=None, ratio=[1, 0, 0]).steps_per_epoch == 30
    for batch in training.loader():
        assert (len(batch.real), len(batch.synthetic)) == (12, 0)
    training.train_epoch()
    mask = torch.arange(30) < 10
    training.pseudo_labels = PseudoLabels(torch.arange(30) % 3, *torch.ones(2, 30), mask)
    batches = list(training.loader())
    assert len(batches) == 4
    for batch in batches:
        assert len(batch.real) == 4
        assert mask[batch.indices].tolist() == [True] * 4 + [False] * 4


# --- what becomes of the heads' votes

SHARES = torch.full((CLASSES,), 1 / CLASSES)
collapsed = pytest.mark.filterwarnings("ignore::dreamda_aug.amst.labeling.CollapseWarning")


@collapsed
def test_a_pool_is_aligned_by_its_own_average_whatever_the_batches():
    one, other = (make(distribution_alignment=True, batch_size=size) for size in (12, 30))
    one.label_pool()
    other.label_pool()
    probabilities = one.wrapper.head_probabilities(blobs(30, seed=1)[0])
    average = probabilities.mean((0, 1))
    expected = agree_and_confident(
        align_distribution(probabilities, average, SHARES), one.wrapper.voting)
    torch.testing.assert_close(one.average, average)
    for training in (one, other):
        torch.testing.assert_close(vars(training.pseudo_labels), vars(expected))


@collapsed
def test_a_batch_is_aligned_by_a_running_average():
    training = make(online=True, distribution_alignment=True, pretraining_epochs=0,
                    steps_per_epoch=1)
    batch, = training.loader()
    probabilities = training.wrapper.head_probabilities(batch.synthetic)
    training.train_epoch()
    average = 0.99 * SHARES + 0.01 * probabilities.mean((0, 1))
    torch.testing.assert_close(training.average, average)
    expected = agree_and_confident(
        align_distribution(probabilities, average, SHARES), training.wrapper.voting)
    assert training.reports[0].confidence == pytest.approx(expected.confidence.mean().item())


@collapsed
def test_images_without_a_seed_label_follow_the_wrappers_own_rule():
    images, labels = blobs(40, seed=1)
    seed_labels = torch.where(torch.arange(40) % 2 == 0, labels, -1)
    prior = LabelPrior(0.8 * torch.eye(CLASSES) + 0.2 / CLASSES)
    training = make(TensorDataset(images, seed_labels), label_prior=prior, batch_size=12,
                    voting=AMST_PLUS.voting, distribution_alignment=True)
    training.wrapper.voting = VotingRule(confidence_threshold=0.99)
    training.label_pool()
    votes = training.wrapper.head_probabilities(images)
    votes = align_distribution(votes, training.average, SHARES)
    votes = prior.update(votes, seed_labels, SHARES)
    own, trusting = (agree_and_confident(votes, rule)
                     for rule in (training.wrapper.voting, AMST_PLUS.voting))
    assert (own.mask != trusting.mask)[::2].any() and (own.mask != trusting.mask)[1::2].any()
    expected = torch.where(seed_labels >= 0, trusting.mask, own.mask)
    assert torch.equal(training.pseudo_labels.mask, expected)


# --- what is refused


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
    ({"labeler": SeedLabeler(), "distribution_alignment": True}, "heads; leave labeler out"),
    ({"labeler": SeedLabeler(), "label_prior": LabelPrior(torch.eye(3))}, "leave labeler out"),
    ({"label_prior": LabelPrior(torch.eye(2))}, "label_prior must have 3 classes .*, got 2"),
    ({"voting": VotingRule()}, r"give SelfTraining label_prior=LabelPrior.estimate"),
])
def test_what_does_not_fit_together_is_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make(**options).train_epoch()
