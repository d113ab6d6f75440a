"""Images that stay on the host give the batches of those on the device, and leave no thread."""

from __future__ import annotations

import threading

import pytest
import torch

from multirobust.data import Batch, CropFlip, Loader, Split, Unlabeled
from multirobust.data.host_images import HostImages, chosen_placement
from multirobust.errors import InputError

MIXTURES = [None, (0.5, "labeled"), (0.3, "all"), ("pooled", "all")]


def split(count: int, seed: int = 0) -> Split:
    g = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 6, 6), dtype=torch.uint8, generator=g)
    return Split(images, torch.randint(0, 3, (count,), generator=g))


def loader(placement: str, mixture=None, **changes) -> Loader:
    more = mixture and Unlabeled(split(23, 1), share=mixture[0], epoch=mixture[1])
    options = {"batch_size": 4, "seed": 5, "augmentation": CropFlip(2), "unlabeled": more}
    return Loader(split(25), placement=placement, **{**options, **changes})


def same(left: Batch, right: Batch) -> bool:
    pairs = ((left.x, right.x), (left.y, right.y), (left.index, right.index))
    return all(torch.equal(a, b) and a.dtype == b.dtype for a, b in pairs)


def gathering() -> list[str]:
    """Names of the threads that gather images now."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if name.startswith("multirobust-images")]


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("augmentation", [CropFlip(2), None])
def test_batches_from_the_host_are_those_of_the_device(mixture, shuffle, augmentation):
    options = {"mixture": mixture, "shuffle": shuffle, "augmentation": augmentation}
    there, here = (loader(placement, **options) for placement in ("device", "host"))
    assert len(there) == len(here)
    for epoch in (0, 3):
        pairs = list(zip(there.epoch(epoch), here.epoch(epoch), strict=True))
        assert len(pairs) == len(there)
        assert all(same(a, b) for a, b in pairs)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_an_epoch_from_the_host_may_start_at_any_step(mixture):
    whole = list(loader("device", mixture).epoch(2))
    for start in range(len(whole) + 1):
        rest = list(loader("host", mixture).epoch(2, start=start))
        assert len(rest) == len(whole) - start
        assert all(same(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_a_batch_that_was_handed_out_stays_as_it_is():
    kept = list(loader("host", augmentation=None).epoch(0))
    source = split(25)
    assert all(torch.equal(batch.x, source.floats(batch.index)) for batch in kept)


def test_the_split_may_lie_in_a_file_that_is_mapped(tmp_path):
    import numpy as np

    source = split(25)
    np.save(tmp_path / "images.npy", source.images.numpy())
    images = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))
    mapped = Loader(Split(images, source.labels), batch_size=4, seed=0, placement="host")
    plain = Loader(source, batch_size=4, seed=0)
    assert all(same(a, b) for a, b in zip(mapped.epoch(1), plain.epoch(1), strict=True))


def test_no_thread_outlives_an_epoch_whole_left_or_never_begun():
    batches = loader("host")
    for _ in batches.epoch(0):
        assert len(gathering()) <= 1
    assert gathering() == []
    left = batches.epoch(1)
    next(left)
    assert len(gathering()) == 1
    left.close()
    assert gathering() == []
    batches.epoch(2)
    assert gathering() == []


def test_no_thread_outlives_an_error_of_the_one_who_takes_the_batches():
    def work() -> None:
        for _ in loader("host").epoch(0):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        work()
    assert gathering() == []


def test_what_the_thread_raises_is_raised_as_it_is(monkeypatch):
    error, gather, calls = MemoryError("no room for a batch"), HostImages.gather, []

    def failing(self, index, out):
        calls.append(threading.current_thread().name)
        if len(calls) == 3:
            raise error
        gather(self, index, out)

    monkeypatch.setattr(HostImages, "gather", failing)
    batches, whole = loader("host").epoch(0), loader("device").epoch(0)
    assert all(same(next(batches), next(whole)) for _ in range(2))
    with pytest.raises(MemoryError) as caught:
        next(batches)
    assert caught.value is error
    assert gathering() == []
    assert all(name.startswith("multirobust-images") for name in calls)
    assert len(calls) <= 5


def test_batches_are_gathered_ahead_and_no_further(monkeypatch):
    gather, gathered, three = HostImages.gather, [], threading.Event()

    def counted(self, index, out):
        gather(self, index, out)
        gathered.append(len(index))
        if len(gathered) == 3:
            three.set()

    monkeypatch.setattr(HostImages, "gather", counted)
    batches = loader("host").epoch(0)
    next(batches)
    assert three.wait(10), "the two batches behind the first were not gathered"
    batches.close()
    assert len(gathered) == 3


@pytest.mark.parametrize(
    ("placement", "device", "free", "chosen"),
    [
        ("auto", "cuda", 4 * 2700, "device"),
        ("auto", "cuda", 4 * 2700 - 1, "host"),
        ("auto", "cpu", 0, "device"),
        ("device", "cuda", 0, "device"),
        ("host", "cuda", 1 << 40, "host"),
        ("host", "cpu", 0, "host"),
    ],
)
def test_auto_takes_the_device_up_to_a_quarter_of_its_free_memory(
    placement, device, free, chosen, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 1 << 40))
    images = [torch.zeros(15, 3, 6, 6, dtype=torch.uint8), torch.zeros(10, 108, dtype=torch.uint8)]
    assert sum(part.nbytes for part in images) == 2700
    assert chosen_placement(placement, torch.device(device), images) == chosen


def test_an_unknown_placement_is_refused():
    with pytest.raises(InputError, match="placement must be 'auto', 'device' or 'host', got 'gpu'"):
        loader("gpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("mixture", MIXTURES)
def test_on_a_gpu_the_host_gives_the_bits_of_the_device_without_waiting(mixture):
    there = list(loader("device", mixture, device="cuda").epoch(1))
    batches = loader("host", mixture, device="cuda").epoch(1)
    first = next(batches)
    torch.cuda.set_sync_debug_mode("error")
    try:
        rest = list(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(same(a, b) for a, b in zip([first, *rest], there, strict=True))
