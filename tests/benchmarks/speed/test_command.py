"""The whole command: its record, and the page that is made of several."""

import json

import pytest

from benchmarks.speed.__main__ import main
from benchmarks.speed.switches import COMPILE, SWITCHES


def test_the_benchmark_writes_a_row_for_each_path_and_switch(sd_pipeline, tmp_path):
    sd_pipeline.save_pretrained(tmp_path / "model")
    record = main(["--arch", str(tmp_path / "model"), "--quick", "--steps", "3", "--device", "cpu",
                   "--no-compile", "--out", str(tmp_path / "results"),
                   "--page", str(tmp_path / "speed.md")])
    assert record == json.loads((tmp_path / "results" / "throughput_model.json").read_text())
    plain, one, four, *_ = record["paths"]
    assert (plain["encoder_rows"], one["batch_size"], four["batch_size"]) == (8, 1, 4)
    # 2 steps: an inversion for every 3 replicas, 2 guided rows for each of them
    assert one["encoder_rows"] == 2 / 3 + 4
    assert one["max_difference_in_float32"] < 1e-3
    exact = [s for s in record["switches"] if "max_difference" in s][:6]
    assert all(s["max_difference"] < 2e-2 for s in exact)
    page = (tmp_path / "speed.md").read_text()
    for switch in [*SWITCHES, COMPILE]:
        assert f"| {switch.name} | {switch.instead} |" in page
    assert page.count("GPU only, not measured yet") == 2 and "prove nothing" in page
    main(["--arch", str(tmp_path / "model"), "--quick", "--steps", "3", "--device", "cpu",
          "--low-memory", "--out", str(tmp_path / "results"),
          "--page", str(tmp_path / "speed.md")])
    page = (tmp_path / "speed.md").read_text()
    assert page.count("### Each switch by itself") == 1 and ", low memory" in page


def test_a_page_without_a_folder_of_records_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--page", str(tmp_path / "speed.md")])
    assert "--page is written from the JSON files in --out" in capsys.readouterr().err
