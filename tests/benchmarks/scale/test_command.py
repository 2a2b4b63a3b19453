"""Both questions about scale, asked of a few images."""

import json

import pytest

from benchmarks.scale.__main__ import main


@pytest.mark.parametrize("image_format", ["folder", "webdataset"])
def test_an_expansion_is_stopped_half_way_and_goes_on(tmp_path, image_format):
    main(["expansion", "--images", "12", "--classes", "2", "--ratio", "2", "--batch-size", "4",
          "--format", image_format, "--out", str(tmp_path)])
    record = json.loads((tmp_path / f"expand_scale_{image_format}.json").read_text())
    assert (record["images"], record["ratio"], record["format"]) == (12, 2, image_format)
    assert list(record["seconds"]) == [
        "plan", "first half", "plan and resume half-way, to the first batch",
        "second half, and merging", "the same command on the finished dataset", "report",
        "from_folder"]
    assert list(record["peak_mb"]) == ["model", *record["seconds"]]
    assert record["peak_over_model_mb"] >= 0


def test_training_beside_the_producer_is_compared_with_files(tmp_path):
    page = tmp_path / "cost.md"
    page.write_text("<!-- figures: scale/ahead -->\n<!-- end of figures -->\n")
    main(["ahead", "--ratio", "1", "--epochs", "1", "--limit", "2", "--images", "4", "--out",
          str(tmp_path), "--docs", str(page)])
    record = json.loads((tmp_path / "ahead.json").read_text())
    assert len(record["seconds_on_files"]) == len(record["seconds_ahead"]) == 2
    assert record["throughput"] > 0 and record["seed_images"] == 4
    assert "of its speed on files" in page.read_text() and "served" in page.read_text()
