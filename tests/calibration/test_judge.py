"""Judges that have not seen the seed image."""

import pytest
import torch
from pipelines import pixel_pipeline

from dreamda_aug.calibration.judge import FoldJudge, GivenJudge, fold_judge
from dreamda_aug.metrics.features import pixel_features
from dreamda_aug.models.unet import PixelModel


@pytest.fixture
def noise():
    """Images that carry nothing about their labels."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(40, 1, 8, 8, generator=generator), torch.arange(40) % 2


def test_an_image_is_judged_by_a_regression_that_has_not_seen_it(noise):
    images, labels = noise
    judge = FoldJudge(pixel_features(), images, labels, "pixels")
    own = (judge.classify(images, torch.arange(40)) == labels).float().mean()
    other = torch.arange(40).roll(2)  # of another part
    known = (judge.classify(images, other) == labels).float().mean()
    # pixels of noise foretell no label; who has seen the image knows it by heart
    assert own < 0.75 < 0.9 < known


def test_classes_that_differ_are_told_apart():
    labels = torch.arange(24) % 3
    torch.manual_seed(0)
    images = (labels[:, None, None, None] / 3 + 0.1 * torch.rand(24, 1, 16, 16))
    judge = fold_judge(PixelModel(pixel_pipeline()), images, labels)
    assert torch.equal(judge.classify(images, torch.arange(24)), labels)
    assert "own features" in judge.name


@pytest.fixture
def patches():
    """Noisy images of four classes, each with its own bright quarter, and their labels."""
    labels = torch.arange(80) % 4
    images = 0.3 * torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for label in range(4):
        row, column = 4 * (label // 2), 4 * (label % 2)
        images[labels == label, :, row : row + 4, column : column + 4] += 0.15
    return images, labels


def test_images_of_another_look_are_judged_by_what_differs_among_them(patches):
    images, labels = patches
    judge = FoldJudge(pixel_features(), images, labels, "pixels")
    rows = torch.arange(80)
    # flatter, brighter, and darker at the left
    other = 0.4 * images + 0.5 - torch.linspace(0.4, 0, 8)
    assert (judge.classify(other, rows) == labels).float().mean() > 0.9
    # the match does not bring back classes that are lost
    lost = other[torch.randperm(80, generator=torch.Generator().manual_seed(1))]
    assert (judge.classify(lost, rows) == labels).float().mean() < 0.5


def test_a_class_that_most_images_belong_to_is_not_taken_for_the_look_of_all():
    """Nine in ten images are of one class, and all replicas show the other."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(80) % 10 == 0).long()
    images = 0.3 * torch.rand(80, 1, 8, 8, generator=generator)
    images[labels == 0, :, :4] += 0.2
    images[labels == 1, :, 4:] += 0.2
    made = 0.3 * torch.rand(80, 1, 8, 8, generator=generator)
    made[..., 4:, :] += 0.2
    judge = FoldJudge(pixel_features(), images, labels, "pixels")
    rows = torch.arange(80)
    assert (judge.classify(images, rows) == labels).float().mean() > 0.9
    assert (judge.classify(made, rows) == labels).float().mean() < 0.7
    # images of one class alone are not matched: nothing says what is look and what is class
    one = rows[labels == 0]
    assert (judge.classify(made[one], one) == 0).float().mean() < 0.1


def test_a_pixel_that_is_black_in_all_labeled_images_does_not_decide(patches):
    images, labels = patches
    images[..., 0, :2] = 0
    judge = FoldJudge(pixel_features(), images, labels, "pixels")
    made = images.clone()
    made[..., 0, :2] += 0.02 * torch.rand(80, 1, 2, generator=torch.Generator().manual_seed(1))
    assert (judge.classify(made, torch.arange(80)) == labels).float().mean() > 0.9


def test_a_model_without_an_unconditional_branch_leaves_the_pixels():
    model = PixelModel(pixel_pipeline(num_classes=3))
    assert not model.guidable
    torch.manual_seed(0)
    assert "pixels" in fold_judge(model, torch.rand(6, 1, 16, 16), torch.arange(6) % 2).name


def test_a_given_classifier_may_give_logits_or_classes():
    images = torch.rand(4, 1, 2, 2)
    logits = torch.eye(4)
    for classifier in (lambda batch: logits, lambda batch: torch.arange(4)):
        found = GivenJudge(classifier).classify(images, torch.arange(4))
        assert found.tolist() == [0, 1, 2, 3]
