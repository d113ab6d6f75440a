"""The clamp between the ends is the projection."""

from __future__ import annotations

import pytest
import torch

from linear_oracles import random_images, random_tensor
from multirobust.attacks.nearest import ends, nearest
from multirobust.threats import L1, L2, Linf


@pytest.mark.parametrize("threat", [Linf(8 / 255), Linf(0.9), L2(0.5), L1(2.0)], ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_projection(threat, dtype):
    x = random_images(6, 3, 8, 8, seed=1, dtype=dtype)
    state = {"x": x} | ends(x, threat)
    assert len(state) == (3 if threat.norm == "linf" else 1)
    for scale in (1e-3, 0.05, 1.0, 1e6):
        images = x + scale * random_tensor(6, 3, 8, 8, seed=2, dtype=dtype)
        found = nearest(images, state, threat)
        torch.testing.assert_close(found, threat.project(images, x), rtol=0, atol=6e-8)
        distance = threat.distance(found.double(), x.double())
        assert (distance <= threat.radius * (1 + 1e-6)).all()
        assert torch.equal(nearest(found, state, threat), found)
