from __future__ import annotations

import pytest
import torch

from multirobust.errors import InputError
from multirobust.models import Normalize


def test_subtracts_the_mean_and_divides_by_the_deviation_of_each_channel():
    x = torch.rand(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    expected = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    torch.testing.assert_close(Normalize(mean, std)(x), expected)


def test_mean_zero_and_deviation_one_is_exactly_the_identity():
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Normalize([0.0], [1.0])(x), x)


def test_is_saved_with_the_weights_and_has_no_parameters():
    normalize = Normalize((0.25,), (0.5,))
    assert list(normalize.state_dict()) == ["mean", "std"]
    assert not list(normalize.parameters())
    assert repr(normalize) == "Normalize(mean=[0.25], std=[0.5])"


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([], []),
        ([0.0], [1.0, 1.0]),
        ([0.0], [0.0]),
        ([0.0], [-1.0]),
        ([float("nan")], [1.0]),
        ([0.0], [float("inf")]),
    ],
)
def test_refuses_what_is_no_normalization(mean, std):
    with pytest.raises(InputError, match="mean"):
        Normalize(mean, std)
