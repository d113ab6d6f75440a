"""Numbers that belong to an image: SplitMix64 by Python's integers, uniform, and one's own."""

from __future__ import annotations

import pytest
import torch

from linear_oracles import random_images
from multirobust.attacks.streams import Stream, image_keys
from multirobust.threats import native

WORD = 1 << 64
STEP = 0x9E3779B97F4A7C15


def mixed(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % WORD
    return z ^ (z >> 31)


def splitmix(state: int, count: int) -> list[int]:
    return [mixed((state + (i + 1) * STEP) % WORD) for i in range(count)]


def test_the_known_first_numbers_of_the_generator():
    assert splitmix(1234567, 2) == [6457827717110365317, 3203168211198807973]


@pytest.mark.parametrize("compiled", [True, False])
def test_bits_are_those_of_splitmix_and_every_turn_goes_on_elsewhere(compiled, monkeypatch):
    if not compiled:
        monkeypatch.setattr(native, "_loops", lambda: None)
    keys, turn = [0, 5, -3], [0, 7, 1 << 20]
    stream = Stream(torch.tensor(keys), torch.tensor(turn))
    first, second = stream._bits((2,)), stream._bits((3, 1))
    for row, (key, at) in enumerate(zip(keys, turn, strict=True)):
        state = (mixed(key % WORD) + (at << 32) * STEP) % WORD
        found = [*first[row].tolist(), *second[row].flatten().tolist()]
        assert [bits % WORD for bits in found] == splitmix(state, 5)


def test_numbers_are_uniform_and_signs_even():
    count = 20_000
    stream = Stream(torch.arange(count), torch.zeros(count, dtype=torch.int64))
    uniform, signs = stream.uniform(2), stream.signs(1, 2, like=torch.zeros(1, dtype=torch.float64))
    assert uniform.min() >= 0
    assert uniform.max() < 1
    expected = count / 10
    for column in uniform.T:
        counts = (column * 10).long().bincount(minlength=10)
        assert ((counts - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees, 0.1 %
    assert torch.corrcoef(uniform.T)[0, 1].abs() < 0.025
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert signs.dtype == torch.float64
    assert signs.shape == (count, 1, 2)
    assert signs.mean().abs() < 0.025


def test_keys_follow_from_seed_and_pixels_alone():
    x = random_images(50, 3, 5, 5, seed=1)
    keys = image_keys(x, 3)
    assert torch.equal(keys.flip(0), image_keys(x.flip(0), 3))
    assert torch.equal(keys[7:8], image_keys(x[7:8], 3))
    assert torch.equal(keys, image_keys(x.double(), 3))
    nudged = x.clone()
    nudged[:, 0, 0, 0] = torch.nextafter(x[:, 0, 0, 0], torch.tensor(2.0))
    many = torch.cat([keys, image_keys(nudged, 3), image_keys(x, 4), image_keys(x.mT, 3)])
    assert len(many.unique()) == 200
