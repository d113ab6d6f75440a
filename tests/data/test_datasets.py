from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from multirobust.data import DATASETS, CropFlip, Data, Split, build
from multirobust.errors import InputError

IMAGES = torch.randint(
    0, 256, (6, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SPLIT = Split(IMAGES, LABELS)
EMPTY = torch.zeros(0, dtype=torch.int64)


def data(**changes) -> Data:
    fields = {"name": "toy", "train": SPLIT, "test": SPLIT, "class_names": ("a", "b", "c")}
    return Data(**{**fields, "mean": (0.5,) * 3, "std": (0.2,) * 3, **changes})


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (IMAGES[:0], EMPTY, "hold at least one, got shape (0, 3, 4, 5)"),
        (IMAGES.numpy(), LABELS, "got ndarray; use Split.from_arrays"),
        (IMAGES.float() / 255, LABELS, "got torch.float32; Split.from_arrays"),
        (IMAGES.long(), LABELS, "got torch.int64"),
        (IMAGES[:, 0], LABELS, "got shape (6, 4, 5); add the channel axis"),
        (IMAGES.flatten(1), LABELS, "got shape (6, 60); reshape"),
        (
            IMAGES,
            LABELS.float(),
            "labels must be class indices, an int64 tensor of shape (b,), got",
        ),
        (IMAGES, torch.eye(6, dtype=torch.int64), "if it is one-hot, pass labels.argmax(dim=1)"),
        (IMAGES, LABELS - 1, "got values from -1 to 1"),
        (IMAGES, LABELS[:5], "got 5 labels for 6 images"),
        (IMAGES, EMPTY, "got an empty tensor"),
        (IMAGES.to("meta"), LABELS, "must be on one device, got meta and cpu"),
    ],
)
def test_a_split_that_breaks_a_rule_is_one_clear_error(images, labels, words, as_installed):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        Split(images, labels)
    assert "\n" not in str(caught.value)


def test_floats_are_the_stored_bytes_over_255():
    oracle = IMAGES.double() / 255
    assert torch.equal(SPLIT.floats(), oracle.float())
    assert torch.equal(SPLIT.floats(slice(1, 3)), oracle[1:3].float())
    assert torch.equal(SPLIT.floats(torch.tensor([4, 0])), oracle[[4, 0]].float())
    assert torch.equal(SPLIT.floats(2), oracle[2:3].float())


def test_all_256_values_survive_the_way_to_floats_and_back():
    values = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    floats = Split(values, torch.tensor([0])).floats()
    assert floats.min() == 0
    assert floats.max() == 1
    again = Split.from_arrays(floats, torch.tensor([0]), quantize=True)
    assert torch.equal(again.images, values)


def test_first_and_subset_choose_the_images_with_their_labels():
    assert len(SPLIT) == 6
    assert torch.equal(SPLIT.first(2).images, IMAGES[:2])
    assert SPLIT.first(6) is SPLIT
    chosen = SPLIT.subset([5, 0])
    assert torch.equal(chosen.images, IMAGES[[5, 0]])
    assert chosen.labels.tolist() == [2, 0]
    assert torch.equal(SPLIT.subset(torch.tensor([5, 0])).images, chosen.images)


@pytest.mark.parametrize("count", [0, -1, 7])
def test_first_refuses_more_images_than_there_are(count):
    with pytest.raises(InputError, match=r"count must lie in 1\.\.6"):
        SPLIT.first(count)


@pytest.mark.parametrize("indices", [[], [6], [-1], [0.5]])
def test_subset_refuses_positions_that_are_not_there(indices, as_installed):
    with pytest.raises(InputError, match="indices must be"):
        SPLIT.subset(indices)


def test_a_split_on_the_device_is_not_copied():
    assert SPLIT.to("cpu") is SPLIT
    assert SPLIT.to(torch.device("cpu")) is SPLIT


def test_a_split_is_frozen_and_short_to_print():
    assert repr(SPLIT) == "Split(6 images of shape (3, 4, 5) on cpu)"
    with pytest.raises(dataclasses.FrozenInstanceError):
        SPLIT.labels = LABELS  # type: ignore[misc]


