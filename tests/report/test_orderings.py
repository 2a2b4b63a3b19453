import random

import pytest
from dreamda_aug.report.orderings import ORDERINGS, Worst, measured, scores_of
from report.lines import line

BY_NAME = {ordering.name: ordering for ordering in ORDERINGS}


@pytest.mark.parametrize("name, score, descending", [
    ("near", "distance", False), ("far", "distance", True), ("label", "label", False),
    ("copy", "copy", False),
])
def test_the_worst_twelve_come_first_and_equals_as_they_came(name, score, descending):
    generator = random.Random(0)
    # one decimal: many are equal
    lines = [line(i, distance=round(generator.random(), 1),
                  scores={each: round(generator.random(), 1) for each in ("label", "copy")})
             for i in range(60)]
    worst = Worst()
    for each in lines:
        worst.add(each, scores_of(each))

    def value(each):
        return scores_of(each)[score] * (-1 if descending else 1)

    expected = sorted(lines, key=value)[:12]  # sorted() keeps equals in order
    assert worst.lines(BY_NAME[name]) == expected


def test_fewer_than_twelve_are_all_there_and_what_was_not_measured_is_not():
    worst = Worst()
    for each in (line(0, distance=0.2), line(1, distance=float("nan")),
                 line(2, distance=0.1, scores={"label": 0.5})):
        worst.add(each, scores_of(each))
    assert [each.seed_index for each in worst.lines(BY_NAME["near"])] == [2, 0]
    assert [each.seed_index for each in worst.lines(BY_NAME["label"])] == [2]
    assert worst.lines(BY_NAME["copy"]) == []


def test_only_what_was_measured_can_be_sorted_by():
    assert [each.name for each in measured(["distance"])] == ["near", "far"]
    assert [each.name for each in measured(["copy", "odd"])] == ["copy"]
    assert measured([]) == []
