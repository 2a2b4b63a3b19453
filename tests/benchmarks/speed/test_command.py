"""The whole command: its record, and the pages that are made of several."""

import json

import pytest

from benchmarks.speed.__main__ import main
from benchmarks.speed.page import section
from benchmarks.speed.switches import COMPILE, SWITCHES


@pytest.fixture(scope="module")
def record(sd_pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("speed")
    sd_pipeline.save_pretrained(folder / "model")
    made = main(["--arch", str(folder / "model"), "--quick", "--steps", "3", "--device", "cpu",
                 "--presets", "official", "fast", "few", "--no-compile",
                 "--out", str(folder / "results"), "--page", str(folder / "speed.md")])
    assert made == json.loads((folder / "results" / "throughput_model.json").read_text())
    return made, folder


def test_every_run_has_the_rows_that_its_method_needs(record):
    rows = {(row["arm"], row["batch_size"]): row for row in record[0]["arms"]}

    def of(name, size):
        return rows[name, size]["encoder_rows"], rows[name, size]["decoder_rows"]

    # 2 steps run, 2 rows with guidance; replicas share what they have in common at the first step
    assert of("diffusers img2img", 1) == of("diffusers img2img", 4) == (4, 4)
    assert of("diffusers CycleDiffusion", 1) == of("released cost structure, 4 rows", 1) == (8, 8)
    assert of("a sample, symmetric rule", 1) == of("DreamDAugment, an image per call", 1) == (4, 4)
    assert of("a sample, symmetric rule", 4) == (3, 4)
    assert of("a sample, asymmetric rule", 1) == (4, 8)
    assert of("preset official, K = 1", 1) == (2 + 4, 2 + 4)
    assert of("preset official, K = 3", 1) == (2 / 3 + 4, 2 / 3 + 4)
    plain, ours = (rows["released cost structure, 4 rows", 1], rows["a sample, symmetric rule", 1])
    assert 1.5 < plain["flop"] / ours["flop"] < 2.5
    assert all(row["seconds"] > 0 and row["peak_bytes"] > 0 and row["images_per_kwh"] is None
               and len(row["times"]) == 2 for row in rows.values())


def test_the_page_has_a_section_for_each_record_and_no_times_of_a_busy_machine(record):
    made, folder = record
    page = (folder / "speed.md").read_text()
    for switch in [*SWITCHES, *COMPILE]:
        assert f"| {switch.name} | {switch.instead} |" in page
    assert page.count("GPU only, not measured yet") == 2 and "prove nothing" in page
    main(["--arch", str(folder / "model"), "--quick", "--steps", "3", "--device", "cpu",
          "--low-memory", "--presets", "few", "--out", str(folder / "results"),
          "--page", str(folder / "speed.md")])
    page = (folder / "speed.md").read_text()
    assert page.count("### Each switch by itself") == 1 and ", low memory" in page
    calm, busy = ({**made, "load": [load, 0.1], "cores": 2} for load in (0.5, 7))
    assert "| ms |" in section(calm) and "TFLOP/s" in section(calm)
    assert "| ms |" not in section(busy) and "TFLOP/s" not in section(busy)
    assert "ratios only" in section(busy)
