"""The plan for a GPU, tried on the CPU as on a bare machine: every part, and none is done twice."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import torch

from benchmarks.gpu import __main__ as plan
from benchmarks.gpu import cifar10
from dreamda_aug import load_model

ROOT = Path(__file__).parents[3]


def test_a_bare_machine_runs_every_part(tmp_path):
    """Only torch and the like are there; the package comes with the prepared folder."""
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_NO_INDEX": "1"}
    environment.pop("PYTHONPATH", None)
    subprocess.run([ROOT / "benchmarks/gpu/prepare.sh", tmp_path / "carried"], check=True,
                   env=environment, capture_output=True)
    command = [tmp_path / "carried/run.sh", tmp_path / "results", "--device", "cpu", "--tiny"]
    for only in (["exactness", "cifar10"], []):  # the second call resumes
        subprocess.run([*command, *(["--only", *only] if only else [])], check=True,
                       env=environment, capture_output=True, cwd=tmp_path)
    found = json.loads((tmp_path / "results/results.json").read_text())
    assert {name: part["state"] for name, part in found.items()} == dict.fromkeys(
        plan.LIMITS, "done"), {name: part["output"] for name, part in found.items()}
    assert found["exactness"]["result"]["images"][0]["replay_max_difference"] < 1e-3
    assert found["exactness"]["result"]["tests"]["code"] == 0
    assert [row["compiled"] for row in found["sd15_compiled"]["result"]] == [False, True]
    assert found["workers"]["result"]["expand"]["codes_2"] == [0, 0]
    for name in ("sd15", "sdxl", "sd3"):
        assert found[name]["result"]["targets"]
    with zipfile.ZipFile(tmp_path / "results/cifar10.zip") as file:
        file.extractall(tmp_path / "prior")
    model = load_model(tmp_path / "prior", device="cpu", dtype="float32")
    assert model.class_names == cifar10.CLASSES and model.image_size == (32, 32)


def test_a_part_that_fails_or_takes_too_long_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plan, "LIMITS", {"no part": 1000, "exactness": 0.01})
    call = [str(tmp_path), "--device", "cpu", "--tiny", "--work", str(tmp_path / "work")]
    found = plan.main(call)
    assert found["no part"]["state"] == "failed" and "invalid choice" in found["no part"]["output"]
    assert found["exactness"]["state"] == "out of time" and found["exactness"]["result"] is None
    assert plan.main([*call, "--minutes", "0"]) == found
    assert "exactness: no time left" in capsys.readouterr().out


def test_packed_images_come_back_in_their_order(tmp_path):
    levels = torch.arange(250, dtype=torch.uint8)
    pixels = levels.view(-1, 1, 1, 1).expand(-1, 3, 32, 32).clone()
    cifar10.pack(pixels, levels % 10, tmp_path)
    images, labels = cifar10.unpack(tmp_path)
    assert (images.int() - pixels.int()).abs().max() <= 2
    assert labels == (levels % 10).tolist()
