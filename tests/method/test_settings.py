"""Every dial's type and range, and the presets."""

from dataclasses import replace

import numpy as np
import pytest

from dreamda_aug import PRESETS, DDIMInversion, Settings
from dreamda_aug.method.settings import ResolvedSettings, resolve_settings


@pytest.mark.parametrize("wrong, message", [
    (dict(steps=0), "steps must be an integer >= 1 and <= 10000, got 0"),
    (dict(strength=0), r"strength must lie in \(0, 1\] or be None \(calibrated\), got 0"),
    (dict(eta=None), "eta must be a finite number, got None"),
    (dict(noise_scale=-1), r"noise_scale must be a number >= 0 or be None \(calibrated\), got -1"),
    (dict(solver="euler"), "solver must be 'ddim', 'dpmsolver.* or 'heun', got 'euler'"),
    (dict(guidance_interval=(0.5, 0.2)), r"guidance_interval must rise within \[0, 1\], got"),
    (dict(inversion=DDIMInversion(exact=False)), "only with eta=0, got eta=1.0"),
])
def test_settings_outside_their_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_numbers_of_numpy_become_pythons_and_lists_become_pairs():
    settings = Settings(steps=np.int64(7), strength=np.float32(0.5), guidance_interval=[0.25, 0.75])
    assert settings == Settings(steps=7, strength=0.5, guidance_interval=(0.25, 0.75))
    assert (type(settings.steps), type(settings.strength)) == (int, float)
    assert hash(settings) == hash(replace(settings))


def test_unknown_presets_and_settings_are_refused_with_a_list():
    with pytest.raises(ValueError, match="one of paper, official, recommended, fast, samples"):
        resolve_settings("papre")
    with pytest.raises(TypeError, match="'noise' is no setting; the settings are eta"):
        resolve_settings("paper", noise=1)
    with pytest.raises(TypeError, match="preset must be a name or Settings, got int"):
        resolve_settings(3)


def test_a_run_has_numbers_for_all_dials():
    preset = PRESETS["recommended"]
    assert preset.open_dials == ("strength", "noise_scale", "replay")
    run = preset.with_dials(strength=0.5, noise_scale=1.0, replay=0.9)
    assert isinstance(run, ResolvedSettings) and run.open_dials == ()
    assert (run.strength, run.steps) == (0.5, preset.steps)
    assert Settings(strength=0.3).with_dials().strength == 0.3
    with pytest.raises(ValueError, match="noise_scale must be a finite number, got None"):
        preset.with_dials(strength=0.5, replay=0.9)
