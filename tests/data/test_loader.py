from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multirobust.data import Batch, CropFlip, Loader, Split
from multirobust.errors import InputError


def split(count: int) -> Split:
    g = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=g)
    return Split(images, torch.arange(count) % 3)


def loader(count: int = 25, **changes) -> Loader:
    options = {"batch_size": 4, "seed": 0, "augmentation": CropFlip(2)}
    return Loader(split(count), **{**options, **changes})


def equal(left: Batch, right: Batch) -> bool:
    pairs = ((left.x, right.x), (left.y, right.y), (left.index, right.index))
    return all(torch.equal(a, b) for a, b in pairs)


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    batch_size=st.integers(1, 12),
    epoch=st.integers(0, 5),
    shuffle=st.booleans(),
)
def test_every_image_is_seen_exactly_once_an_epoch(count, batch_size, epoch, shuffle):
    batches = loader(count, batch_size=batch_size, shuffle=shuffle)
    sizes = [len(batch) for batch in batches.epoch(epoch)]
    seen = [i for batch in batches.epoch(epoch) for i in batch.index.tolist()]
    assert len(sizes) == len(batches)
    assert sorted(seen) == list(range(count))
    assert set(sizes[:-1]) <= {batch_size}
    assert sizes[-1] <= batch_size + 1


@settings(max_examples=60, deadline=None)
@given(count=st.integers(2, 60), batch_size=st.integers(2, 12))
def test_no_batch_holds_a_single_image(count, batch_size):
    batches = loader(count, batch_size=batch_size)
    sizes = [len(batch) for batch in batches.epoch(0)]
    assert min(sizes) > 1
    joined = count > batch_size and count % batch_size == 1
    assert max(sizes) == (batch_size + 1 if joined else min(batch_size, count))


@pytest.mark.parametrize("augmentation", [CropFlip(2), None])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("start", range(7))
def test_an_epoch_started_at_a_step_gives_the_batches_of_the_whole_epoch(
    augmentation, shuffle, start
):
    whole = list(loader(augmentation=augmentation, shuffle=shuffle).epoch(3))
    fresh = loader(augmentation=augmentation, shuffle=shuffle)
    rest = list(fresh.epoch(3, start=start))
    assert len(whole) == 6
    assert len(rest) == 6 - start
    assert all(equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_batches_depend_on_seed_epoch_and_step_alone():
    first = next(loader().epoch(1))
    interleaved = loader()
    others = [next(interleaved.epoch(0)), next(loader(seed=1).epoch(1))]
    assert equal(next(interleaved.epoch(1)), first)
    assert not any(torch.equal(other.index, first.index) for other in others)


def test_the_same_image_is_augmented_otherwise_in_another_step_and_epoch():
    image = torch.arange(36, dtype=torch.uint8).view(1, 1, 6, 6)
    same = Split(image.repeat(40, 1, 1, 1), torch.zeros(40, dtype=torch.int64))
    batches = Loader(same, batch_size=20, seed=0, augmentation=CropFlip(2))
    x = [batch.x for epoch in range(2) for batch in batches.epoch(epoch)]
    assert all(not torch.equal(x[i], x[j]) for i in range(4) for j in range(i))


def test_plain_batches_are_the_images_with_their_labels():
    source = split(25)
    for batch in Loader(source, batch_size=4, seed=0).epoch(0):
        assert torch.equal(batch.x, source.floats(batch.index))
        assert torch.equal(batch.y, source.labels[batch.index])
        assert (batch.x.dtype, batch.y.dtype, batch.index.dtype) == (
            torch.float32,
            torch.int64,
            torch.int64,
        )


def test_augmented_batches_are_bytes_over_255_in_the_box():
    for batch in loader().epoch(0):
        assert batch.x.min() >= 0
        assert batch.x.max() <= 1
        assert torch.equal((batch.x * 255).round() / 255, batch.x)


def test_without_shuffling_the_images_come_in_the_order_of_the_split():
    batches = list(loader(10, shuffle=False, augmentation=None).epoch(0))
    assert torch.equal(torch.cat([batch.x for batch in batches]), split(10).floats())
    assert [batch.index.tolist() for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_the_split_is_not_changed():
    source = split(9)
    before = source.images.clone()
    for batch in Loader(source, batch_size=4, seed=0, shuffle=False).epoch(0):
        batch.x.zero_()
    assert torch.equal(source.images, before)


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_a_batch_size_that_is_no_whole_number_is_refused(batch_size, as_installed):
    with pytest.raises(InputError, match="batch_size must be a whole number"):
        loader(batch_size=batch_size)


@pytest.mark.parametrize(("epoch", "start"), [(-1, 0), (0, -1), (0, 7)])
def test_a_step_outside_the_epoch_is_refused_at_once(epoch, start):
    with pytest.raises(InputError, match=r"epoch must be|start must lie in"):
        loader().epoch(epoch, start=start)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_on_a_gpu_no_batch_waits_for_the_device():
    batches = loader(device="cuda").epoch(0)
    first = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rest = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    on_cpu = list(loader().epoch(0))
    assert [b.index.tolist() for b in [first, *rest]] == [b.index.tolist() for b in on_cpu]
