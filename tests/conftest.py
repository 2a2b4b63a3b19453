"""What every test has: no network, one thread, a cache of its own, and tiny pipelines."""

import os

# several test processes beside each other spin against each other with more than one thread
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


import pytest
import torch
from pipelines import pixel_pipeline

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _private_default_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DREAMDA_CACHE", str(tmp_path / "default_cache"))


@pytest.fixture(params=[1_000_000, 500], ids=["one tile", "many tiles"])
def tile(request, monkeypatch):
    """500 entries split the arrays of ``clouds.sets`` into bands of unequal length."""
    from dreamda_aug.metrics import distances

    monkeypatch.setattr(distances, "TILE_ENTRIES", request.param)


@pytest.fixture(scope="session")
def sd_pipeline():
    """A tiny Stable Diffusion."""
    pytest.importorskip("transformers")
    from benchmarks.families import pipelines

    return pipelines.sd()


@pytest.fixture(scope="session")
def colour():
    """A tiny model of three channels."""
    from dreamda_aug.models.unet import UNetModel

    return UNetModel(pixel_pipeline(channels=3), "tiny colour")


@pytest.fixture(scope="session")
def bundled():
    """The bundled model, on the CPU."""
    from dreamda_aug import load_model

    return load_model(device="cpu")


@pytest.fixture
def class_folder(tmp_path):
    """A pixel model of the classes left, up and down, with a null class, saved in a folder."""
    folder = tmp_path / "prior"
    pixel_pipeline("v_prediction", num_classes=4).save_pretrained(folder)
    (folder / "training.json").write_text('{"class_names": ["left", "up", "down"]}')
    return folder


@pytest.fixture
def few_choices(monkeypatch):
    """Calibration without being asked tries few choices."""
    from dreamda_aug.calibration import automatic

    monkeypatch.setattr(automatic, "GRID", {
        "strengths": (0.3, 0.8), "replays": (0.9, 0.0), "noise_scales": (0.5, 4.0)})


@pytest.fixture
def measured(monkeypatch):
    """A list that has an entry for each time that dials were measured without being asked."""
    from dreamda_aug.calibration import automatic

    calls = []
    measure = automatic._measure
    monkeypatch.setattr(automatic, "_measure",
                        lambda *given: calls.append(given) or measure(*given))
    return calls
