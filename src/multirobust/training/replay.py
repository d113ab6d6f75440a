"""Work that repeats with other numbers: recorded once as a CUDA graph, and replayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from multirobust.attacks import PassMeter

__all__ = ["Replays", "mapped"]

Work: TypeAlias = Callable[..., Any]

_PLAIN_RUNS = 2
"""Runs before a recording: they load kernels and choose algorithms, which a recording must not."""


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Return a value with each tensor in it changed, through tuples, dicts and dataclasses."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, (tuple, list)):
        return type(value)(mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {name: mapped(item, change) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: mapped(part, change) for name, part in parts.items()}
        if any(changed[name] is not part for name, part in parts.items()):
            return dataclasses.replace(value, **changed)
    return value


@final
class Replays:
    """Runs work, and from the third time on replays what it did on the device.

    One launch then stands for the thousands of an attack. The bits are those of running the work,
    random numbers among them. Work that a graph cannot hold, such as one that waits for the device,
    goes on being run. Without CUDA, all work is.

    Args:
        device: Where the tensors are.
        meter: Is told of the passes that a replay makes.
        enabled: False runs everything.
    """

    def __init__(self, device: torch.device, meter: PassMeter, *, enabled: bool = True):
        self.enabled = enabled and device.type == "cuda"
        self.failures: dict[Hashable, str] = {}
        self._meter = meter
        self._recordings: dict[Hashable, _Recording] = {}
        self._runs: dict[Hashable, int] = {}
        if self.enabled:
            self._stream = torch.cuda.Stream(device)
            self._pool = torch.cuda.graph_pool_handle()

    def __call__(
        self,
        key: Hashable,
        work: Work,
        tensors: tuple[Tensor, ...],
        generator: torch.Generator | None = None,
    ) -> Any:
        """Return work(*tensors, generator=generator), with tensors that stay as they are.

        Args:
            key: Names the work. What the work reads besides its tensors and the generator must be
                the same tensors each time, changed in place, or be part of the key.
            work: Returns tensors, in tuples, dicts or dataclasses.
            tensors: Inputs; their shapes and types are added to the key.
            generator: Its random numbers; after a replay it stands where it would stand.
        """
        if not self.enabled:
            return work(*tensors, generator=generator)
        key = (key, *((tensor.shape, tensor.dtype) for tensor in tensors))
        recording = self._recordings.get(key)
        if recording is None:
            self._runs[key] = self._runs.get(key, 0) + 1
            if self._runs[key] <= _PLAIN_RUNS or key in self.failures:
                return self._run(work, tensors, generator)
            recording = self._record(key, work, tensors, generator)
            if recording is None:
                return self._run(work, tensors, generator)
        return recording.replay(tensors, generator, self._meter)

    def _run(
        self, work: Work, tensors: tuple[Tensor, ...], generator: torch.Generator | None
    ) -> Any:
        """Run beside the main stream, as a recording will: some state belongs to its stream."""
        main = torch.cuda.current_stream()
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            result = work(*tensors, generator=generator)
        main.wait_stream(self._stream)
        return result

    def _record(
        self,
        key: Hashable,
        work: Work,
        tensors: tuple[Tensor, ...],
        generator: torch.Generator | None,
    ) -> _Recording | None:
        passes = self._meter.forwards, self._meter.backwards
        try:
            return self._recordings.setdefault(
                key, _Recording(work, tensors, generator, self._meter, self._stream, self._pool)
            )
        except RuntimeError as error:
            self.failures[key] = str(error)
            self._recover()
            return None
        finally:
            self._meter.forwards, self._meter.backwards = passes

    def _recover(self) -> None:
        """Make a recording that succeeds: after a failure CUDA's generator waits for one to end."""
        torch.cuda.synchronize()
        with torch.cuda.graph(torch.cuda.CUDAGraph(), pool=self._pool, stream=self._stream):
            torch.zeros(1, device=self._stream.device)


class _Recording:
    """One graph with the tensors that it reads and writes."""

    def __init__(
        self,
        work: Work,
        tensors: tuple[Tensor, ...],
        generator: torch.Generator | None,
        meter: PassMeter,
        stream: torch.cuda.Stream,
        pool: Any,
    ):
        self.inputs = tuple(tensor.detach().clone() for tensor in tensors)
        self.graph = torch.cuda.CUDAGraph()
        self.generator = None
        if generator is not None:
            self.generator = torch.Generator(generator.device)
            self.graph.register_generator_state(self.generator)
        forwards, backwards = meter.forwards, meter.backwards
        with torch.cuda.graph(self.graph, pool=pool, stream=stream):
            self.outputs = work(*self.inputs, generator=self.generator)
        self.forwards, self.backwards = meter.forwards - forwards, meter.backwards - backwards

    def replay(
        self, tensors: tuple[Tensor, ...], generator: torch.Generator | None, meter: PassMeter
    ) -> Any:
        """Copy the inputs in, launch, and copy the outputs out: other graphs use their memory."""
        for static, tensor in zip(self.inputs, tensors, strict=True):
            static.copy_(tensor)
        if generator is not None and self.generator is not None:
            self.generator.set_state(generator.get_state())
        self.graph.replay()
        if generator is not None and self.generator is not None:
            generator.set_state(self.generator.get_state())
        meter.forwards += self.forwards
        meter.backwards += self.backwards
        return mapped(self.outputs, torch.clone)
