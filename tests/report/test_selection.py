import pytest
from dreamda_aug.report.selection import MAX_REPLICAS, Selection, fair_shares
from report.lines import line


def chosen(selection, lines):
    for each in lines:
        selection.add(each)
    return {name: [(family.seed_index, [each.replica for each in family.lines])
                   for family in families]
            for name, families in selection.families().items()}


@pytest.mark.parametrize("sizes, total, shares", [
    ({"a": 100, "b": 100}, 50, {"a": 25, "b": 25}),
    ({"a": 100, "b": 10, "c": 100}, 60, {"a": 25, "b": 10, "c": 25}),
    ({"a": 3, "b": 4}, 100, {"a": 3, "b": 4}),
    ({"a": 0, "b": 4}, 2, {"a": 0, "b": 2}),
    ({"a": 5, "b": 6, "c": 7}, 2, {"a": 0, "b": 1, "c": 1}),
])
def test_classes_share_a_page_fairly(sizes, total, shares):
    assert fair_shares(sizes, total) == shares


def test_everything_is_shown_where_it_fits():
    lines = [line(seed, replica) for seed in range(3) for replica in range(MAX_REPLICAS + 4)]
    found = chosen(Selection({"cat": len(lines)}), lines)
    assert found == {"cat": [(seed, list(range(MAX_REPLICAS + 4))) for seed in range(3)]}


def test_where_it_does_not_fit_families_are_cut_to_eight_flagged_replicas_first():
    lines = [line(0, replica, flags=["odd"] * (replica > 8)) for replica in range(12)]
    found = chosen(Selection({"cat": 100}, limit=50), lines)
    assert found == {"cat": [(0, [0, 1, 2, 3, 4, 9, 10, 11])]}


def test_flagged_families_are_half_of_what_is_shown_and_more_if_there_is_room():
    def lines(flagged):
        return [line(seed, replica, events=["retried"] * (seed in flagged and replica == 1))
                for seed in range(20) for replica in range(2)]

    late = chosen(Selection({"cat": 40}, limit=12), lines(range(10, 20)))
    assert [seed for seed, _ in late["cat"]] == [0, 1, 2, 10, 11, 12]
    few = chosen(Selection({"cat": 40}, limit=12), lines([19]))
    assert [seed for seed, _ in few["cat"]] == [0, 1, 2, 3, 4, 19]
    every = chosen(Selection({"cat": 40}, limit=12), lines(range(20)))
    assert [seed for seed, _ in every["cat"]] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("limit", [1, 7, 30, 31, 60])
def test_no_more_is_shown_than_may_be_and_no_less(limit):
    lines = [line(seed, replica, class_name=name, flags=["odd"] * (seed % 3 == 0))
             for number, name in enumerate("abc") for seed in range(number * 4, number * 4 + 4)
             for replica in range(5)]
    found = chosen(Selection(dict.fromkeys("cba", 20), limit=limit), lines)
    assert sum(len(replicas) for of_class in found.values() for _, replicas in of_class) == limit
    assert [name for name in "cba" if name in found] == list(found)
