"""Images that stay in host memory: one thread gathers the batches ahead of the device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, TypeAlias, final

import torch
from torch import Tensor

from multirobust.errors import InputError

__all__ = ["AHEAD", "DEVICE_SHARE", "HostImages", "Placement", "chosen_placement"]

Placement: TypeAlias = Literal["auto", "device", "host"]

AHEAD = 2
"""Batches that are gathered while the device works on one."""

DEVICE_SHARE = 0.25
"""Share of the device's free memory that a set may take before "auto" leaves it on the host."""


def chosen_placement(
    placement: Placement, device: torch.device, images: Sequence[Tensor]
) -> Literal["device", "host"]:
    """Return where uint8 images are to be kept.

    "auto" takes the device if they are there already, or if they take `DEVICE_SHARE` of its free
    memory at most.

    A CPU has the memory of the host: nothing is moved and nothing has to be gathered ahead.

    Args:
        placement: What is asked for.
        device: Where the batches are wanted.
        images: All images that are kept, in one or several tensors.

    Raises:
        InputError: If the placement is none of the three.
    """
    if placement not in ("auto", "device", "host"):
        raise InputError(
            f"placement must be 'auto', 'device' or 'host', got {placement!r}; 'auto' keeps the "
            "images on the device if they fit."
        )
    if placement != "auto":
        return placement
    if device.type != "cuda" or all(part.is_cuda for part in images):
        return "device"
    free, _ = torch.cuda.mem_get_info(device)
    return "device" if sum(part.nbytes for part in images) <= DEVICE_SHARE * free else "host"


@final
class HostImages:
    """Images in host memory, or in a file that is mapped into it.

    Args:
        labeled: uint8, shape (n, c, h, w), on the CPU.
        unlabeled: uint8, shape (m, c, h, w), likewise; they are numbered from n on.
    """

    def __init__(self, labeled: Tensor, unlabeled: Tensor | None = None):
        self._labeled = labeled.cpu()
        self._unlabeled = None if unlabeled is None else unlabeled.cpu()

    def batches(self, rows: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
        """Return batch after batch on a device, without waiting for it.

        A thread gathers the next `AHEAD` batches meanwhile; it ends with the iterator, also when
        that is closed early. On a CUDA device the batches pass through pinned memory. It makes no
        call to CUDA, which would break into the recording of a graph. What is raised in it is
        raised here.

        Args:
            rows: Positions of the images of each batch, int64, on the CPU.
            device: Where they go.

        Yields:
            uint8, shape (b, c, h, w).
        """
        thread = ThreadPoolExecutor(1, thread_name_prefix="multirobust-images")
        waiting: deque[_Gathering] = deque()
        left = iter(rows)
        try:
            for _ in range(len(rows)):
                while len(waiting) <= AHEAD and (index := next(left, None)) is not None:
                    waiting.append(_Gathering(self, index, thread, pinned=device.type == "cuda"))
                yield waiting.popleft().result().to(device, non_blocking=True)
        finally:
            thread.shutdown(cancel_futures=True)

    def gather(self, index: Tensor, out: Tensor) -> None:
        """Write the images (b,) of an index into `out`, (b, c, h, w)."""
        if self._unlabeled is None:
            torch.index_select(self._labeled, 0, index, out=out)
            return
        count = len(self._labeled)
        ours = index < count
        out[ours] = self._labeled.index_select(0, index[ours])
        out[~ours] = self._unlabeled.index_select(0, index[~ours] - count)

    def empty(self, count: int, *, pinned: bool) -> Tensor:
        """Return room for so many images."""
        shape = (count, *self._labeled.shape[1:])
        return torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)


@final
class _Gathering:
    """One batch on its way; its memory is PyTorch's to give to another batch once it is copied."""

    def __init__(
        self, source: HostImages, index: Tensor, thread: ThreadPoolExecutor, *, pinned: bool
    ):
        self._source = source
        self._index = index
        self._images = source.empty(len(index), pinned=pinned)
        self._done: Future[None] = thread.submit(self._gather)

    def _gather(self) -> None:
        self._source.gather(self._index, self._images)

    def result(self) -> Tensor:
        """Return the images as soon as they are there, or raise what the thread raised."""
        self._done.result()
        images = self._images
        del self._images  # the thread may still hold this object, and must not be the last to
        return images
