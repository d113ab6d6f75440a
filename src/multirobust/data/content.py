"""What is known of images by their content alone: a digest, and the mean and std of the pixels."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from multirobust.data.datasets import Split

__all__ = ["content_digest", "file_digest", "pixel_statistics"]

CHUNK = 1024


def content_digest(split: Split, *more: object) -> str:
    """Return the SHA-256 of all pixels and labels, in their order, and of other plain values."""
    state = hashlib.sha256(repr((tuple(split.images.shape), *more)).encode())
    for start in range(0, len(split), CHUNK):
        part = slice(start, start + CHUNK)
        state.update(split.images[part].cpu().contiguous().numpy().data)
        state.update(split.labels[part].cpu().contiguous().numpy().data)
    return state.hexdigest()


def file_digest(files: str, labels: Tensor, *more: object) -> str:
    """Return the SHA-256 of a digest of files, their labels in the same order, and plain values.

    The files are what other machines have too: other decoders may give other pixels.
    """
    state = hashlib.sha256(repr((files, *more)).encode())
    state.update(labels.cpu().contiguous().numpy().data)
    return state.hexdigest()


def pixel_statistics(split: Split) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of the pixels of each channel, on the scale [0, 1].

    They are computed from whole sums, so they are the same on every machine. The deviation is that
    of all pixels together, not a mean over images.
    """
    channels = split.images.shape[1]
    counts = torch.zeros(channels, 256, dtype=torch.int64)
    for start in range(0, len(split), CHUNK):
        images = split.images[start : start + CHUNK].cpu()
        for channel in range(channels):
            pixels = images[:, channel].flatten().long()
            counts[channel] += torch.bincount(pixels, minlength=256)
    values, total = torch.arange(256), int(counts[0].sum())
    first, second = (counts @ values).tolist(), (counts @ values.square()).tolist()
    mean = tuple(s / total / 255 for s in first)
    # Whole numbers until the last step: nothing cancels.
    std = tuple(
        ((total * q - s * s) / total**2) ** 0.5 / 255 for s, q in zip(first, second, strict=True)
    )
    return mean, std
