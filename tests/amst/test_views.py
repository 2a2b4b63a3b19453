import pytest
import torch
from torchvision.transforms import v2

from dreamda_aug.amst import PerImage, StrongView, WeakView


@pytest.mark.parametrize("view", [WeakView(), StrongView()])
@pytest.mark.parametrize("shape", [(5, 1, 8, 8), (3, 3, 33, 20), (2, 3, 1, 1)])
def test_views_keep_shape_type_and_range(view, shape):
    for dtype in (torch.float32, torch.bfloat16):
        result = view(torch.rand(shape).to(dtype))
        assert result.shape == shape and result.dtype == dtype
        assert result.min() >= 0 and result.max() <= 1


@pytest.mark.parametrize("view", [WeakView(), StrongView()])
def test_each_image_has_a_draw_of_its_own_from_the_global_generator(view):
    images = torch.rand(1, 3, 16, 16).expand(16, -1, -1, -1)
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(view(images))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    assert len(torch.unique(made[0].flatten(1), dim=0)) > 8


def test_the_weak_view_is_a_flip_and_a_shift():
    images = torch.rand(256, 1, 8, 8)
    views = WeakView()(images)
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    crops = [padded[:, :, y : y + 8, x : x + 8] for y in range(3) for x in range(3)]
    crops += [crop.flip(3) for crop in crops]
    matches = torch.stack([(crop == views).flatten(1).all(1) for crop in crops])
    assert matches.any(0).all()
    assert matches.any(1).all(), "every shift and flip must turn up in 256 draws"


def test_normalised_images_are_augmented_as_if_they_were_not():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
    images = torch.rand(8, 3, 16, 16)
    shift, scale = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]
    torch.manual_seed(0)
    plain = StrongView()(images)
    torch.manual_seed(0)
    # the reflecting pad commutes with normalisation, so both see the same pixels.
    normalised = StrongView(mean=mean, std=std)((images - shift) / scale)
    torch.testing.assert_close(normalised * scale + shift, plain, atol=1e-2, rtol=0)


def test_the_operations_are_torchvisions_with_a_draw_for_each_image():
    images = (torch.rand(6, 3, 16, 16) * 255).round() / 255
    torch.manual_seed(0)
    found = PerImage(v2.RandAugment())(images)
    torch.manual_seed(0)
    whole = (images * 255).round().to(torch.uint8)
    expected = torch.stack([v2.RandAugment()(image) for image in whole])
    assert torch.equal((found * 255).round().to(torch.uint8), expected)
    shared = PerImage(v2.RandAugment(), group=3)(images[:1].expand(6, -1, -1, -1))
    assert torch.equal(shared[0], shared[2])


def test_cutout_paints_grey_squares_no_larger_than_stated():
    images = torch.zeros(256, 1, 20, 20)
    views = StrongView(weak=WeakView(0, 0), operations=0, cutout=0.5)(images)
    painted = views > 0
    assert set((views * 255).unique().tolist()) == {0.0, 127.0}
    assert painted.any(3).sum(2).max() <= 10
    assert painted.flatten(1).any(1).float().mean() > 0.8


def test_images_and_statistics_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="mean and std must be given together"):
        StrongView(mean=(0.5,))
    with pytest.raises(ValueError, match=r"1 or 3 channels .*got 5.*AMSTWrapper\(model, strong=…"):
        StrongView()(torch.rand(1, 5, 8, 8))
    with pytest.raises(ValueError, match=r"\[0, 1\] for the strong view.*StrongView\(mean=…"):
        StrongView()(torch.randn(2, 3, 8, 8) * 3)
    with pytest.raises(ValueError, match=r"float tensor \(N, C, H, W\), got torch.uint8"):
        WeakView()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
