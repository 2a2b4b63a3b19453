"""The table of an ablation."""

from benchmarks.accuracy.images import tradeoff_table, varied

NAMES = ["AMST", "1 head", "AMST+", "AMST+ without alignment"]


def test_a_row_is_compared_with_the_one_that_it_varies():
    assert [varied(name, NAMES) for name in NAMES] == ["AMST", "AMST", "AMST", "AMST+"]


def test_gains_are_paired():
    runs = [{"arm": arm, "shots": 3, "rng_seed": rng_seed, "test": accuracy, "labels_right": 0.9,
             "accepted": None, "training_seconds": 1, "generation_seconds": 1, "frechet": 1.0,
             "kernel": 0.1, "agreement": 0.9, "distance": 0.2, "diversity": 0.2}
            for arm, accuracies in (("AMST", (0.5, 0.7)), ("AMST+", (0.6, 0.8)))
            for rng_seed, accuracy in enumerate(accuracies)]
    first, second = tradeoff_table(runs, ["AMST", "AMST+"]).splitlines()[3:]
    assert first.startswith("| AMST | 60.0 ± ") and first.split(" | ")[2] == "–"
    assert second.split(" | ")[2] == "+10.0 ± 0.0 over AMST" and second.endswith(" 90% | – |")
