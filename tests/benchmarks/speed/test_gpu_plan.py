"""The plan for a GPU, at toy size on the CPU: parts run, and none is done twice."""

import json

import pytest

from benchmarks.speed import gpu_parts, gpu_plan
from benchmarks.speed.__main__ import main

EXPECTED = {
    "exactness": lambda found: found[0]["replay_max_difference"] < 1e-3
    and found[0]["alone_or_in_a_batch_max_difference"] < 1e-2,
    "speed_sd15": lambda found: len(found["targets"]) == 4,
}


@pytest.mark.parametrize("part", EXPECTED)
def test_a_part_finds_what_it_is_there_for(part, tmp_path):
    gpu_parts.main([part, "--device", "cpu", "--toy", "--out", str(tmp_path)])
    assert EXPECTED[part](json.loads((tmp_path / f"{part}.result.json").read_text()))


def test_parts_run_in_processes_of_their_own_and_what_is_done_is_kept(tmp_path, capsys):
    command = ["--gpu-plan", str(tmp_path), "--device", "cpu", "--toy", "--only", "memory"]
    found = main(command)["memory"]
    assert found == json.loads((tmp_path / "memory.json").read_text())
    assert found["state"] == "done" and found["toy"] and len(found["result"]) == 2
    assert main([*command, "--minutes", "0"]) == {"memory": found}


def test_a_part_that_fails_or_takes_too_long_is_tried_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gpu_plan, "LIMITS", {"no part": 1000, "memory": 0.1})
    found = gpu_plan.run_plan(tmp_path, "cpu", toy=True)
    assert found["no part"]["state"] == "failed" and "invalid choice" in found["no part"]["said"]
    assert found["memory"]["state"] == "out of time" and found["memory"]["result"] is None
    assert gpu_plan.run_plan(tmp_path, "cpu", only=["memory"], seconds=0) == {}
    assert "no time left" in capsys.readouterr().out
