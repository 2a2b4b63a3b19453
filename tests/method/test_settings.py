"""Every dial's range, and the presets."""

import pytest

from dreamda_aug import PRESETS, DDIMInversion, Settings
from dreamda_aug.method.settings import resolve_settings


@pytest.mark.parametrize("wrong, message", [
    (dict(steps=0), "steps must be an integer >= 1 and <= 10000, got 0"),
    (dict(strength=0), r"strength must lie in \(0, 1\] or be None \(calibrated\), got 0"),
    (dict(eta=1.5), r"eta must lie in \[0, 1\], got 1.5"),
    (dict(replay=-0.1), r"replay must lie in \[0, 1\] or be None \(calibrated\), got -0.1"),
    (dict(replay="more"), "replay must be a finite number or None, got 'more'"),
    (dict(noise_scale=-1), r"noise_scale must be a number >= 0 or None \(calibrated\), got -1"),
    (dict(solver="euler"), "solver must be .*ddim.*, got 'euler'"),
    (dict(timestep_spacing="even"),
     "timestep_spacing must be 'uniform' or 'scheduler', got 'even'"),
    (dict(guidance_interval=(0.5, 0.2)), r"guidance_interval must rise within \[0, 1\], got"),
    (dict(replay_interval=(0.5, 1.2)), r"replay_interval must rise within \[0, 1\], got"),
    (dict(update_rule="both"), "update_rule must be 'asymmetric' or 'symmetric', got 'both'"),
    (dict(guidance_scale=-1), "guidance_scale must be >= 0, got -1"),
    (dict(paths=0), "paths must be an integer >= 1 and <= 10000, got 0"),
    (dict(inversion=DDIMInversion(exact=False)), "only with eta=0, got eta=1.0"),
])
def test_settings_outside_their_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


def test_unknown_presets_and_settings_are_refused_with_a_list():
    with pytest.raises(ValueError, match="one of paper, official, recommended, fast, samples"):
        resolve_settings("papre")
    with pytest.raises(TypeError, match="'noise' is no setting; the settings are eta"):
        resolve_settings("paper", noise=1)
    with pytest.raises(TypeError, match="preset must be a name or Settings, got int"):
        resolve_settings(3)


def test_the_summary_names_what_differs_from_the_paper():
    assert PRESETS["paper"].summary() == "paper"
    changed = resolve_settings("paper", steps=7, noise_scale=None)
    assert changed.summary() == "steps=7, noise_scale=None"


def test_only_plain_samples_forget_their_seed_image():
    assert [name for name, preset in PRESETS.items() if preset.forgets_seed] == ["samples"]
    assert not Settings(strength=1.0, replay=0.1).forgets_seed
    assert not Settings(strength=0.9, replay=0.0).forgets_seed
