import pytest
import scipy.stats
import torch

from dreamda_aug.method import seeding
from dreamda_aug.method.seeding import BOTTLENECK, STEP, derive_seed, philox, seeded_normal


@pytest.mark.parametrize(
    "counter, key, expected",
    [  # known answers published with Random123, the generator's reference implementation
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_known_answers(counter, key, expected):
    words = [torch.tensor([int(w, 16)]) for w in counter.split()]
    keys = [torch.tensor([int(w, 16)]) for w in key.split()]
    assert [f"{int(w):08x}" for w in philox(words, keys)] == expected.split()


def test_noise_is_standard_normal_and_uncorrelated_between_steps_seeds_and_roles():
    a = seeded_normal(torch.tensor([1, 2]), 0, STEP, (40_000,))
    b = seeded_normal(torch.tensor([1]), 1, STEP, (40_000,))
    c = seeded_normal(torch.tensor([1]), 0, BOTTLENECK, (40_000,))
    assert scipy.stats.kstest(a[0].numpy(), "norm").pvalue > 1e-3
    assert scipy.stats.kstest(a[1].numpy(), "norm").pvalue > 1e-3
    for x, y in ((a[0], a[1]), (a[0], b[0]), (a[0], c[0])):
        assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 0.02


@pytest.mark.parametrize("at_once", [1, 40, 10**6])
def test_noise_of_several_steps_is_that_of_each(monkeypatch, at_once):
    monkeypatch.setattr(seeding, "_AT_ONCE", at_once)
    seeds, steps = torch.tensor([9, 10]), [0, 3, 4, 7]
    each = [seeded_normal(seeds, step, STEP, (3, 2)) for step in steps]
    assert torch.equal(torch.stack(each), seeded_normal(seeds, torch.tensor(steps), STEP, (3, 2)))
    in_turn = seeding.seeded_normals(seeds, steps, STEP, (3, 2))
    assert torch.equal(torch.stack(each), torch.stack([*in_turn]))
    assert list(seeding.seeded_normals(seeds, [], STEP, (3, 2))) == []


def test_derived_seeds_tell_order_type_and_borders_of_their_parts_apart():
    variants = [(1, "12"), ("1", 12), (11, 2), (1, 12), (12, 1), ("112",), (b"112",)]
    seeds = {derive_seed(*parts) for parts in variants}
    assert len(seeds) == len(variants)
    assert all(0 <= seed < 2**63 for seed in seeds)
    with pytest.raises(TypeError, match=r"parts must be int, str or bytes, got 0\.5"):
        derive_seed(0.5)
