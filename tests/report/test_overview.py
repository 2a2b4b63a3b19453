"""Counts of a manifest, the worst images, what is shown, figures; and the page's summary."""

import html
import random
import re

import pytest
import torch
from report.lines import line, write_dataset
from sklearn.decomposition import PCA

from dreamda_aug.expansion.filters import SeedCopy
from dreamda_aug.report import write_report
from dreamda_aug.report.overview import (
    NEAR_COPY,
    Overview,
    choose_families,
    histogram,
    scatter,
    scores_of,
)

LABEL, COPY = {"name": "label", "classifier": "x"}, {"name": "copy", "threshold": 0.3}
LINES = [
    line(0, 0, "cat", 0.01), line(0, 1, "cat", 0.04, scores={"label": 0.9}),
    line(1, 0, "dog", 0.05, flags=["label"], scores={"label": 0.1}),
    line(1, 1, "dog", 0.10, flags=["seed-copy", "copy"]),
]


def summary(root, **options):
    return figures(write_report(root, **options).read_text())


def figures(text):
    """Value, note and whether it alarms, of each figure of a page."""
    found = re.findall(r"<div( class=\"alarming\")?><dt>(.*?)</dt><dd class=\"value\">(.*?)</dd>"
                       r"<dd>(.*?)</dd>", text, re.DOTALL)
    return {name: (value, html.unescape(note), bool(alarm)) for alarm, name, value, note in found}


def class_table(root):
    """Every row of the table of classes, the columns' names first."""
    text = write_report(root).read_text()
    table = re.search('<section id="classes".*?</section>', text, re.DOTALL)[0]
    return [re.findall(r"<t[hd][^>]*>(?:<a [^>]*>)?([^<]*)", row)
            for row in re.findall("<tr>(.*?)</tr>", table, re.DOTALL)]


def test_the_summary_counts_what_was_left_out_too(tmp_path):
    found = summary(write_dataset(
        tmp_path / "out", LINES, classes={"cat": 2, "dog": 1}, filters=[LABEL, COPY],
        skipped=["flagged: label", "flagged: seed-copy, label", "no image", "flagged: odd"]))
    # three of seven generated images have another label; three are near-copies
    assert {name: value for name, (value, _, _) in found.items()} == {
        "Synthetic images": "4", "Labels kept": "57.1%", "Distance": "0.050",
        "Diversity": "0.039", "Near-copies": "42.9%", "Warnings": "4"}
    notes = {name: note for name, (_, note, _) in found.items()}
    assert notes["Synthetic images"] == ("from 2 seed images of 3 in 2 classes; filters left out "
                                         "3 more; 1 could not be made.")
    assert "another class in 3 images of 7" in notes["Labels kept"]
    assert "Mean probability of the right one: 0.50" in notes["Labels kept"]
    assert "median 0.045, largest 0.100" in notes["Distance"]
    assert notes["Diversity"].endswith("of one seed image, over 2 pairs on this page.")
    assert notes["Near-copies"] == ("3 images of 7: distance from the seed image below 0.02. "
                                    "1 image may copy another training image.")
    assert [name for name, (_, _, alarming) in found.items() if alarming] == [
        "Synthetic images", "Labels kept", "Near-copies", "Warnings"]


def test_what_was_not_measured_says_so(tmp_path):
    found = summary(write_dataset(tmp_path / "out", [line(0, 0, "cat", 0.1)]))
    assert found["Diversity"][0] == "not measured" and found["Labels kept"][0] == "not judged"
    assert found["Labels kept"][1].startswith("The seed images are not at hand.")
    assert "--filter label=CLASSIFIER" in found["Labels kept"][1]
    assert found["Synthetic images"][1] == "from 1 seed image in 1 class."


def test_the_threshold_is_that_of_the_datasets_own_filter(tmp_path):
    assert Overview({"filters": [SeedCopy(0.05).describe()]}).near_copy == 0.05
    assert Overview({"filters": [LABEL]}).near_copy == NEAR_COPY == SeedCopy().threshold
    root = write_dataset(tmp_path / "out", LINES, filters=[SeedCopy(0.045).describe()])
    assert summary(root)["Near-copies"][0] == "75.0%"


def test_the_table_has_a_column_for_each_filter(tmp_path):
    columns, *rows = class_table(write_dataset(
        tmp_path / "out", LINES, classes={"cat": 2, "dog": 1, "none": 0},
        filters=[LABEL, {"name": "seed-copy", "threshold": 0.02}, COPY]))
    assert columns == ["class", "seed images", "synthetic", "mean distance", "near-copies",
                       "other label", "copy flagged"]
    assert rows == [["cat", "2", "2", "0.025", "1 (50%)", "0 (0%)", "0 (0%)"],
                    ["dog", "1", "2", "0.075", "1 (50%)", "1 (50%)", "1 (50%)"],
                    ["none", "0", "0", "–", "–", "–", "–"]]
    assert class_table(write_dataset(tmp_path / "plain", LINES))[0] == columns[:5]


