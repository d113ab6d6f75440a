from __future__ import annotations

import re

import pytest
import torch

from multirobust.checks import check_images, check_labels
from multirobust.errors import InputError

GOOD = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def with_pixel(value: float) -> torch.Tensor:
    images = GOOD.clone()
    images[1, 0, 0, 0] = value
    return images


@pytest.mark.parametrize(
    "images",
    [GOOD, GOOD.half(), GOOD.double(), GOOD[:1], torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)],
)
def test_images_in_the_box_pass(images):
    check_images(images)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (GOOD.numpy(), "got ndarray; convert"),
        (None, "got NoneType"),
        (GOOD[0], "got shape (3, 4, 4); x[None] makes"),
        (GOOD[:, 0, 0], "got shape (2, 4); reshape"),
        (GOOD[:0], "at least one, got shape (0, 3, 4, 4)"),
        ((GOOD * 255).to(torch.uint8), "got torch.uint8; divide by 255: x.float() / 255"),
        (GOOD.long(), "got torch.int64; convert"),
        (GOOD.bool(), "got torch.bool; convert"),
        (GOOD.cfloat(), "got torch.complex64; convert"),
        (GOOD * 255, "looks like 0..255: divide by 255"),
        ((GOOD - 0.5) / 0.25, "looks normalized"),
        (with_pixel(1.001), "to 1.001; clamp"),
        (with_pixel(float("nan")), "NaN or infinite pixels in 1 of 2 images"),
        (with_pixel(float("inf")), "NaN or infinite pixels in 1 of 2 images"),
        (with_pixel(float("-inf")), "NaN or infinite pixels in 1 of 2 images"),
    ],
)
def test_wrong_images_give_one_error_that_says_what_and_what_to_do(images, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        check_images(images)
    assert str(caught.value).startswith("x must be float images in [0, 1] of shape (b, c, h, w)")
    assert "\n" not in str(caught.value)


def test_the_error_uses_the_name_of_the_argument():
    with pytest.raises(InputError, match=r"^x_adv must be"):
        check_images(None, name="x_adv")


def test_images_that_require_gradients_are_checked_without_touching_them():
    images = GOOD.clone().requires_grad_()
    check_images(images)
    assert images.grad is None
    assert images.grad_fn is None


@pytest.mark.parametrize("classes", [3, 10, None])
def test_class_indices_pass(classes):
    check_labels(torch.tensor([0, 2, 1]), classes, images=3)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1], "got list; convert"),
        (torch.eye(3), "got shape (3, 3); if it is one-hot, pass y.argmax(dim=1)"),
        (torch.tensor(1), "got shape (); give one index"),
        (torch.tensor([], dtype=torch.int64), "got an empty tensor"),
        (torch.tensor([0.0, 1.0]), "got torch.float32; pass y.long()"),
        (torch.tensor([0, 1], dtype=torch.int32), "got torch.int32; pass y.long()"),
        (torch.tensor([True, False]), "got torch.bool"),
        (torch.tensor([0, 1, 2]), "got 3 labels for 2 images"),
        (torch.tensor([0, -1]), "in 0..2, got values from -1 to 0; drop or relabel"),
        (torch.tensor([1, 3]), "in 0..2, got values from 1 to 3; number the classes from 0"),
    ],
)
def test_wrong_labels_give_one_error_that_says_what_and_what_to_do(labels, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        check_labels(labels, 3, images=2)
    assert str(caught.value).startswith("y must be class indices, an int64 tensor of shape (b,)")
    assert "\n" not in str(caught.value)
