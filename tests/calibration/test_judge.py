"""Judges that have not seen the seed image, and predictions by them."""

import pytest
import torch
from pipelines import pixel_pipeline

from dreamda_aug.calibration.judge import fold_judge, predict_out_of_fold
from dreamda_aug.metrics.features import pixel_features
from dreamda_aug.models.unet import UNetModel


@pytest.fixture
def patches():
    """Noisy images of four classes, each with its own bright quarter, and their labels."""
    labels = torch.arange(80) % 4
    images = 0.3 * torch.rand(80, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for label in range(4):
        row, column = 4 * (label // 2), 4 * (label % 2)
        images[labels == label, :, row : row + 4, column : column + 4] += 0.15
    return images, labels


def right(images, labels, made, rows=None):
    rows = torch.arange(len(made)) if rows is None else rows
    found, _ = predict_out_of_fold(pixel_features(), images, labels, made, rows,
                                   num_classes=int(labels.max()) + 1)
    return (found == labels[rows]).float().mean()


def test_classes_that_differ_are_told_apart():
    labels = torch.arange(24) % 3
    torch.manual_seed(0)
    images = (labels[:, None, None, None] / 3 + 0.1 * torch.rand(24, 1, 16, 16))
    judge = fold_judge(UNetModel(pixel_pipeline()), images, labels)
    assert judge.keeps(images, torch.arange(24)).all()
    assert not judge.keeps(images, torch.arange(24).roll(1)).any()
    assert "own features" in judge.name
    without_null_class = UNetModel(pixel_pipeline(num_classes=3))
    assert "pixels" in fold_judge(without_null_class, images, labels).name


def test_images_of_another_look_are_judged_by_what_differs_among_them(patches):
    images, labels = patches
    # flatter, brighter, and darker at the left
    other = 0.4 * images + 0.5 - torch.linspace(0.4, 0, 8)
    assert right(images, labels, other) > 0.9
    # the match does not bring back classes that are lost
    lost = other[torch.randperm(80, generator=torch.Generator().manual_seed(1))]
    assert right(images, labels, lost) < 0.5


def test_a_class_that_most_images_belong_to_is_not_taken_for_the_look_of_all():
    """Nine in ten images are of one class, and all replicas show the other."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.arange(80) % 10 == 0).long()
    images = 0.3 * torch.rand(80, 1, 8, 8, generator=generator)
    images[labels == 0, :, :4] += 0.2
    images[labels == 1, :, 4:] += 0.2
    made = 0.3 * torch.rand(80, 1, 8, 8, generator=generator)
    made[..., 4:, :] += 0.2
    assert right(images, labels, images) > 0.9 and right(images, labels, made) < 0.7
    # images of one class alone are not matched: nothing says what is look and what is class
    one = torch.arange(80)[labels == 0]
    assert right(images, labels, made[one], one) < 0.1


def test_no_image_is_predicted_by_a_probe_that_learned_from_its_seed_image():
    """One image has a wrong label, which only a probe that learned it could repeat."""
    images = torch.zeros(16, 1, 3, 3)
    truth = torch.arange(16) % 2
    images[truth == 0, 0, 0, 0] += 0.8
    images[truth == 1, 0, 2, 2] += 0.8
    targets = truth.clone()
    targets[6] = 1
    predicted, confusion = predict_out_of_fold(
        pixel_features(), images, targets, images, torch.arange(16), num_classes=2)
    assert predicted.tolist() == truth.tolist()
    # of nine images labeled 1 eight are seen as 1
    assert confusion.tolist() == [[7, 0], [1, 8]]


def test_single_images_and_indices_out_of_range_are_refused():
    images, given = torch.rand(3, 1, 2, 2), torch.arange(3)
    with pytest.raises(ValueError, match="two labeled images or more"):
        predict_out_of_fold(pixel_features(), images, torch.tensor([0, 0, 1]), images, given,
                            num_classes=2)
    with pytest.raises(ValueError, match="seed_index must lie in"):
        predict_out_of_fold(pixel_features(), images, torch.tensor([0, 0, 0]), images, given + 1,
                            num_classes=1)
