from __future__ import annotations

import hashlib
import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from multirobust.data import Batch, CropFlip, Loader, Split, Unlabeled
from multirobust.data.order import Mixture, Passes
from multirobust.errors import InputError

WAYS = [(0.5, "labeled"), (0.3, "labeled"), (0.5, "all"), (0.7, "all"), ("pooled", "all")]


def split(count: int, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 5, 5), dtype=torch.uint8, generator=g)
    return Split(images, torch.randint(0, 3, (count,), generator=g))


def loader(labeled: int, unlabeled: int, share, epoch: str, **changes) -> Loader:
    more = Unlabeled(split(unlabeled, 1), share=share, epoch=epoch)
    options = {"batch_size": 6, "seed": 0, "augmentation": CropFlip(1)}
    return Loader(split(labeled), unlabeled=more, **{**options, **changes})


def equal(left: Batch, right: Batch) -> bool:
    pairs = ((left.x, right.x), (left.y, right.y), (left.index, right.index))
    return all(torch.equal(a, b) for a, b in pairs)


def mixtures():
    counts = st.integers(2, 60)
    sizes, shares = st.integers(2, 14), st.floats(0.02, 0.98)
    return st.tuples(counts, counts, sizes, shares, st.sampled_from(["labeled", "all"]))


def mixed(case) -> Mixture:
    labeled, unlabeled, size, share, epoch = case
    assume(0 < math.floor(size * share + 0.5) < size)
    kinds = {"labeled": labeled, "unlabeled": unlabeled, "batch_size": size}
    return Mixture(**kinds, share=share, epoch=epoch)


def batches_of(mixture: Mixture, epoch: int, seed: int = 0) -> list[torch.Tensor]:
    """The batches as the loader cuts them: all of the batch size, the last as long as it is."""
    order, size = mixture.order(epoch, seed), mixture.batch_size
    steps = len(mixture)
    ends = [(step + 1) * size for step in range(steps - 1)] + [len(order)]
    return [order[step * size : end] for step, end in enumerate(ends)]


@settings(max_examples=80, deadline=None)
@given(case=mixtures(), epoch=st.integers(0, 4))
def test_every_whole_batch_has_exactly_the_share_and_the_last_the_nearest(case, epoch):
    mixture = mixed(case)
    each = math.floor(mixture.batch_size * mixture.share + 0.5)
    *whole, last = [
        (len(batch), int((batch >= mixture.labeled).sum())) for batch in batches_of(mixture, epoch)
    ]
    assert set(whole) <= {(mixture.batch_size, each)}
    size, unlabeled = last
    wanted = each / mixture.batch_size
    assert size > 1
    # Rounding one of the two kinds moves it by half an image at most; the ratio is the other's.
    assert abs(unlabeled - wanted * size) <= 0.5 + 1e-9


@settings(max_examples=60, deadline=None)
@given(case=mixtures(), epoch=st.integers(0, 4))
def test_a_labeled_epoch_has_every_labeled_image_exactly_once(case, epoch):
    labeled, unlabeled, size, share, _ = case
    mixture = mixed((labeled, unlabeled, size, share, "labeled"))
    order = mixture.order(epoch, 0)
    assert sorted(order[order < labeled].tolist()) == list(range(labeled))


@settings(max_examples=60, deadline=None)
@given(case=mixtures(), epoch=st.integers(0, 4))
def test_an_epoch_over_all_has_as_many_images_as_there_are(case, epoch):
    mixture = mixed((*case[:4], "all"))
    assert len(mixture.order(epoch, 0)) == mixture.labeled + mixture.unlabeled


@settings(max_examples=60, deadline=None)
@given(case=mixtures(), epochs=st.integers(1, 6))
def test_all_images_of_a_kind_are_used_before_any_is_used_again(case, epochs):
    mixture = mixed(case)
    seen = torch.cat([mixture.order(epoch, 3) for epoch in range(epochs)])
    kinds = ((seen[seen < mixture.labeled], mixture.labeled),)
    kinds += ((seen[seen >= mixture.labeled] - mixture.labeled, mixture.unlabeled),)
    for images, count in kinds:
        used = torch.bincount(images, minlength=count)
        assert used.max() - used.min() <= 1
        assert used.sum() == len(images)


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 9), start=st.integers(0, 40), length=st.integers(0, 30))
def test_a_slice_of_the_passes_is_a_part_of_the_endless_row(count, start, length):
    row = torch.cat([Passes(count, 5, "x").slice(i * count, (i + 1) * count) for i in range(80)])
    part = Passes(count, 5, "x").slice(start, start + length)
    assert torch.equal(part, row[start : start + length])


