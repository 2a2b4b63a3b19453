import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dreamda_aug.amst import AMSTWrapper, PseudoLabels, WeakView

CLASSES = 3


def classifier(norm=nn.BatchNorm2d):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), norm(6) if norm else nn.Identity(), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, CLASSES))


def plain_wrapper(model=None, **options):
    """Views without randomness, so that every term can be worked out beside it."""
    views = {"weak": lambda images: images, "strong": lambda images: images * 0.5}
    return AMSTWrapper(classifier(None) if model is None else model, **views | options)


def batch(count=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 1, 8, 8, generator=generator)
    return images, torch.arange(count) % CLASSES


def touched(wrapper):
    """Which parts have a gradient: features, main head, auxiliary heads."""
    features, heads = wrapper.parameter_groups(0.1)
    main = list(wrapper.model[-1].parameters())
    parts = {"features": features["params"], "main": main, "auxiliary": heads["params"]}
    names = set()
    for name, parameters in parts.items():
        mine = [p for p in parameters if name == "main" or not any(p is each for each in main)]
        moved = {p.grad is not None and bool(p.grad.any()) for p in mine}
        assert len(moved) == 1, f"only some of {name} have a gradient"
        names |= {name} if moved == {True} else set()
    return names


def labels(values, mask):
    ones = torch.ones(len(values))
    return PseudoLabels(torch.tensor(values), ones, ones, torch.tensor(mask))


# --- loss terms against the same thing written out


def test_pretraining_loss_is_the_mean_over_heads_each_on_its_own_view():
    wrapper = plain_wrapper(orthogonality_weight=0.5)
    images, targets = batch()
    loss = wrapper.pretraining_loss(images, targets)
    trunk, heads = wrapper.model[:-1], wrapper.auxiliary_heads
    weak, strong = trunk(images), trunk(images * 0.5)
    terms = [F.cross_entropy(head(weak), targets) for head in heads[:2]]
    terms += [F.cross_entropy(head(strong), targets) for head in heads[2:]]
    pairs = [heads[0].weight @ heads[1].weight.T, heads[2].weight @ heads[3].weight.T]
    orthogonality = sum(pair.abs().mean() for pair in pairs) / 2
    torch.testing.assert_close(loss, sum(terms) / 4 + 0.5 * orthogonality)
    loss.backward()
    assert touched(wrapper) == {"features", "auxiliary"}
    assert wrapper.model[-1].weight.grad is None


def test_losses_are_each_term_written_out():
    wrapper = plain_wrapper(
        consistency_threshold=0.0, consistency_weight=0.3, orthogonality_weight=0.1)
    real, targets = batch(4)
    synthetic, _ = batch(5, seed=1)
    pseudo = labels([0, 1, 2, 0, 1], [True, False, True, False, False])
    losses = wrapper.losses(real, targets, synthetic, pseudo_labels=pseudo)
    model = wrapper.model
    torch.testing.assert_close(losses.supervised, F.cross_entropy(model(real), targets))
    accepted = F.cross_entropy(model(synthetic[[0, 2]]), torch.tensor([0, 2]), reduction="sum")
    torch.testing.assert_close(losses.pseudo, accepted / 5)
    consistency = F.cross_entropy(model(synthetic * 0.5), model(synthetic).argmax(1))
    torch.testing.assert_close(losses.consistency, consistency)
    assert losses.accepted_share.item() == pytest.approx(0.4)
    # the auxiliary heads learn from all that is labeled by now, each from its own view
    trunk, heads = model[:-1], wrapper.auxiliary_heads
    known = torch.cat([real, synthetic[[0, 2]]])
    answers = torch.cat([targets, pseudo.labels[[0, 2]]])
    terms = [F.cross_entropy(head(trunk(known * factor)), answers)
             for head, factor in zip(heads, (1, 1, 0.5, 0.5))]
    torch.testing.assert_close(losses.auxiliary, sum(terms) / 4)
    total = (losses.supervised + losses.pseudo + 0.3 * losses.consistency
             + losses.auxiliary + 0.1 * losses.orthogonality)
    torch.testing.assert_close(losses.total, total)
    assert losses.as_dict()["total"] == pytest.approx(losses.total.item())


