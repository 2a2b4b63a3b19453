"""Pools of synthetic images: resumed without a trace, and made from what their name says."""

from dataclasses import replace

import pytest
import torch

from benchmarks.accuracy import pools
from benchmarks.accuracy.pools import (
    PoolSpec,
    Stopped,
    load_pool,
)
from benchmarks.accuracy.recipes import RECIPES, base


def test_a_pool_that_was_interrupted_is_that_of_an_uninterrupted_run(
    tmp_path, model, monkeypatch, tiny, images
):
    monkeypatch.setattr(pools, "SLICE", 4)
    spec = PoolSpec("replicas", 3, base(tiny, strength=0.5, replay=0.6, noise_scale=1.0))
    whole = load_pool(tmp_path / "a", tiny, spec, images.shots, 0, model)
    assert whole.pixels.shape == (18, 1, 16, 16)
    assert whole.seed_labels.tolist() == images.shots.labels.repeat_interleave(3).tolist()
    load_pool(tmp_path / "b", tiny, spec, images.shots, 0, model)
    files = sorted((tmp_path / "b").rglob("*.safetensors"))
    assert len(files) == 6
    for path in files[2:]:
        path.unlink()
    with pytest.raises(Stopped):
        load_pool(tmp_path / "b", tiny, spec, images.shots, 0, model, deadline=0)
    again = load_pool(tmp_path / "b", tiny, spec, images.shots, 0, model)
    assert torch.equal(again.pixels, whole.pixels)


def test_copies_are_the_seed_images_and_noise_knows_no_label(tmp_path, model, tiny, images):
    shots = images.shots
    copies = load_pool(tmp_path, tiny, PoolSpec("copies", 2), shots, 0, None)
    assert torch.equal(copies.pixels[::2], shots.pixels)
    assert torch.equal(copies.pixels[1::2], shots.pixels)
    spec = replace(RECIPES["noise"](tiny)[0], replicas=2)
    noise = load_pool(tmp_path, tiny, spec, shots, 0, model)
    assert len(noise.pixels) == 12 and noise.seed_labels.tolist() == [-1] * 12
    assert len({tuple(image.flatten().tolist()) for image in noise.pixels}) == 12
