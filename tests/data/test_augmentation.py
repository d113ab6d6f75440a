from __future__ import annotations

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multirobust.data import CropFlip
from multirobust.data.augmentation import crop_flip
from multirobust.errors import InputError


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_by_one(images, top, left, flip, *, padding):
    """The definition: each image pasted on black, cut out, mirrored."""
    results = []
    count, channels, height, width = images.shape
    for i in range(count):
        canvas = torch.zeros(
            channels, height + 2 * padding, width + 2 * padding, dtype=images.dtype
        )
        canvas[:, padding : padding + height, padding : padding + width] = images[i]
        crop = canvas[:, top[i] : top[i] + height, left[i] : left[i] + width]
        results.append(torch.from_numpy(crop.numpy()[:, :, ::-1].copy()) if flip[i] else crop)
    return torch.stack(results)


@settings(max_examples=40, deadline=None)
@given(
    count=st.integers(1, 5),
    channels=st.integers(1, 3),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    padding=st.integers(0, 8),
    seed=st.integers(0, 1000),
)
def test_the_batch_is_cropped_and_mirrored_as_its_images_one_by_one(
    count, channels, height, width, padding, seed
):
    g = generator(seed)
    images = torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=g)
    top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=g)
    flip = torch.randint(0, 2, (count,), generator=g).bool()
    expected = one_by_one(images, top, left, flip, padding=padding)
    result = crop_flip(images, top, left, flip, padding=padding)
    assert result.dtype == torch.uint8
    assert torch.equal(result, expected)
    floats = crop_flip(images.float(), top, left, flip, padding=padding)
    assert torch.equal(floats, expected.float())


def test_crop_flip_draws_offsets_then_flips_from_its_generator():
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=generator(1))
    g = generator(7)
    top, left = torch.randint(9, (2, 50), generator=g)
    flip = torch.randint(2, (50,), generator=g).bool()
    expected = one_by_one(images, top, left, flip, padding=4)
    assert torch.equal(CropFlip(4)(images, generator(7)), expected)
    assert torch.equal(CropFlip(4)(images), CropFlip(4)(images, generator(0)))


def test_every_offset_and_flip_is_equally_likely():
    count, padding = 81_000, 1
    # A 2 x 2 image of four different bytes shows its offset and flip in what is left of it.
    image = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).view(1, 1, 2, 2)
    results = CropFlip(padding)(image.expand(count, 1, 2, 2), generator(3)).flatten(1)
    corners = torch.tensor(list(product(range(3), range(3), range(2))))
    for top, left, flip in corners:
        kind = crop_flip(image, top[None], left[None], flip[None].bool(), padding=padding)
        share = (results == kind.flatten(1)).all(dim=1).float().mean().item()
        assert share == pytest.approx(1 / 18, abs=5 * (1 / 18 / count) ** 0.5)


def test_crop_flip_is_a_value():
    assert CropFlip(4) == CropFlip(padding=4)
    assert repr(CropFlip()) == "CropFlip(padding=4)"
    assert len({CropFlip(4), CropFlip(4), CropFlip(2)}) == 2


@pytest.mark.parametrize("padding", [-1, 1.5, True, "4"])
def test_a_padding_that_is_no_whole_number_is_refused(padding, as_installed):
    with pytest.raises(InputError, match="padding must be a whole number of pixels"):
        CropFlip(padding)
