"""Damaged and foreign files: an error of ours with the file's path, and nothing of others lost."""

import json
import math
import warnings

import pytest
import torch
from pipelines import pixel_pipeline

from dreamda_aug import LatentCache, load_model
from dreamda_aug.errors import ModelError, StorageError
from dreamda_aug.generation.cache import cache_key, default_cache_root
from dreamda_aug.generation.dials import Calibration

DAMAGE = {"half": b'{"a": 1', "binary": bytes(range(256)), "deep": b"[" * 100_000,
          "other": b'{"something": "else"}'}
KEY = cache_key(image="a")
TENSORS = {"x_T": torch.ones(1, 2, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("model")
    pixel_pipeline().save_pretrained(root)
    return root


@pytest.mark.parametrize("damage", DAMAGE, ids=str)
@pytest.mark.parametrize("name", ["model_index.json", "unet/config.json",
                                  "scheduler/scheduler_config.json",
                                  "unet/diffusion_pytorch_model.safetensors"])
def test_a_damaged_model_is_named(folder, name, damage):
    if name == "scheduler/scheduler_config.json" and damage == "other":
        pytest.skip("diffusers takes an object without known fields for its defaults")
    path = folder / name
    before = path.read_bytes()
    path.write_bytes(DAMAGE[damage])
    try:
        with pytest.raises(ModelError, match=str(folder)):
            load_model(folder, device="cpu")
    finally:
        path.write_bytes(before)
    assert load_model(folder, device="cpu").channels == 1


@pytest.mark.parametrize("change", [{"num_train_timesteps": 0}, {"beta_end": 7.0},
                                    {"beta_start": math.nan}])
def test_a_scheduler_without_noise_levels_is_refused(folder, change):
    path = folder / "scheduler" / "scheduler_config.json"
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | change))
    try:
        with pytest.raises(ModelError, match="has no noise levels, or signal power outside"):
            load_model(folder, device="cpu")
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("text", [DAMAGE["half"], b'{"class_names": "cat"}',
                                  b'{"class_names": [1, 2]}'])
def test_damaged_training_facts_are_named(folder, text):
    path = folder / "training.json"
    path.write_bytes(text)
    try:
        with pytest.raises(ModelError, match="training.json"):
            load_model(folder, device="cpu")
    finally:
        path.unlink()


@pytest.mark.parametrize("text", [DAMAGE["half"], b'{"points": []}', json.dumps({
    "noise_scale": "much", "replay": 0.5, "target": "", "met": True, "points": []}).encode()])
def test_a_damaged_calibration_is_named(tmp_path, text):
    path = tmp_path / "calibration.json"
    path.write_bytes(text)
    with pytest.raises(StorageError, match=str(path)):
        Calibration.load(path)


def test_eviction_touches_no_foreign_file(tmp_path):
    cache = LatentCache(tmp_path, max_bytes=1500)
    foreign = [tmp_path / "ab" / name for name in ("notes.txt", "ab.safetensors", "A" * 64)]
    foreign += [tmp_path / "photos" / "a.png", tmp_path / "zz" / "b.png"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
    (tmp_path / "ab" / ("0" * 64 + ".safetensors")).mkdir()
    for i in range(30):
        cache.put(cache_key(image=str(i)), TENSORS)
    assert len(cache.sizes()) < 30
    assert all(path.read_bytes() == b"mine" for path in foreign)


def test_a_cache_that_cannot_be_used_is_a_warning_and_no_more(tmp_path, monkeypatch):
    cache = LatentCache(tmp_path)
    cache.put(KEY, TENSORS)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dreamda_aug.files.os.replace", refuse)
    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.warns(UserWarning, match="cannot be used .Permission denied"):
        assert cache.get(KEY) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once is enough
        cache.put(cache_key(image="b"), TENSORS)
        assert cache.get(KEY) is None


def test_an_empty_variable_is_no_folder_and_a_tilde_is_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("DREAMDA_CACHE", "")
    assert default_cache_root() == tmp_path / ".cache" / "dreamda_aug"
    monkeypatch.setenv("DREAMDA_CACHE", "~/elsewhere")
    assert default_cache_root() == tmp_path / "elsewhere"
    with pytest.raises(ValueError, match="root must name a folder"):
        LatentCache("")