@pytest.mark.parametrize(("share", "epoch"), WAYS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_started_at_any_step_gives_the_batches_of_the_whole_epoch(share, epoch, shuffle):
    whole = list(loader(17, 23, share, epoch, shuffle=shuffle).epoch(2))
    for start in range(len(whole) + 1):
        rest = list(loader(17, 23, share, epoch, shuffle=shuffle).epoch(2, start=start))
        assert len(rest) == len(whole) - start
        assert all(equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


@pytest.mark.parametrize(("share", "epoch"), WAYS)
def test_images_and_labels_are_those_of_the_index_unlabeled_ones_numbered_on(share, epoch):
    batches = loader(17, 23, share, epoch, augmentation=None)
    labeled, unlabeled = split(17), split(23, 1)
    images = torch.cat([labeled.floats(), unlabeled.floats()])
    labels = torch.cat([labeled.labels, unlabeled.labels])
    for batch in batches.epoch(1):
        assert torch.equal(batch.x, images[batch.index])
        assert torch.equal(batch.y, labels[batch.index])


def test_pooled_images_are_each_seen_once_an_epoch_in_one_shuffled_order():
    orders = [
        torch.cat([batch.index for batch in loader(11, 20, "pooled", "all").epoch(epoch)])
        for epoch in range(2)
    ]
    assert all(sorted(order.tolist()) == list(range(31)) for order in orders)
    assert not torch.equal(*orders)


def test_labeled_images_come_in_the_order_of_a_training_without_unlabeled_ones():
    plain = Loader(split(17), batch_size=6, seed=4)
    alone = torch.cat([batch.index for batch in plain.epoch(3)])
    share = loader(17, 23, 0.5, "labeled", seed=4)
    batches = [batch.index for batch in share.epoch(3)]
    each = [set(batch[batch < 17].tolist()) for batch in batches]
    assert each == [set(alone[i : i + 3].tolist()) for i in range(0, 17, 3)]


def test_without_unlabeled_images_the_order_is_the_published_one():
    """The order of an epoch, written out once more: it must never change."""
    digest = hashlib.sha256(b"7 order 2").digest()
    g = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big"))
    batches = Loader(split(13), batch_size=4, seed=7)
    index = torch.cat([batch.index for batch in batches.epoch(2)])
    assert torch.equal(index, torch.randperm(13, generator=g))
    assert [len(batch) for batch in batches.epoch(2)] == [4, 4, 5]


def test_both_kinds_are_augmented():
    def bright(count: int) -> Split:
        images = torch.full((count, 1, 5, 5), 255, dtype=torch.uint8)
        return Split(images, torch.zeros(count, dtype=torch.int64))

    more = Unlabeled(bright(40), share=0.5)
    batches = Loader(bright(40), batch_size=40, seed=0, augmentation=CropFlip(2), unlabeled=more)
    batch = next(batches.epoch(0))
    black = (batch.x == 0).flatten(1).any(1)
    assert black[batch.index < 40].any()
    assert black[batch.index >= 40].any()


def test_kinds_are_mixed_within_a_batch():
    batches = loader(30, 30, 0.5, "labeled", batch_size=20)
    first = [(batch.index[:10] < 30).sum().item() for batch in batches.epoch(0)]
    assert set(first) != {10}


@pytest.mark.parametrize("share", [0.01, 0.99])
def test_a_share_that_leaves_a_batch_without_one_kind_is_refused(share):
    with pytest.raises(InputError, match="an image of either kind"):
        loader(17, 23, share, "labeled")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 1, math.nan])
def test_a_share_outside_zero_to_one_is_refused(share):
    with pytest.raises(InputError, match="share must be above 0 and below 1"):
        Unlabeled(split(3), share=share)


def test_pooled_images_need_an_epoch_over_all():
    with pytest.raises(InputError, match="epoch must be 'all'"):
        Unlabeled(split(3), share="pooled")


def test_the_digest_tells_images_and_pseudo_labels_apart():
    one = split(4)
    others = [Split(one.images, 2 - one.labels), split(4, 1), one.first(3)]
    digests = {Unlabeled(other).digest for other in [one, *others]}
    assert len(digests) == 4
    assert Unlabeled(split(4)).digest == Unlabeled(one, share=0.2).digest
