"""The rows of the ablations."""

from benchmarks.accuracy.ablations import ABLATIONS
from benchmarks.accuracy.recipes import RECIPES


def test_ablations_have_distinct_rows(tiny):
    specs = {name: recipe(tiny)[0] for name, recipe in RECIPES.items()}
    for build in ABLATIONS.values():
        names = [variant.named_arm().name for variant in build(specs, 3)]
        assert len(set(names)) == len(names) > 1
