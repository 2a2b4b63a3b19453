import pytest
import torch

from dreamda_aug.amst.checks import check_targets


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0, 3]), r"targets must lie in \[0, 2\], the classifier has 3 classes"),
        (torch.tensor([-1, 0]), r"targets must lie in \[0, 2\].* got -1 to 0"),
        (torch.tensor([[0, 1]]), r"targets must be integer class indices"),
        (torch.rand(2, 4), r"soft labels \(2, 3\)"),
        (torch.full((2, 3), 0.5), r"sum to 1"),
        (torch.tensor([[2.0, -1.0, 0.0]] * 2), r"≥ 0"),
    ],
)
def test_targets_out_of_range_are_refused(targets, message):
    with pytest.raises(ValueError, match=message):
        check_targets("targets", targets, 2, 3)
