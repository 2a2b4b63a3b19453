"""Calibrations on disk, and the numbers that take the place of None in the settings."""

import dataclasses
import json
import warnings

import pytest
from pipelines import pixel_pipeline

from dreamda_aug import PRESETS, LatentCache, Settings
from dreamda_aug.errors import StorageError
from dreamda_aug.generation.dials import (
    Calibration,
    CalibrationPoint,
    calibration_key,
    resolve_calibrated,
)
from dreamda_aug.models.unet import PixelModel

RECOMMENDED = PRESETS["recommended"]


@pytest.fixture
def model():
    return PixelModel(pixel_pipeline(), "tiny")


def test_a_calibration_survives_its_file(tmp_path):
    point = CalibrationPoint(1.0, 0.9, 0.95, 0.1, 0.05)
    calibration = Calibration(1.0, 0.9, "agreement >= 0.9", True, [point])
    calibration.save(tmp_path / "deep" / "c.json")
    assert Calibration.load(tmp_path / "deep" / "c.json") == calibration
    assert json.loads((tmp_path / "deep" / "c.json").read_text())["points"][0]["agreement"] == 0.95


def test_the_hook_of_a_transformer_is_kept_and_said(tmp_path):
    points = [CalibrationPoint(1.0, 0.9, 0.95, 0.1 * block, 0.05, block_index=block)
              for block in (1, 2)]
    calibration = Calibration(1.0, 0.9, "agreement >= 0.9", True, points, block_index=1)
    calibration.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == calibration
    assert calibration.chosen == points[0] and "block_index=1" in calibration.summary()
    unet = Calibration(1.0, 0.9, "agreement >= 0.9", True)
    assert unet.facts() == Calibration(1.0, 0.9, "agreement >= 0.9", True, block_index=1).facts()
    (tmp_path / "c.json").write_text((tmp_path / "c.json").read_text().replace(
        '"block_index": 1\n}', '"block_index": -1\n}'))
    with pytest.raises(StorageError, match="block_index must be an integer >= 0"):
        Calibration.load(tmp_path / "c.json")


def save(calibration, settings, model, cache):
    calibration.save(cache.root / "calibration" / f"{calibration_key(settings, model)}.json")


def test_numbers_are_read_from_the_cache_for_this_backbone_and_these_settings(model, tmp_path):
    cache = LatentCache(tmp_path)
    found = Calibration(3.0, 0.7, "agreement >= 0.9", True, strength=0.6)
    save(found, RECOMMENDED, model, cache)
    settings = resolve_calibrated(RECOMMENDED, model, cache)
    assert settings == dataclasses.replace(
        RECOMMENDED, strength=0.6, noise_scale=3.0, replay=0.7)
    other = pixel_pipeline()
    other.unet.conv_out.bias.data += 1e-3
    for unknown in ((dataclasses.replace(RECOMMENDED, steps=7), model, cache),
                    (RECOMMENDED, PixelModel(other, "tiny"), cache),
                    (RECOMMENDED, model, None)):
        with pytest.warns(UserWarning, match="tiny was not calibrated for these settings yet: taki"
                                             r"ng noise_scale=1\.0, replay=0\.9, strength=0\.5"):
            resolve_calibrated(*unknown)


@pytest.mark.parametrize("given", [
    dict(noise_scale=5.0), dict(replay=0.3), dict(strength=0.4)])
def test_a_number_in_the_settings_stays(model, tmp_path, given):
    settings, cache = dataclasses.replace(RECOMMENDED, **given), LatentCache(tmp_path)
    dials = {"strength": 0.6, "noise_scale": 3.0, "replay": 0.7}
    save(Calibration(target="agreement >= 0.9", met=True, **dials), settings, model, cache)
    found = resolve_calibrated(settings, model, cache)
    assert found == dataclasses.replace(settings, **{**dials, **given})


def test_settings_without_none_need_no_calibration(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_calibrated(Settings(), model, None) == Settings()


def test_the_bundled_backbone_comes_calibrated(bundled):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settings = resolve_calibrated(RECOMMENDED, bundled, None)
    assert settings.noise_scale is not None and settings.replay is not None
