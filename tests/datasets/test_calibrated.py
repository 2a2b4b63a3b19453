"""Datasets that measure for themselves how far their images may go."""

import warnings

import pytest
import torch
from pipelines import pixel_pipeline
from torch.utils.data import DataLoader, Dataset, TensorDataset

from dreamda_aug import AugmentedDataset, DreamDAugment, Synthesizer, calibrate
from dreamda_aug.expansion import Expansion, expand
from dreamda_aug.expansion.manifest import read_metadata
from dreamda_aug.inputs.seed_images import open_seed_images
from dreamda_aug.models.unet import UNetModel

pytestmark = [pytest.mark.filterwarnings("ignore:no setting kept"),
              pytest.mark.usefixtures("few_choices")]


@pytest.fixture
def data():
    torch.manual_seed(0)
    labels = torch.arange(10) % 2
    images = 0.5 * labels[:, None, None, None] + 0.5 * torch.rand(10, 1, 16, 16)
    return TensorDataset(images, labels)


@pytest.fixture
def synthesizer(tmp_path):
    return Synthesizer(UNetModel(pixel_pipeline(), "tiny"), steps=4, strength=None,
                       cache=tmp_path / "cache")


def test_a_dataset_measures_once_and_workers_never(data, synthesizer, measured):
    augmented = AugmentedDataset(data, DreamDAugment(synthesizer), 2)
    assert len(measured) == 1
    assert augmented.calibration.strength == augmented.synthesizer.requested_settings.strength
    assert synthesizer.requested_settings.strength is None
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not calibrated")
        images = next(iter(DataLoader(augmented.synthetic, 4, num_workers=1)))[0]
    torch.testing.assert_close(images[0], augmented[10][0], atol=1e-2, rtol=0)
    assert len(measured) == 1
    assert AugmentedDataset(data, synthesizer, 2).calibration == augmented.calibration
    assert len(measured) == 1


def test_without_it_mild_defaults_are_taken_with_a_warning(data, synthesizer, measured):
    augmented = AugmentedDataset(data, synthesizer, 2, calibrate=False)
    assert augmented.synthesizer is synthesizer and augmented.calibration is None
    with pytest.warns(UserWarning, match="tiny was not calibrated.*dreamda calibrate FOLDER"):
        _ = augmented[10]
    assert not measured


def test_a_dataset_that_keeps_no_labels_is_read_for_some(data, synthesizer, measured):
    class Bare(Dataset):
        def __len__(self):
            return len(data)

        def __getitem__(self, index):
            return data[index]

    found = AugmentedDataset(Bare(), synthesizer, 2).calibration
    assert len(measured) == 1 and found.target == "agreement >= 0.9"


def test_an_expansion_measures_once_and_its_record_says_what_and_why(
    data, synthesizer, measured, tmp_path
):
    source = open_seed_images(data, class_names=["dark", "bright"])
    assert expand(source, tmp_path / "out", synthesizer, 1).whole
    facts = read_metadata(tmp_path / "out")
    found = facts["calibration"]
    for dial in ("strength", "noise_scale", "replay"):
        assert facts["settings"][dial] == found[dial]
    assert found["target"] == "agreement >= 0.9" and len(found["digest"]) == 32
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"| calibration.strength | {found['strength']:g} |" in card
    assert expand(source, tmp_path / "out", synthesizer, 1).made == 0
    assert len(measured) == 1


def test_an_expansion_without_it_takes_what_was_calibrated_by_hand_before(
    data, synthesizer, measured
):
    images, labels = data.tensors
    by_hand = calibrate(images, labels, synthesizer=synthesizer, max_distance=0.3,
                        strengths=(0.3,), noise_scales=(1.0,), replays=(0.9,), expansion_ratio=2)
    work = Expansion(data, synthesizer, 1, calibrate=False)
    assert work.metadata["calibration"] == by_hand.metadata() and not measured
