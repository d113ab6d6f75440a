"""Counting forward and backward passes: the currency in which defenses and attacks are compared."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from torch import Tensor, nn

__all__ = ["PassMeter"]


class PassMeter:
    """Counts, while it is entered, the images that pass a model forward and backward.

    A pass of a batch of b images counts b. A backward pass is counted when the gradient reaches the
    logits, whether it goes on to the input, to the weights or to both. A second derivative passes
    the logits again and counts again.

    >>> meter = PassMeter(nn.Flatten())
    >>> with meter:
    ...     _ = meter.model(torch.ones(5, 1, 2, 2))
    >>> meter.forwards, meter.backwards
    (5, 0)
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.forwards = 0
        self.backwards = 0

    def __enter__(self) -> PassMeter:
        self._handle = self.model.register_forward_hook(self._forward)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._handle.remove()

    def _forward(self, module: nn.Module, inputs: tuple[Any, ...], logits: Tensor) -> None:
        images = len(inputs[0])
        self.forwards += images
        if logits.requires_grad:
            logits.register_hook(lambda _: self._backward(images))

    def _backward(self, images: int) -> None:
        self.backwards += images
