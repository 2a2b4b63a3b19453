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
    calibration_path,
    resolve_dials,
)
from dreamda_aug.models.unet import UNetModel

RECOMMENDED = PRESETS["recommended"]
POINT = CalibrationPoint(0.5, 1.0, 0.9, 22 / 24, 0.1, 0.05, 5, 24, judged=24)


def make(**changes):
    given = {"strength": 0.5, "noise_scale": 1.0, "replay": 0.9, "target": "agreement >= 0.9",
             "met": True, "points": [POINT], "judge": "a probe", **changes}
    return Calibration(**given)


def test_the_summary_says_how_sure_the_agreement_is():
    assert make().summary() == (
        "strength=0.5, noise_scale=1, replay=0.9: the furthest that images go with agreement >= 0.9"
        " (distance 0.100, agreement 0.92 (95 % interval 0.74 to 0.98) on 24 images, judged by a "
        "probe)")
    unsure = dataclasses.replace(POINT, judged=None)
    assert unsure.interval is None and "interval" not in make(points=[unsure]).summary()
    assert "which nothing kept" in make(met=False).summary()


def test_the_block_of_a_transformer_is_kept_but_not_in_the_metadata():
    points = [dataclasses.replace(POINT, block_index=block) for block in (1, 2)]
    found = make(points=points, block_index=1)
    assert found.chosen == points[0] and "block_index=1" in found.summary()
    assert found.metadata() == make().metadata()
    assert found.metadata() != make(met=False).metadata()


@pytest.mark.parametrize("name, value, reason", [
    ("block_index", "first", "block_index must be an integer or None"),
    ("replay", -1, "replay must lie in"), ("points", 3, "not iterable"),
    ("strength", None, "strength must be a finite number"), ("unknown", 1, "unknown"),
    ("strength", 0.7, "out of range")])
def test_other_json_is_no_calibration(tmp_path, name, value, reason):
    data = {**dataclasses.asdict(make()), name: value}
    (tmp_path / "c.json").write_text(json.dumps(data))
    with pytest.raises(StorageError, match=f"c.json: expected a calibration.*{reason}"):
        Calibration.load(tmp_path / "c.json")


def test_numbers_are_read_from_the_cache_for_this_model_and_these_settings(pixel, tmp_path):
    cache = LatentCache(tmp_path)
    make().save(calibration_path(tmp_path, RECOMMENDED, pixel))
    assert resolve_dials(RECOMMENDED, pixel, cache) == RECOMMENDED.with_dials(
        strength=0.5, noise_scale=1.0, replay=0.9)
    other = pixel_pipeline()
    other.unet.conv_out.bias.data += 1e-3
    for unknown in ((dataclasses.replace(RECOMMENDED, steps=7), pixel, cache),
                    (RECOMMENDED, UNetModel(other, "tiny"), cache), (RECOMMENDED, pixel, None)):
        with pytest.warns(UserWarning, match="tiny was not calibrated for these settings yet: taki"
                                             r"ng strength=0\.5, noise_scale=1\.0, replay=0\.9"):
            resolve_dials(*unknown)


def test_what_is_calibrated_already_or_comes_with_the_package_needs_no_warning(pixel, bundled):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_dials(Settings(), pixel, None) == Settings().with_dials()
        for preset in ("recommended", "fast"):
            found = resolve_dials(PRESETS[preset], bundled, None)
            assert (found.strength, found.replay, found.noise_scale) == (0.85, 0.0, 1.0)
