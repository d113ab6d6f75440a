"""Which attack a training step uses."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from multirobust.attacks.base import Attack
from multirobust.errors import InputError
from multirobust.types import Labels, Logits

__all__ = ["Always", "ErrorSampler", "Sampler", "UniformSampler"]


class Sampler(nn.Module, abc.ABC):
    """Chooses one attack of a set for each batch.

    Its random state and its counts are part of the state dict, so that a resumed run draws what the
    undisturbed run would have drawn.

    `last` is the index of the attack that was drawn last, None before the first draw.

    Args:
        attacks: The perturbation set S of Eq. 5.
        seed: Of its own random numbers, which live on the CPU: a draw without feedback never waits
            for a device.
    """

    def __init__(self, attacks: Sequence[Attack], *, seed: int = 0):
        super().__init__()
        if not attacks:
            raise InputError("Sampler: attacks must name at least one attack, got none.")
        self.attacks = tuple(attacks)
        self.draws = [0] * len(self.attacks)
        self.last: int | None = None
        self._random = torch.Generator().manual_seed(seed)

    @abc.abstractmethod
    def probabilities(self) -> list[float]:
        """Return how probable each attack is in the next draw; they sum to one."""

    def draw(self, *, again: bool = False) -> Attack:
        """Return the attack of the next batch and count it.

        Args:
            again: Return the last one once more and count nothing: for the rest of a batch that is
                attacked in several parts.
        """
        if again and self.last is not None:
            return self.attacks[self.last]
        weights = torch.tensor(self.probabilities(), dtype=torch.float64)
        point = torch.rand((), dtype=torch.float64, generator=self._random)
        index = int(torch.searchsorted(weights.cumsum(0), point, right=True))
        index = min(index, len(self.attacks) - 1)
        self.draws[index] += 1
        self.last = index
        return self.attacks[index]

    def observe(self, index: int, logits: Logits, y: Labels) -> None:
        """Learn how the model did on the images of one attack; by default nothing.

        Called after `draw`, with `last` as the index; a sampler that mixes attacks within a batch
        is told of each one. What it learns is a buffer or extra state.

        Args:
            index: Of the attack in `attacks`.
            logits: Of its adversarial images, (b, k), detached.
            y: True labels (b,).
        """

    def get_extra_state(self) -> dict[str, Any]:
        """Return what the state dict needs besides parameters: random state and counts."""
        return {"random": self._random.get_state(), "draws": list(self.draws)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Restore what `get_extra_state` returned.

        Raises:
            ValueError: If it is anything else.
        """
        draws = list(state["draws"]) if isinstance(state, dict) else []
        if [type(count) for count in draws] != [int] * len(self.attacks):
            raise ValueError("the counts of a sampler must be whole numbers, one for each attack")
        self._random.set_state(state["random"].cpu())
        self.draws = draws

    def extra_repr(self) -> str:
        """Name the attacks."""
        return ", ".join(repr(attack) for attack in self.attacks)


@final
class UniformSampler(Sampler):
    """Each attack with probability 1 / n, once a batch (Eq. 5)."""

    def probabilities(self) -> list[float]:
        """See `Sampler.probabilities`."""
        return [1 / len(self.attacks)] * len(self.attacks)


@final
class ErrorSampler(Sampler):
    """Each attack with a probability that grows with the robust error against it.

    p_k = (1 - floor) e_k^power / sum_j e_j^power + floor / n with e_k the running error. Until each
    attack has been observed, and where no attack finds an error, all are equally probable. The
    published rule is the default: the error over all images that an attack was drawn for since the
    start of the training, power 1, no floor.

    The counts are buffers on the device of the model, so that a draw waits for the last step.

    Args:
        attacks: The perturbation set; published: linf and l1.
        seed: See `Sampler`.
        rate: None averages over the whole run; otherwise the share of a moving average that the
            newest batch of an attack gets, with the bias of its start removed.
        power: Exponent of the error; 0 is uniform.
        floor: Share of the draws that stays uniform.

    References: Croce and Hein, Adversarial robustness against multiple and single lp-threat models
    via quick fine-tuning of robust classifiers, ICML 2022 (E-AT).
    """

    correct: Tensor
    seen: Tensor

    def __init__(
        self,
        attacks: Sequence[Attack],
        *,
        seed: int = 0,
        rate: float | None = None,
        power: float = 1.0,
        floor: float = 0.0,
    ):
        super().__init__(attacks, seed=seed)
        if rate is not None and not 0 < rate <= 1:
            raise InputError(
                f"ErrorSampler: rate must be a share in (0, 1], got {rate!r}; None averages over "
                "the whole run."
            )
        if not 0 <= power < float("inf"):
            raise InputError(
                f"ErrorSampler: power must be a finite number of at least 0, got {power!r}; 1 is "
                "published."
            )
        if not 0 <= floor <= 1:
            raise InputError(f"ErrorSampler: floor must be a share in [0, 1], got {floor!r}.")
        self.rate, self.power, self.floor = rate, power, floor
        self.register_buffer("correct", torch.zeros(len(self.attacks)))
        self.register_buffer("seen", torch.zeros(len(self.attacks)))

    def probabilities(self) -> list[float]:
        """See `Sampler.probabilities`."""
        correct, seen = torch.stack((self.correct, self.seen)).double().tolist()
        count = len(seen)
        uniform = [1 / count] * count
        if not all(seen):
            return uniform
        errors = [max(1 - c / s, 0.0) for c, s in zip(correct, seen, strict=True)]
        if not any(errors):
            return uniform
        weights = [error**self.power for error in errors]
        total = sum(weights)
        return [(1 - self.floor) * w / total + self.floor / count for w in weights]

    @torch.no_grad()
    def observe(self, index: int, logits: Logits, y: Labels) -> None:
        """See `Sampler.observe`. Does not wait for the device."""
        right = (logits.argmax(1) == y).to(self.correct.dtype)
        if self.rate is None:
            self.correct[index] += right.sum()
            self.seen[index] += len(y)
        else:
            self.correct[index].lerp_(right.mean(), self.rate)
            self.seen[index].lerp_(torch.ones_like(self.seen[index]), self.rate)


@final
class Always(Sampler):
    """The one attack there is.

    Args:
        attack: The attack.
    """

    def __init__(self, attack: Attack):
        super().__init__((attack,))

    def probabilities(self) -> list[float]:
        """See `Sampler.probabilities`."""
        return [1.0]
