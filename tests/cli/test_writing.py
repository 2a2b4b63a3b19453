import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from expansion.folders import content, write_images
from tqdm import tqdm

from dreamda_aug.cli.main import main
from dreamda_aug.cli.writing import _show
from dreamda_aug.expansion import read_manifest
from dreamda_aug.expansion.engines import Progress

# Small enough for a test, and the same for every process.
QUICK = ["--preset", "paper", "--set", "steps=2", "--set", "strength=0.5", "--batch-size", "4",
         "--device", "cpu"]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("data") / "train", {"cat": 3, "dog": 3}, 28)


@pytest.fixture(scope="module")
def made(train, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "out"
    assert main(["expand", str(train), "--out", str(out), "--expansion-ratio", "3", *QUICK]) == 0
    return out


def test_metrics_of_what_expand_wrote_know_the_seed_images(train, made, capsys):
    assert main(["metrics", str(train), str(made), "--classifier", "bundled"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seed_distance"] >= 0 and found["diversity"] >= 0
    assert "Sequential" in found["features"] and found["feature_count"] == 576


def test_expand_report_and_regenerate_work_from_the_shell(train, made, tmp_path, capsys):
    assert main(["expand", str(train), "--out", str(made), "--expansion-ratio", "3", *QUICK]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == f"{made}: 18 synthetic images" and "\r" not in err
    assert main(["report", str(made), "--out", str(tmp_path / "r.html")]) == 0
    assert "all synthetic" in (tmp_path / "r.html").read_text()
    assert main(["regenerate", str(made), "00000001_0001", "--out", str(tmp_path / "i.png"),
                 "--device", "cpu"]) == 0
    assert "equal to the stored image" in capsys.readouterr().out
    line = next(line for line in read_manifest(made) if line.id == "00000001_0001")
    assert (tmp_path / "i.png").read_bytes() == (made / line.file).read_bytes()
    assert main(["expand", str(train), "--out", str(made), "--expansion-ratio", "2", *QUICK]) == 2
    assert "expansion.expansion_ratio: 3 -> 2" in capsys.readouterr().err


def test_a_dry_run_prints_the_cost_and_makes_nothing(train, tmp_path, capsys):
    arguments = ["expand", str(train), "--out", str(tmp_path / "out"), "--class-ratio", "dog=7",
                 "--dry-run", *QUICK]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "36 images from 6 seed images" in out and "hours" in out and "disk" in out
    assert not (tmp_path / "out").exists()


def test_accelerate_launch_gives_the_files_of_a_single_process(train, made, tmp_path):
    pytest.importorskip("accelerate")
    out = tmp_path / "out"
    # --multi_gpu is accelerate's word for several processes; with --cpu it starts one, or needs MPI
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes",
               "3", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend",
               "no", "--main_process_port", "0", "-m", "dreamda_aug", "expand", str(train),
               "--out", str(out), "--expansion-ratio", "3", *QUICK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
                   "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    # 5 batches of 4, 4, 4, 4 and 2 images
    shares = re.findall(r"process (\d) of 3: (\d+) images made", done.stdout)
    assert sorted(shares) == [("0", "8"), ("1", "6"), ("2", "4")]
    assert content(out) == content(made)


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_shows_rate_and_remaining_time_on_a_terminal_alone(capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    with tqdm(unit=" images", disable=None) as bar:
        _show(bar, Progress(done=50, total=1000, made=0, stage="checking"))
        _show(bar, Progress(done=100, total=1000, made=0))
        _show(bar, Progress(done=300, total=1000, made=200))
    last = capsys.readouterr().err.split("\r")[-1]
    assert all(word in last for word in ("300/1000", "images/s", "30%")) if terminal else not last
