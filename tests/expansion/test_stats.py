"""Counts of a finished dataset, and what a user is warned of."""

from collections import Counter

from dreamda_aug.expansion.stats import Stats


def test_what_a_user_should_look_into_is_named():
    stats = Stats(Counter(cat=8), Counter({"seed-copy": 3}), Counter(copy=2), Counter(broken=1),
                  events=4, small_batches=5, losses=Counter({"rounded to 8 bits": 6}))
    assert stats.made == 8 and stats.left_out == 3
    found = stats.warnings(["cat", "dog", "owl"])
    for part in ("3 of 10 images hardly differ", "2 images look like a training image other",
                 "1 images were not made", "4 images failed a check",
                 "memory ran out: 5 images were made in smaller batches", "6 images are rounded",
                 "2 classes have no synthetic image ('dog', 'owl'). Their folders are empty"):
        assert any(part in warning for warning in found), part
    assert Stats(Counter(cat=1)).warnings(["cat"]) == []
