"""What the ranks of a training do together in every step, and how they check each other."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, distributed, nn

from multirobust.attacks import PassMeter
from multirobust.config import TrainingConfig
from multirobust.data import Batch
from multirobust.errors import TrainingError
from multirobust.processes import launched
from multirobust.ranks import Part, PartGenerator, parts, rank, ranks, summed
from multirobust.training.runtime import Runtime

__all__ = ["Share", "Team", "digest", "losing_a_rank", "together"]


@final
class Share:
    """What this rank has of one batch.

    Args:
        whole: The batch of all ranks, the same on each.
        rounds: How many parts its own images are taken in.
        generator: Of the step, the same on each rank.
    """

    def __init__(self, whole: Batch, *, rounds: int, generator: torch.Generator):
        options = {"rank": rank(), "ranks": ranks()}
        (self.part,) = parts(len(whole), **options)
        self.batch = self._taken(whole, self.part)
        self.rounds = [
            self._taken(whole, part) for part in parts(len(whole), **options, rounds=rounds)
        ]
        self._start = generator
        self._sources: list[torch.Generator] = []

    @staticmethod
    def _taken(whole: Batch, part: Part) -> Batch:
        return whole if part.rows == part.total else whole.take(part)

    def source(self, batch: Batch) -> torch.Generator:
        """Return the random numbers for crafting the views of a round."""
        chosen = self._start if batch.part is None else PartGenerator.of(batch.part, self._start)
        self._sources.append(chosen)
        return chosen

    @property
    def adapting(self) -> torch.Generator:
        """The random numbers for `Defense.adapt`: those after what `craft` drew."""
        last = self._sources[-1]
        if len(self.rounds) == 1:
            return last
        return PartGenerator.of(self.part, last)

    @property
    def divided(self) -> bool:
        """Whether each rank has images of its own; all have all of a very small batch."""
        return self.part.rows < self.part.total

    @property
    def weight(self) -> float:
        """Of this rank's means among those of all ranks."""
        return self.part.share if self.divided else 1 / ranks()

    def scaled(self, loss: Tensor, batch: Batch) -> Tensor:
        """Return what to differentiate for the mean loss of a round.

        Rounds add their gradients, and those of the ranks are averaged.
        """
        part = batch.place
        if part.rows == part.total:
            return loss
        return loss * (part.share * (ranks() if self.divided else 1))


@final
class Team:
    """The ranks of one training, from the view of one of them.

    Args:
        model: Its floating buffers are averaged after each step.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._asked = False
        self._passes: Tensor | None = None
        self._heard: list[Tensor] = []

    @torch.no_grad()
    def settle(
        self, terms: Mapping[str, Tensor], share: Share, meter: PassMeter, since: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Average over the images of all ranks what BatchNorm noted and what is reported.

        Args:
            terms: Means over this rank's images.
            share: What this rank had of the batch.
            meter: Has counted the passes of this rank; they are added up over all for `collect`.
            since: Its forward and backward passes before the step.

        Returns:
            The means over the whole batch.
        """
        if ranks() == 1:
            return dict(terms)
        noted = tuple(buffer for buffer in self.model.buffers() if buffer.is_floating_point())
        asked = torch.tensor(float(self._asked), device=next(self.model.parameters()).device)
        weighted = (value.detach().double() * share.weight for value in terms.values())
        passes = meter.forwards - since[0], meter.backwards - since[1]
        meter.forwards, meter.backwards = since
        counted = torch.tensor(passes, dtype=torch.float64, device=asked.device)
        counted = counted if share.divided else counted / ranks()
        shares = (buffer * share.weight for buffer in noted)
        totals = list(summed((*shares, *weighted, counted, asked.double())))
        for buffer in noted:
            buffer.copy_(totals.pop(0))
        self._heard = [*self._heard[-1:], totals.pop()]
        counted = totals.pop()
        self._passes = counted if self._passes is None else self._passes + counted
        return dict(zip(terms, totals, strict=True))

    def collect(self, meter: PassMeter) -> None:
        """Give a meter the passes of all ranks since the last time; this waits for the device."""
        if self._passes is not None:
            forwards, backwards = self._passes.tolist()
            meter.forwards += round(forwards)
            meter.backwards += round(backwards)
            self._passes = None

    def stopping(self, asked: bool) -> bool:
        """Whether all ranks are to stop after this step: two steps after one of them was asked to.

        Reading what was said in the step before last keeps the host from waiting for this one.
        """
        if ranks() == 1:
            return asked
        self._asked |= asked
        return len(self._heard) == 2 and self._heard[0].item() > 0

    def check_same(self, states: Mapping[str, Any]) -> None:
        """Compare states of all ranks.

        Raises:
            TrainingError: If one differs from that of rank 0, on every rank.
        """
        if ranks() == 1:
            return
        own = {name: digest(state) for name, state in states.items()}
        everyone: list[Any] = [None] * ranks()
        distributed.all_gather_object(everyone, own)
        for name in own:
            others = [r for r, theirs in enumerate(everyone) if theirs[name] != everyone[0][name]]
            if others:
                raise TrainingError(
                    f"The state of the {name} must be the same on every device, got another one on "
                    f"rank {', '.join(map(str, others))} of {ranks()} than on rank 0. The last "
                    "checkpoint is from before; use devices of one kind, and in a defense of your "
                    "own sum over the ranks what it learns from (batch.place.summed)."
                )


@contextlib.contextmanager
def together(config: TrainingConfig) -> Iterator[None]:
    """Join the processes that this one was started with, if there are any, for several runs.

    Raises:
        InputError: If they are not as many as asked for.
        TrainingError: If one of them is lost.
    """
    if launched() is None:
        yield
        return
    with losing_a_rank():
        Runtime(config.device, config.precision, devices=config.devices)
        yield
        distributed.barrier()
    distributed.destroy_process_group()


def digest(state: Any) -> str:
    """Return the SHA-256 of a state dict: of its names, and of every tensor's bytes."""
    hashed = hashlib.sha256()
    _feed(state, hashed)
    return hashed.hexdigest()


def _feed(tree: Any, hashed: Any) -> None:
    if isinstance(tree, Tensor):
        flat = tree.detach().cpu().contiguous()
        hashed.update(f"{flat.dtype} {tuple(flat.shape)}".encode())
        hashed.update(flat.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(tree, Mapping):
        for name, value in tree.items():
            hashed.update(repr(name).encode())
            _feed(value, hashed)
    elif isinstance(tree, (list, tuple)):
        for value in tree:
            _feed(value, hashed)
    else:
        hashed.update(repr(tree).encode())


@contextlib.contextmanager
def losing_a_rank() -> Iterator[None]:
    """Turn what the transport says when another process has gone into one clear error.

    Raises:
        TrainingError: In place of such an error.
    """
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, distributed.DistError) or any(
            word in str(error).lower() for word in ("gloo", "nccl", "connection", "process group")
        )
        if ranks() == 1 or not lost:
            raise
        raise TrainingError(
            f"Rank {rank()} of {ranks()} has lost another one, whose own message says why it "
            "ended. The last checkpoint stays: run the same command again to go on, on any number "
            "of devices."
        ) from error