def test_main_view_strong_shows_the_main_head_the_strong_view():
    wrapper = plain_wrapper(main_view="strong", consistency_weight=0.0)
    real, targets = batch()
    losses = wrapper.losses(real, targets, real, pseudo_labels=labels([0] * 6, [True] * 6))
    model = wrapper.model
    torch.testing.assert_close(losses.supervised, F.cross_entropy(model(real * 0.5), targets))
    expected = F.cross_entropy(model(real * 0.5), torch.zeros(6, dtype=torch.int64))
    torch.testing.assert_close(losses.pseudo, expected)
    assert losses.consistency == 0


def test_soft_labels_count_as_much_as_their_hard_form():
    wrapper = plain_wrapper()
    images, targets = batch()
    soft = F.one_hot(targets, CLASSES).float()
    hard_loss = wrapper.pretraining_loss(images, targets)
    torch.testing.assert_close(wrapper.pretraining_loss(images, soft), hard_loss)
    pseudo = PseudoLabels(soft, *torch.ones(2, 6), torch.ones(6, dtype=torch.bool))
    losses = wrapper.losses(images, targets, images, pseudo_labels=pseudo)
    torch.testing.assert_close(losses.pseudo, losses.supervised)


@pytest.mark.parametrize(("term", "expected"), [
    ("supervised", {"features", "main"}), ("pseudo", {"features", "main"}),
    ("consistency", {"features", "main"}), ("auxiliary", {"auxiliary"}),
])
def test_each_training_term_reaches_exactly_its_part(term, expected):
    wrapper = plain_wrapper(consistency_threshold=0.0)
    real, targets = batch()
    pseudo = labels([0, 1, 2, 0, 1, 2], [True, False] * 3)
    losses = wrapper.losses(real, targets, batch(seed=1)[0], pseudo_labels=pseudo)
    getattr(losses, term).backward()
    assert touched(wrapper) == expected


# --- labeling


def test_labeling_leaves_no_gradient_and_no_trace_in_batch_norm():
    wrapper = AMSTWrapper(classifier()).train()
    before = copy.deepcopy(wrapper.state_dict())
    result = wrapper.label(batch()[0])
    assert not result.confidence.requires_grad and wrapper.training
    assert all(torch.equal(before[name], value) for name, value in wrapper.state_dict().items())


def force_heads(wrapper, rows):
    """Every auxiliary head answers softmax of its row, whatever it sees."""
    for head, row in zip(wrapper.auxiliary_heads, rows, strict=True):
        nn.init.zeros_(head.weight)
        head.bias.data = torch.tensor(row)


def test_labels_are_those_of_the_auxiliary_heads_in_losses_too():
    wrapper, (images, targets) = plain_wrapper(), batch()
    force_heads(wrapper, [[0.0, 9.0, 0.0]] * 4)
    result = wrapper.label(images)
    assert result.labels.tolist() == [1] * 6 and result.mask.all()
    assert wrapper.losses(images, targets, images).accepted_share == 1
    force_heads(wrapper, [[0.0, 9.0, 0.0]] * 3 + [[9.0, 0.0, 0.0]])
    result = wrapper.label(images)
    assert not result.mask.any() and result.agreement.tolist() == [0.75] * 6
    assert len(wrapper.label(images[:0])) == 0


def test_without_synthetic_images_the_rest_of_the_loss_remains():
    losses = plain_wrapper().losses(*batch(), torch.zeros(0, 1, 8, 8))
    assert losses.pseudo == 0 and losses.consistency == 0 and losses.accepted_share.isnan()
    losses.total.backward()


# --- drop-in


