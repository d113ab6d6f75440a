"""One batch on several processes: who has which images, and what all of them agree on.

Every process ("rank") holds the whole model and works on a part of each batch. Whatever is summed
over the images of a batch is summed over the ranks; whatever is drawn at random for the images is
drawn for the whole batch by every rank, which keeps its own rows. So the number of ranks changes no
result but by rounding.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor, distributed

__all__ = [
    "Part",
    "PartGenerator",
    "agreed",
    "drawn",
    "parts",
    "rank",
    "rank_0_first",
    "ranks",
    "summed",
]

T = TypeVar("T")


def ranks() -> int:
    """Return how many processes train together; 1 without a process group."""
    together = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if together else 1


def rank() -> int:
    """Return the number of this process among them, from 0 on."""
    return distributed.get_rank() if ranks() > 1 else 0


def agreed(value: T) -> T:
    """Return the value of rank 0, on every rank; all of them must call this."""
    if ranks() == 1:
        return value
    box = [value if rank() == 0 else None]
    distributed.broadcast_object_list(box, src=0)
    return box[0]  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def rank_0_first() -> Iterator[None]:
    """Let the other ranks wait until rank 0 has gone through; it makes what they will find."""
    if rank() != 0:
        agreed(None)
    yield
    if rank() == 0:
        agreed(None)


class _Sum(torch.autograd.Function):
    """The sum over the ranks. Its derivative, in either mode and of any order, is such a sum."""

    @staticmethod
    def forward(tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(total)
        return total

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.apply(gradients[0])  # pyright: ignore[reportReturnType]

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return _Sum.apply(tangents[0])  # pyright: ignore[reportReturnType]


def summed(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the sums of tensors over the ranks, by one message for each of their dtypes.

    Differentiable: where every rank differentiates its own share of one sum, each gets the
    derivative of the whole sum by what is its own.
    """
    if ranks() == 1 or not tensors:
        return tensors
    totals: dict[int, Tensor] = {}
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        chosen = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flat: Any = _Sum.apply(torch.cat([tensors[i].reshape(-1) for i in chosen]))
        pieces = flat.split([tensors[i].numel() for i in chosen])
        totals |= {i: p.reshape(tensors[i].shape) for i, p in zip(chosen, pieces, strict=True)}
    return tuple(totals[i] for i in range(len(tensors)))


@final
@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows start..stop - 1 of a batch: what one rank works on in one round.

    A rank whose images do not fit at once takes them in several rounds.

    Args:
        start: First row.
        stop: Row after the last.
        total: Rows of the batch.
        offset: Rows of this round that the ranks before this one have.
        fellows: Rows of this round on all ranks.
        round: Number of the round, from 0 on.
        rounds: How many there are.
    """

    start: int
    stop: int
    total: int
    offset: int = 0
    fellows: int
    round: int = 0
    rounds: int = 1

    @property
    def rows(self) -> int:
        """Number of the rows."""
        return self.stop - self.start

    @property
    def share(self) -> float:
        """Weight of their mean in the mean over the batch."""
        return self.rows / self.total

    @property
    def first(self) -> bool:
        """Whether this is the first round of the batch."""
        return self.round == 0

    @property
    def last(self) -> bool:
        """Whether this is the last round of the batch."""
        return self.round == self.rounds - 1

    @property
    def alone(self) -> bool:
        """Whether no other rank has rows of this round."""
        return self.fellows == self.rows

    def weighted(self, mean: Tensor) -> Tensor:
        """Return what a mean over these rows adds to the mean over the batch."""
        return mean if self.rows == self.total else mean * self.share

    def summed(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Return the sums over the ranks that share the round, see `summed`."""
        return tensors if self.alone else summed(tensors)

    def gathered(self, tensor: Tensor) -> Tensor:
        """Return the rows (rows, ...) of all ranks in their order, (fellows, ...), detached."""
        tensor = tensor.detach()
        if self.alone:
            return tensor
        all_rows = tensor.new_zeros((self.fellows, *tensor.shape[1:]))
        all_rows[self.offset : self.offset + self.rows] = tensor
        return summed((all_rows,))[0]


def parts(total: int, *, rank: int = 0, ranks: int = 1, rounds: int = 1) -> list[Part]:
    """Return what a rank has of a batch, round after round: nearly equal parts, in order.

    Of a batch that has fewer than two images for each rank, every rank has all. No part has fewer
    than two images either, so that BatchNorm has something to normalize; there are fewer rounds
    instead.

    Args:
        total: Images of the batch.
        rank: Of this process.
        ranks: Number of processes.
        rounds: How many rounds are wanted.
    """
    if total < 2 * ranks:
        rank, ranks = 0, 1
    rounds = max(1, min(rounds, total // ranks // 2))
    cuts = [total * r // ranks for r in range(ranks + 1)]
    sizes = [stop - start for start, stop in itertools.pairwise(cuts)]
    result = []
    for k in range(rounds):
        rows = [size * (k + 1) // rounds - size * k // rounds for size in sizes]
        start = cuts[rank] + sizes[rank] * k // rounds
        places = {"offset": sum(rows[:rank]), "fellows": sum(rows), "round": k, "rounds": rounds}
        result.append(Part(start=start, stop=start + rows[rank], total=total, **places))
    return result


@final
class PartGenerator(torch.Generator):
    """A generator for the images of a part, from which `drawn` draws for the whole batch.

    Args:
        device: Where it draws.
    """

    part: Part

    @classmethod
    def of(cls, part: Part, like: torch.Generator) -> PartGenerator:
        """Return one for a part that goes on from where another generator is."""
        own = cls(like.device)
        own.set_state(like.get_state())
        own.part = part
        return own


def drawn(
    draw: Callable[..., Tensor],
    shape: tuple[int, ...],
    *,
    generator: torch.Generator | None,
    **options: Any,
) -> Tensor:
    """Return random numbers for each image of a batch, the same on any number of ranks.

    Args:
        draw: Such as `torch.rand`; called with a shape, the generator and the options.
        shape: One row an image.
        generator: Where they come from. From a `PartGenerator` they are drawn for the whole batch
            and the rows of its part are returned; a shape of another number of rows is not.
        options: Such as dtype and device.
    """
    part = getattr(generator, "part", None)
    if part is None or shape[0] != part.rows:
        return draw(shape, generator=generator, **options)
    whole = draw((part.total, *shape[1:]), generator=generator, **options)
    return whole[part.start : part.stop]
