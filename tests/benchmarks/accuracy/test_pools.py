"""Pools of synthetic images: resumed without a trace, and made from what their name says."""

import pytest
import torch

from benchmarks.accuracy import pools
from benchmarks.accuracy.pools import (
    PoolSpec,
    Stopped,
    load_pool,
    noise_settings,
    open_backbone,
    settings_of,
)
from benchmarks.accuracy.tasks import TASKS


def test_a_pool_that_was_interrupted_is_that_of_an_uninterrupted_run(
    tmp_path, backbone, monkeypatch, tiny, images
):
    monkeypatch.setattr(pools, "SLICE", 4)
    spec = PoolSpec("replicas", 3, settings_of(tiny, 0.5, 0.6, 1.0))
    whole = load_pool(tmp_path / "a", tiny, spec, images.shots, 0, backbone)
    assert whole.pixels.shape == (18, 1, 16, 16)
    assert whole.seed_labels.tolist() == images.shots.labels.repeat_interleave(3).tolist()
    load_pool(tmp_path / "b", tiny, spec, images.shots, 0, backbone)
    files = sorted((tmp_path / "b").rglob("*.safetensors"))
    assert len(files) == 6
    for path in files[2:]:
        path.unlink()
    with pytest.raises(Stopped):
        load_pool(tmp_path / "b", tiny, spec, images.shots, 0, backbone, deadline=0)
    again = load_pool(tmp_path / "b", tiny, spec, images.shots, 0, backbone)
    assert torch.equal(again.pixels, whole.pixels)


def test_copies_are_the_seed_images_and_noise_knows_no_label(tmp_path, backbone, tiny, images):
    shots = images.shots
    copies = load_pool(tmp_path, tiny, PoolSpec("copies", 2), shots, 0, None)
    assert torch.equal(copies.pixels[::2], shots.pixels)
    assert torch.equal(copies.pixels[1::2], shots.pixels)
    spec = PoolSpec("noise", 2, noise_settings(tiny))
    noise = load_pool(tmp_path, tiny, spec, shots, 0, backbone)
    assert len(noise.pixels) == 12 and noise.seed_labels.tolist() == [-1] * 12
    assert len({tuple(image.flatten().tolist()) for image in noise.pixels}) == 12


def test_noise_in_another_place_gives_another_pool(tmp_path, backbone, tiny, images):
    settings = settings_of(tiny, 0.5, 1.0, 0.0)
    still, moved = (
        load_pool(tmp_path, tiny, PoolSpec("replicas", 2, settings, place), images.shots, 0,
                  backbone).pixels
        for place in ("bottleneck", "x_T 0.6")
    )  # fmt: skip
    assert torch.equal(still[0], still[1]) and not torch.equal(moved[0], moved[1])


def test_a_task_without_a_backbone_of_its_own_asks_for_one():
    with pytest.raises(SystemExit, match=r"cifar10 needs --backbone FOLDER"):
        open_backbone(TASKS["cifar10"], None, "cpu")