def test_parameter_groups_cover_every_parameter_once():
    wrapper = AMSTWrapper(classifier())
    features, heads = wrapper.parameter_groups(0.1, backbone_lr=0.01)
    assert (features["lr"], heads["lr"]) == (0.01, 0.1)
    everything = [id(p) for p in (*features["params"], *heads["params"])]
    assert sorted(everything) == sorted(id(p) for p in wrapper.parameters())
    assert id(wrapper.model[-1].weight) in map(id, heads["params"])
    assert wrapper.parameter_groups(0.1)[0]["lr"] == 0.1
    wrapper.model[0].requires_grad_(False)
    assert len(wrapper.parameter_groups(0.1)[0]["params"]) == len(features["params"]) - 2


def test_copies_and_pickles_are_independent_and_trainable():
    wrapper = AMSTWrapper(classifier())
    images, targets = batch()
    for twin in (copy.deepcopy(wrapper), pickle.loads(pickle.dumps(wrapper))):
        assert torch.equal(twin.label(images).confidence, wrapper.label(images).confidence)
        twin.losses(images, targets, images).total.backward()
        assert all(p.grad is None for p in wrapper.parameters())
        assert not twin.to_classifier()[-1]._forward_pre_hooks
        twin.losses(images, targets, images)  # the hook is back
    wrapper.losses(images, targets, images).total.backward()


def test_one_weak_view_serves_both_and_no_view_is_part_of_the_weights():
    wrapper = AMSTWrapper(classifier(), weak=WeakView(flip=0.0))
    assert wrapper._view_functions["strong"].weak.flip == 0
    wrapper = AMSTWrapper(classifier(), strong=nn.Linear(8, 8))
    names = list(wrapper.state_dict())
    assert len(names) == len(set(names)) == len(wrapper.model.state_dict()) + 8


# --- bad input


@pytest.mark.parametrize(("options", "message"), [
    # softmax of one logit is 1 for every image
    ({"model": nn.Sequential(nn.Flatten(), nn.Linear(64, 1))},
     r"at least two, got 1. .*end in nn.Linear\(features, 2\)"),
    ({"model": AMSTWrapper(classifier())}, "neither wrapped nor compiled"),
    ({"model": torch.compile(classifier())}, "neither wrapped nor compiled"),
])
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        AMSTWrapper(**{"model": classifier()} | options)


def test_bad_batches_are_refused():
    wrapper, (images, targets) = plain_wrapper(), batch()
    with pytest.raises(ValueError, match="at least one labeled image, got none"):
        wrapper.losses(images[:0], targets[:0])
    with pytest.raises(ValueError, match=r"targets must lie in \[0, 2\], got 1 to 6"):
        wrapper.losses(images, targets + 1 + 3 * (targets == 2))
    for soft in (torch.rand(6, 4), torch.full((6, 3), 0.5), torch.tensor([[2.0, -1, 0]] * 6)):
        with pytest.raises(ValueError, match=r"soft labels \(6, 3\), ≥ 0 and of sum 1"):
            wrapper.pretraining_loss(images, soft)
    with pytest.raises(ValueError, match="got 2 for 6"):
        wrapper.losses(images, targets, images, pseudo_labels=labels([0, 1], [True] * 2))
    with pytest.raises(ValueError, match="stage must be None.*got 'training'"):
        wrapper(images, stage="training")
    images[2, 0, 0, 0] = float("nan")
    for call in (lambda: wrapper.label(images), lambda: wrapper.losses(images, targets)):
        with pytest.raises(ValueError, match="nan or infinite for [12] of"):
            call()
    assert all(p.grad is None for p in wrapper.parameters())


def test_a_hidden_layer_named_as_head_is_noticed_at_the_first_step():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    with pytest.raises(ValueError, match='logits of 3 classes, but "1" has 16: .*Candidates'):
        AMSTWrapper(model, head="1").label(batch()[0])