def worst(lines):
    overview = Overview({"filters": []})
    for _ in overview.watch(lines):
        pass
    return {ordering.name: found for ordering, found in overview.worst().items()}


def test_the_worst_twelve_come_first_and_equals_as_they_came():
    generator = random.Random(0)
    # one decimal: many are equal
    lines = [line(i, distance=round(generator.random(), 1),
                  scores={each: round(generator.random(), 1) for each in ("label", "copy")})
             for i in range(60)]

    found = worst(lines)
    for name, score, sign in (("near", "distance", 1), ("far", "distance", -1),
                              ("label", "label", 1), ("copy", "copy", 1)):
        expected = sorted(lines, key=lambda each: sign * scores_of(each)[score])
        assert found[name] == expected[:12]  # sorted keeps equals in order
    found = worst([line(0, distance=0.2), line(1, distance=float("nan")),
                   line(2, distance=0.1, scores={"label": 0.5})])
    assert [each.seed_index for each in found["near"]] == [2, 0]
    assert [each.seed_index for each in found["label"]] == [2]
    assert "copy" not in found


def chosen(lines, sizes, **limit):
    return {name: [(family[0].seed_index, [each.replica for each in family])
                   for family in families]
            for name, families in choose_families(lines, sizes, **limit).items()}


def test_families_are_whole_where_they_fit_and_else_cut_to_eight_flagged_replicas_first():
    lines = [line(0, replica, flags=["odd"] * (replica > 8)) for replica in range(12)]
    assert chosen(lines, {"cat": len(lines)}) == {"cat": [(0, list(range(12)))]}
    assert chosen(lines, {"cat": 100}, limit=50) == {"cat": [(0, [0, 1, 2, 3, 4, 9, 10, 11])]}


@pytest.mark.parametrize("flagged, shown", [
    (range(10, 20), [0, 1, 2, 10, 11, 12]), ([19], [0, 1, 2, 3, 4, 19]),
    (range(20), [0, 1, 2, 3, 4, 5]),
])
def test_flagged_families_are_half_of_what_is_shown_and_more_if_there_is_room(flagged, shown):
    lines = [line(seed, replica, events=["retried"] * (seed in flagged and replica == 1))
             for seed in range(20) for replica in range(2)]
    assert [seed for seed, _ in chosen(lines, {"cat": 40}, limit=12)["cat"]] == shown


@pytest.mark.parametrize("limit", [1, 31, 60])
def test_no_more_is_shown_than_may_be_and_no_less(limit):
    lines = [line(seed, replica, class_name=name, flags=["odd"] * (seed % 3 == 0))
             for number, name in enumerate("abc") for seed in range(number * 4, number * 4 + 4)
             for replica in range(5)]
    found = chosen(lines, dict.fromkeys("cba", 20), limit=limit)
    assert sum(len(replicas) for of_class in found.values() for _, replicas in of_class) == limit
    assert [name for name in "cba" if name in found] == list(found)


def test_histograms_count_every_value_once():
    found = histogram("x", [0.0, 0.5, 0.5, 1.0])
    assert sum(found.counts) == 4 and found.counts[0] == found.counts[-1] == 1
    assert (found.median, found.mean, found.edges[0], found.edges[-1]) == (0.5, 0.5, 0, 1)
    assert histogram("x", [0.3, 0.3]).counts[0] == 2


def test_the_scatter_is_what_scikit_learn_makes_of_it():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(40, 16, generator=generator) * torch.arange(1.0, 17.0)
    found = scatter(features[:15], features[15:])
    reference = PCA(2, svd_solver="full").fit(features.double().numpy())
    assert found.explained == pytest.approx(reference.explained_variance_ratio_)
    axes = torch.tensor(reference.components_)
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    points = torch.tensor(reference.transform(features.double().numpy()))
    points = points * (axes * torch.tensor(reference.components_)).sum(1).sign()
    low, high = points.amin(0), points.amax(0)
    expected = (points - low) / (high - low)
    torch.testing.assert_close(torch.tensor(found.real + found.synthetic).double(), expected,
                               atol=1e-6, rtol=0)
    assert found.aspect == pytest.approx(((high - low)[1] / (high - low)[0]).item())


def test_without_enough_images_there_is_no_scatter():
    none = torch.zeros(0, 16)
    assert scatter(none, torch.rand(2, 16)) is None
    assert scatter(torch.ones(3, 16), torch.ones(5, 16)) is None
    line = torch.arange(4.0)[:, None] * torch.ones(16)
    assert scatter(none, line) is None  # they differ in one direction only
    assert scatter(none, torch.rand(6, 16)).real == []
