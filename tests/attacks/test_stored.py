"""Stored images: the right one for each position, and clear errors where positions are missing."""

from __future__ import annotations

import pytest
import torch

from linear_oracles import network, random_images
from multirobust.attacks.stored import StoredImages
from multirobust.errors import InputError
from multirobust.threats import Transformation

FOG = Transformation("fog", 3.0)
PIXELS = torch.arange(10 * 3 * 4 * 4, dtype=torch.int64).remainder(256).byte().view(10, 3, 4, 4)


def stored(images: torch.Tensor = PIXELS) -> StoredImages:
    return StoredImages(FOG, images)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_images_of_the_positions_come_back_on_the_unit_scale(dtype):
    index = torch.tensor([7, 0, 7])
    x = random_images(3, 3, 4, 4, dtype=dtype)
    x_adv = stored().at(index)(network(), x, torch.zeros(3, dtype=torch.int64))
    assert x_adv.dtype == dtype
    assert torch.equal(x_adv, PIXELS[index].to(dtype) / 255)
    assert torch.equal(stored().images, PIXELS)


def test_threats_and_the_positions_keep_the_name_of_the_corruption():
    assert stored().threats == stored().at(torch.tensor([1])).threats == (FOG,)
    assert len(stored()) == 10


def test_equality_hash_and_repr_speak_of_threat_and_digest_and_not_of_pixels():
    other = PIXELS.clone()
    other[9, 2, 3, 3] ^= 1
    assert stored() == stored(PIXELS.clone())
    assert hash(stored()) == hash(stored(PIXELS.clone()))
    assert stored() != stored(other)
    assert stored() != stored(PIXELS.view(10, 3, 2, 8))
    assert stored() != StoredImages(Transformation("fog", 4.0), PIXELS)
    digest = stored().digest
    assert len(digest) == 16
    expected = f"StoredImages(threat={FOG!r}, digest={digest!r})"
    assert repr(stored()) == expected


def test_the_digest_is_that_of_the_pixels_whatever_the_memory_layout():
    turned = PIXELS.contiguous(memory_format=torch.channels_last)
    assert stored(turned).digest == stored().digest


def test_without_positions_it_says_how_to_give_them():
    with pytest.raises(InputError, match=r"stored\.at\(index\)"):
        stored()(network(), random_images(1, 3, 4, 4), torch.tensor([0]))


@pytest.mark.parametrize("index", [[-1], [3, 10]])
def test_a_position_that_is_not_stored_is_refused(index):
    with pytest.raises(InputError, match=r"must lie in 0\.\.9"):
        stored().at(torch.tensor(index))


@pytest.mark.parametrize("index", [torch.zeros(2), torch.zeros(1, 1).long(), torch.ones(3) > 0])
def test_an_index_that_is_no_vector_of_positions_is_refused(index):
    with pytest.raises(InputError, match="must be a vector of positions"):
        stored().at(index)


def test_a_batch_of_another_shape_is_refused():
    bound = stored().at(torch.tensor([1, 2]))
    with pytest.raises(InputError, match="must have the shape of the stored images"):
        bound(network(), random_images(3, 3, 4, 4), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("images", [PIXELS.float(), PIXELS[0], PIXELS[:0]])
def test_images_that_are_not_uint8_batches_are_refused(images):
    with pytest.raises(InputError, match="must be a uint8 tensor of shape"):
        stored(images)
