"""What an attack is given must be images and labels; anything else is one clear error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from multirobust.attacks import MSD, PGD
from multirobust.errors import InputError
from multirobust.threats import L2, Linf

MODEL = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
ATTACKS = [
    PGD(threat=Linf(0.1), steps=1, step_size=0.1),
    MSD(balls=(Linf(0.1), L2(1.0)), step_sizes=(0.1, 0.5), steps=1),
]
X, Y = torch.full((2, 3, 2, 2), 0.5), torch.tensor([0, 1])


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("attack", ATTACKS, ids=["pgd", "msd"])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 255, Y, "divide by 255"),
        ((X * 255).to(torch.uint8), Y, "divide by 255"),
        (X - 1, Y, "looks normalized"),
        (X.index_fill(0, torch.tensor([0]), float("nan")), Y, "NaN or infinite pixels in 1 of 2"),
        (X[0], Y, r"x\[None\] makes a batch"),
        (X[:0], Y[:0], "hold at least one"),
        (X, torch.eye(3, dtype=torch.int64)[Y], "argmax"),
        (X, Y.float(), r"y\.long"),
        (X, Y[:1], "1 labels for 2 images"),
        (X, Y - 1, "0 or more"),
    ],
    ids=["0-255", "uint8", "normalized", "nan", "one image", "empty", "one-hot", "float labels",
         "too few labels", "negative label"],
)  # fmt: skip
def test_a_wrong_batch_is_one_clear_error(attack, x, y, message):
    with pytest.raises(InputError, match=message):
        attack(MODEL, x, y)
