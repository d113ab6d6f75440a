"""Where training runs: device, precision and process, by Lightning Fabric."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from multirobust.data import Batch
from multirobust.errors import InputError

__all__ = ["Runtime", "choose_device"]


def choose_device(name: str) -> torch.device:
    """Return the device that "auto", "cpu" or "cuda" names here.

    Raises:
        InputError: If "cuda" is asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError(
            "training.device: 'cuda' needs a CUDA device and PyTorch finds none here; "
            "use 'auto' or 'cpu'."
        )
    use_cuda = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")


class Runtime:
    """One device with one precision.

    Fabric takes seconds to import, so that happens here and not before.

    Args:
        device: "auto", "cpu" or "cuda".
        precision: "32-true", "bf16-mixed" or "64-true".
        memory_format: "contiguous", "channels_last", or "auto": channels_last in bf16 on CUDA.
    """

    def __init__(
        self, device: str = "auto", precision: str = "32-true", memory_format: str = "auto"
    ):
        chosen = choose_device(device)
        # In float32 without TF32, convolutions in channels_last took 1.6 times as long on an H100.
        fitting = chosen.type == "cuda" and precision == "bf16-mixed"
        last = memory_format == "channels_last" or (memory_format == "auto" and fitting)
        self.memory_format = torch.channels_last if last else torch.contiguous_format
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from lightning_fabric import Fabric

            from multirobust.training.precision import BFloat16Mixed

        options: dict[str, Any] = {"precision": precision}
        if precision == "bf16-mixed":
            options = {"plugins": [BFloat16Mixed(chosen.type)]}
        devices = [chosen.index] if chosen.type == "cuda" else 1
        self.fabric = Fabric(accelerator=chosen.type, devices=devices, **options)
        self.dtype = torch.float64 if precision == "64-true" else torch.float32

    @property
    def device(self) -> torch.device:
        """The device that holds the model."""
        return self.fabric.device

    def set_up(self, model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Any]:
        """Return model and optimizer as Fabric wraps them; the model moves to the device."""
        return self.fabric.setup(model, optimizer)

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module that Fabric does not wrap, such as a defense, to the device."""
        module = module.to(device=self.device, dtype=self.dtype)
        if self.memory_format == torch.contiguous_format:
            return module
        return module.to(memory_format=self.memory_format)  # pyright: ignore[reportCallIssue]

    def batch(self, batch: Batch) -> Batch:
        """Return the batch in the precision of the parameters."""
        if batch.x.dtype == self.dtype:
            return batch
        return Batch(batch.x.to(self.dtype), batch.y, batch.index)

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision for forward passes that do not go through the wrapped model."""
        return self.fabric.autocast()

    @contextlib.contextmanager
    def reproducible(self) -> Iterator[None]:
        """Hold cuDNN to the same algorithm each time, so that the same step gives the same bits."""
        cudnn = torch.backends.cudnn
        before = cudnn.deterministic, cudnn.benchmark
        cudnn.deterministic, cudnn.benchmark = True, False
        try:
            yield
        finally:
            cudnn.deterministic, cudnn.benchmark = before

    def generator(self, seed: int, step: int) -> torch.Generator:
        """Return the source of random numbers of one step, on the device.

        It depends on seed and step only: a resumed run needs no more than its step.
        """
        return torch.Generator(self.device).manual_seed(_mixed(seed, step))

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of the loss in the parameters."""
        self.fabric.backward(loss)


def _mixed(seed: int, step: int) -> int:
    """One 63-bit number for a pair; consecutive pairs give unrelated numbers (SplitMix64)."""
    mask = (1 << 64) - 1
    value = (seed * 0x9E3779B97F4A7C15 + step + 1) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
    return (value ^ (value >> 31)) >> 1
