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


def test_images_between_two_of_a_class_are_neither(tmp_path, model, tiny, images):
    spec = replace(RECIPES["interpolation"](tiny)[0], replicas=2)
    shots = images.shots
    made = load_pool(tmp_path, tiny, spec, shots, 0, model).pixels.float()
    seeds = shots.pixels.float()  # two of each class
    assert shots.labels.tolist() == [0, 0, 1, 1, 2, 2]
    partners = seeds.view(3, 2, -1).flip(1).reshape(6, -1).repeat_interleave(2, 0)
    others = seeds.roll(2, 0).flatten(1).repeat_interleave(2, 0)
    own, made = seeds.flatten(1).repeat_interleave(2, 0), made.flatten(1)
    to_own, to_partner, to_other = ((made - each).norm(dim=1) for each in (own, partners, others))
    assert (to_own + to_partner < 2 * to_other).all() and (to_own > 1).all()


def test_label_free_replicas_are_conditioned_on_no_class(tiny, images):
    settings = RECIPES["label_free"](tiny)[0].settings
    for kind, labels in (("label_free", {None}), ("replicas", {0, 1, 2})):
        _, requests, asked = pools.ask(PoolSpec(kind, 2, settings), images.shots, True)
        assert {request.condition for request in requests} == labels
        assert set(asked.tolist()) == {0, 1, 2}
