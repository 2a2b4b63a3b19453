"""Predictions by a probe that has not seen the seed image, and its errors on held-out images."""

import pytest
import torch

from dreamda_aug.calibration.out_of_fold import predict_out_of_fold


def pixels(images: torch.Tensor) -> torch.Tensor:
    return images.flatten(1)


def test_no_image_is_judged_by_a_probe_that_learned_from_its_seed_image():
    """One image has a wrong label, which only a probe that learned it could repeat."""
    images = torch.zeros(16, 1, 3, 3)
    truth = torch.arange(16) % 2
    images[truth == 0, 0, 0, 0] += 0.8
    images[truth == 1, 0, 2, 2] += 0.8
    targets = truth.clone()
    targets[6] = 1
    predicted, confusion = predict_out_of_fold(
        pixels, images, targets, images, torch.arange(16), num_classes=2, folds=4)
    assert predicted.tolist() == truth.tolist()
    # of nine images labeled 1 eight are seen as 1
    assert confusion.tolist() == [[7, 0], [1, 8]]


def test_single_images_and_indices_out_of_range_are_refused():
    images, targets = torch.rand(3, 1, 2, 2), torch.tensor([0, 0, 1])
    with pytest.raises(ValueError, match="two labeled images or more"):
        predict_out_of_fold(pixels, images, targets, images, torch.arange(3), num_classes=2)
    with pytest.raises(ValueError, match="seed_index must lie in"):
        predict_out_of_fold(pixels, images, torch.tensor([0, 0, 0]), images, torch.arange(3) + 1,
                            num_classes=1)