@pytest.mark.parametrize("layout", [None, "nchw", "nhwc"])
@pytest.mark.parametrize("as_array", [True, False])
def test_both_layouts_of_arrays_and_tensors_give_the_same_split(layout, as_array):
    images = IMAGES if layout == "nchw" else IMAGES.permute(0, 2, 3, 1)
    labels = LABELS.int()
    if as_array:
        split = Split.from_arrays(images.numpy(), labels.numpy(), layout=layout)
    else:
        split = Split.from_arrays(images, labels, layout=layout)
    assert torch.equal(split.images, IMAGES)
    assert split.images.is_contiguous()
    assert torch.equal(split.labels, LABELS)


def test_a_split_made_from_a_read_only_array_owns_its_memory():
    array = IMAGES.numpy().copy()
    array.flags.writeable = False
    split = Split.from_arrays(array, [0, 1, 2, 0, 1, 2])
    assert not np.shares_memory(split.images.numpy(), array)
    assert torch.equal(split.images, IMAGES)


@pytest.mark.parametrize(
    ("shape", "problem"), [((2, 3, 8, 3), "both could be"), ((2, 4, 8, 8), "neither is")]
)
def test_an_ambiguous_layout_is_an_error_until_it_is_named(shape, problem):
    images = np.zeros(shape, np.uint8)
    with pytest.raises(InputError, match=f"layout must be given.*{problem}"):
        Split.from_arrays(images, [0, 1])
    assert Split.from_arrays(images, [0, 1], layout="nchw").images.shape == shape


def test_float_images_are_refused_until_quantization_is_asked_for():
    floats = IMAGES.float() / 255
    with pytest.raises(InputError, match="quantize=True"):
        Split.from_arrays(floats, LABELS)
    assert torch.equal(Split.from_arrays(floats, LABELS, quantize=True).images, IMAGES)
    with pytest.raises(InputError, match="divide by 255"):
        Split.from_arrays(IMAGES.float(), LABELS, quantize=True)


def test_quantization_rounds_to_the_nearest_stored_value():
    floats = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    split = Split.from_arrays(floats, [0], quantize=True)
    assert (split.floats() - floats).abs().max() <= 1 / 510 + 1e-7


@pytest.mark.parametrize("labels", [np.eye(6), np.arange(6) / 2, np.array([True] * 6)])
def test_arrays_of_labels_that_are_no_indices_are_refused(labels):
    with pytest.raises(InputError, match="labels must be class indices"):
        Split.from_arrays(IMAGES, labels)


def test_data_derives_its_numbers_from_its_facts():
    toy = data()
    assert (toy.classes, toy.channels, toy.image_size) == (3, 3, (4, 5))
    assert toy.validation is None
    assert toy.augmentation is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"class_names": ()}, "two classes or more, got ()"),
        ({"class_names": ("a",)}, "two classes or more, got ('a',)"),
        ({"class_names": ("a", "b")}, "toy: train.labels must be class indices"),
        ({"train": SPLIT.subset([0, 3])}, "all 2 are of class 0"),
        ({"test": Split(IMAGES[..., :4], LABELS)}, "(3, 4, 5), got (3, 4, 4) in test"),
        ({"validation": Split(IMAGES[:, :1], LABELS)}, "got (1, 4, 5) in validation"),
        ({"validation": Split(IMAGES, LABELS + 1)}, "toy: validation.labels must be"),
        ({"mean": (0.5,)}, "mean must be one number in [0, 1] for each of the 3 channels"),
        ({"mean": (125.3, 123.0, 113.9)}, "divide by 255"),
        ({"std": (0.2, 0.2, 0.0)}, "std must be one number above 0"),
        ({"std": (0.2, float("nan"), 0.2)}, "std must be one number above 0"),
    ],
)
def test_data_that_break_a_rule_are_one_clear_error(changes, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        data(**changes)
    assert str(caught.value).startswith("toy: ")
    assert "\n" not in str(caught.value)


def test_build_loads_by_name():
    toy = build("digits", validation=100)
    assert (toy.name, len(toy.train)) == ("digits", 1197)
    assert sorted(DATASETS) == ["cifar10", "cifar100", "digits", "svhn", "tinyimagenet"]


def test_build_names_the_known_data_sets_and_options():
    with pytest.raises(InputError, match=r"Unknown data set: 'cifar'\. Did you mean 'cifar10'\?"):
        build("cifar")
    with pytest.raises(
        InputError, match=r"option of data set 'digits'.*Did you mean 'train_limit'"
    ):
        build("digits", trainlimit=5)


def test_an_augmentation_is_part_of_the_data():
    assert data(augmentation=CropFlip(2)).augmentation == CropFlip(2)
