"""Every dial, given everything that is no dial: a ValueError that names it, or the right value."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from dreamda_aug import AugmentedDataset, DreamDAugment, LatentCache, ModelSpec, Synthesizer
from dreamda_aug.method.settings import Settings

NONSENSE = [
    "", "much", "0.5", b"1", [], [1], {}, object(), math.nan, math.inf, -math.inf, -1, 1e30, True,
    1 + 2j, np.array([0.5, 0.5]), np.float32("nan"), torch.tensor([1.0, 2.0]),
]
NUMBERS = ["strength", "eta", "replay", "noise_scale", "guidance_scale"]
COUNTS = ["steps", "paths"]
WORDS = ["solver", "timestep_spacing", "update_rule"]
# large, but numbers all the same
ALLOWED = {("noise_scale", "1e+30"), ("guidance_scale", "1e+30")}


@pytest.mark.parametrize("value", NONSENSE)
@pytest.mark.parametrize("name", NUMBERS + COUNTS + WORDS)
def test_a_dial_refuses_nonsense_by_name(name, value):
    if (name, repr(value)) in ALLOWED:
        assert getattr(Settings(**{name: value}), name) == value
        return
    with pytest.raises(ValueError, match=rf"{name} must .*, got "):
        Settings(**{name: value})


@pytest.mark.parametrize("value", ["", 0.5, (0.5,), (0.2, 0.1), (-0.1, 1), (0, math.nan), ("a", 1),
                                   (0, 1, 1), {0: 1}, (True, True)])
def test_the_guidance_interval_refuses_nonsense(value):
    with pytest.raises(ValueError, match=r"guidance_interval must rise within \[0, 1\], got"):
        Settings(guidance_interval=value)


@pytest.mark.parametrize("name, value", [("inversion", "ddim"), ("perturbation", 3),
                                         ("source_prompt", 3)])
def test_parts_of_another_kind_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        Settings(**{name: value})


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16])
@pytest.mark.parametrize("name", NUMBERS)
def test_numpys_numbers_are_numbers(name, kind):
    value = getattr(Settings(**{name: kind(0.5)}), name)
    assert type(value) is float and value == 0.5


@pytest.mark.parametrize("kind", [np.int8, np.int64, np.uint16])
@pytest.mark.parametrize("name", COUNTS)
def test_numpys_integers_are_integers(name, kind):
    value = getattr(Settings(**{name: kind(7)}), name)
    assert type(value) is int and value == 7


def test_settings_survive_a_round_trip_of_their_own_values():
    settings = Settings(strength=np.float32(0.5), guidance_interval=[0.25, 0.75])
    assert dataclasses.replace(settings) == settings
    assert hash(settings) == hash(dataclasses.replace(settings))


OPTIONS = {
    "batch_size": ["", "8", 0, -1, 1.5, True, math.nan, None],
    "rng_seed": ["", "8", 1.5, True, math.nan, None, 2**63],
    "p": ["", "0.5", -0.1, 1.1, math.nan, True, None, [0.5]],
    "labels_getter": ["label", 3, []],
    "device": ["gpu", "cuda:x", 1.5, "cpu:cpu"],
    "dtype": ["half precision", 16, "int64", torch.int64, float],
    "preset": [3, None, "best"],
    "noise": [1.0],
}


@pytest.mark.parametrize("name, value", [(n, v) for n, vs in OPTIONS.items() for v in vs])
def test_an_option_refuses_nonsense_by_name(name, value):
    with pytest.raises((ValueError, TypeError), match=name):
        DreamDAugment(cache=None, **{name: value})


@pytest.mark.parametrize("name", ["", "  "])
def test_a_backbone_without_a_name_is_refused(name):
    with pytest.raises(ValueError, match="model must be a hub id"):
        ModelSpec(name)


@pytest.mark.parametrize("value", [0, -1, "1 GB", 1.5, True])
def test_a_cache_refuses_a_budget_that_is_none(value, tmp_path):
    with pytest.raises(ValueError, match="max_bytes must be an integer >= 1"):
        LatentCache(tmp_path, max_bytes=value)


@pytest.mark.parametrize("value", [0, -1, "5", 1.5, True, None, math.nan])
def test_an_expansion_ratio_that_is_none_is_refused(value, bundled):
    data = [(torch.zeros(1, 28, 28), 0)]
    with pytest.raises(ValueError, match="expansion_ratio must be an integer >= 1"):
        AugmentedDataset(data, Synthesizer(bundled, cache=None, noise_scale=1.0), value)


@pytest.mark.parametrize("value", [None, "recommended", 3, torch.nn.Identity()])
def test_what_makes_no_images_is_no_synthesizer(value):
    with pytest.raises(TypeError, match="a Synthesizer or a DreamDAugment was expected, got"):
        AugmentedDataset([(torch.zeros(1, 28, 28), 0)], value)
