import pytest
from dreamda_aug.report.orderings import scores_of
from report.lines import line, write_dataset

from dreamda_aug.expansion.manifest import read_manifest, read_skipped
from dreamda_aug.expansion.metadata import read_metadata
from dreamda_aug.expansion.stats import read_stats
from dreamda_aug.report.overview import (
    NEAR_COPY,
    Overview,
    class_table,
    figures,
    near_copy_threshold,
)

LABEL, COPY = {"name": "label", "classifier": "x"}, {"name": "copy", "threshold": 0.3}
LINES = [
    line(0, 0, "cat", 0.01), line(0, 1, "cat", 0.04, scores={"label": 0.9}),
    line(1, 0, "dog", 0.05, flags=["label"], scores={"label": 0.1}),
    line(1, 1, "dog", 0.10, flags=["seed-copy", "copy"]),
]


def numbers(root, diversity=(0.6, 3), warnings=0):
    facts, stats = read_metadata(root), read_stats(root)
    overview = Overview(near_copy_threshold(facts))
    for each in read_manifest(root):
        overview.add(each, scores_of(each))
    for entry in read_skipped(root):
        overview.add_skipped(entry.skipped)
    return ({figure.name: figure for figure in
             figures(facts, stats, overview, diversity, warnings)},
            class_table(facts, stats, overview))


def test_the_summary_counts_what_was_left_out_too(tmp_path):
    root = write_dataset(
        tmp_path / "out", LINES, classes={"cat": 2, "dog": 1}, filters=[LABEL, COPY],
        skipped=["flagged: label", "flagged: seed-copy, label", "no image", "flagged: odd"])
    found, _ = numbers(root, warnings=2)
    values = {name: figure.value for name, figure in found.items()}
    # three of seven generated images have another label; three are near-copies
    assert values == {"Synthetic images": "4", "Labels kept": "57.1%", "Distance": "0.050",
                      "Diversity": "0.200", "Near-copies": "42.9%", "Warnings": "2"}
    notes = {name: figure.note for name, figure in found.items()}
    assert notes["Synthetic images"] == ("from 2 seed images of 3 in 2 classes; filters left out "
                                         "3 more; 1 could not be made.")
    assert "another class in 3 images of 7" in notes["Labels kept"]
    assert "Mean probability of the right one: 0.50" in notes["Labels kept"]
    assert "median 0.045, largest 0.100" in notes["Distance"]
    assert notes["Near-copies"] == ("3 images of 7: distance from the seed image below 0.02. "
                                    "1 image may copy another training image.")
    assert [name for name, figure in found.items() if figure.alarming] == [
        "Synthetic images", "Labels kept", "Near-copies", "Warnings"]


def test_what_was_not_measured_says_so(tmp_path):
    root = write_dataset(tmp_path / "out", [line(0, 0, "cat", 0.1)])
    found, _ = numbers(root, diversity=(0.0, 0))
    assert found["Labels kept"].value == found["Diversity"].value == "not measured"
    assert "--filter label=CLASSIFIER" in found["Labels kept"].note
    assert found["Synthetic images"].note == "from 1 seed image in 1 class."
    assert not any(figure.alarming for figure in found.values())


def test_the_threshold_is_that_of_the_datasets_own_filter(tmp_path):
    from dreamda_aug.expansion.filters import SeedCopy

    assert near_copy_threshold({"filters": [SeedCopy(0.05).describe()]}) == 0.05
    assert near_copy_threshold({"filters": [LABEL]}) == NEAR_COPY == SeedCopy().threshold
    root = write_dataset(tmp_path / "out", LINES, filters=[SeedCopy(0.045).describe()])
    assert numbers(root)[0]["Near-copies"].value == "75.0%"


def test_the_table_has_a_column_for_each_filter(tmp_path):
    root = write_dataset(tmp_path / "out", LINES, classes={"cat": 2, "dog": 1, "none": 0},
                         filters=[LABEL, {"name": "seed-copy", "threshold": 0.02}, COPY])
    columns, rows = numbers(root)[1]
    assert columns == ["class", "seed images", "synthetic", "mean distance", "near-copies",
                       "other label", "copy flagged"]
    assert rows == [["cat", "2", "2", "0.025", "1 (50%)", "0 (0%)", "0 (0%)"],
                    ["dog", "1", "2", "0.075", "1 (50%)", "1 (50%)", "1 (50%)"],
                    ["none", "0", "0", "–", "–", "–", "–"]]
    plain = write_dataset(tmp_path / "plain", LINES)
    assert numbers(plain)[1][0] == ["class", "seed images", "synthetic", "mean distance",
                                    "near-copies"]


@pytest.mark.parametrize("distance, near", [(0.0199, "100.0%"), (0.02, "0.0%")])
def test_near_copies_lie_below_the_threshold(tmp_path, distance, near):
    root = write_dataset(tmp_path / "out", [line(0, 0, "cat", distance)])
    assert numbers(root)[0]["Near-copies"].value == near
