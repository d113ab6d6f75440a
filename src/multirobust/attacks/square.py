"""Square: a random search that moves one square window at a time and asks for logits only.

Every row has its own window: place, size, signs and orientation are tensors of shape (b, 1, 1, 1)
that are compared with pixel indices, so one broadcast builds the masks of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, final

import torch
from torch import Tensor
from torch.nn import functional as F

from multirobust.attacks.engine import IterativeAttack, State
from multirobust.attacks.nearest import ends, nearest
from multirobust.attacks.objectives import Margin
from multirobust.attacks.streams import Stream, image_keys
from multirobust.errors import InputError, lookup_error
from multirobust.threats import Threat
from multirobust.types import Images, PerImage

__all__ = ["Square"]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
"""The share of the image that a window covers is halved after so many of 10,000 proposals."""


@final
@dataclass(frozen=True, kw_only=True)
class Square(IterativeAttack):
    """Square Attack: random windows, kept where they raise the margin of a wrong class.

    Costs one forward pass an iteration, the first for the random start, and no backward pass.

    Args:
        threat: The ball, of norm "linf", "l2" or "l1".
        iterations: Questions to the model for each row, at least 1. The schedule of window sizes
            is stretched to them.
        p_init: Share of the image's area that the first windows cover, in (0, 1].
        seed: The windows of an image follow from this number and the image alone, in any batch
            and any suite (see `Attack.seeded`). None: from the generator.
        restarts: How often each row is tried anew, at least 1.

    References: Andriushchenko, Croce, Flammarion and Hein, Square Attack: a query-efficient
    black-box adversarial attack via random search, ECCV 2020. In l1: Croce and Hein, Mind the box:
    l1-APGD for sparse adversarial attacks on image classifiers, ICML 2021.
    """

    iterations: int = 5000
    targets: int = field(default=0, init=False, repr=False)
    p_init: float = 0.8
    seed: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.p_init <= 1:
            raise InputError(
                "Square: p_init must be a share of the image's area in (0, 1], "
                f"got {self.p_init!r}; the published value is 0.8."
            )
        if self.threat.norm not in _MOVES:
            raise lookup_error("norm of Square's threat", self.threat.norm, _MOVES)

    def seeded(self, seed: int) -> Square:
        """See `Attack.seeded`."""
        return replace(self, seed=seed)

    def begin(self, state: State, generator: torch.Generator) -> State:
        """See `IterativeAttack.begin`. Adds the best images, their margin, and the next query."""
        x, key = state["x"], self._keys(state, generator)
        proposals = torch.zeros_like(key)
        return {
            **state,
            **ends(x, self.threat),
            "best": x,
            "margin": x.new_full((len(x),), -torch.inf),
            "key": key,
            "proposals": proposals,
            "query": _MOVES[self.threat.norm].start(x, self.threat, Stream(key, proposals)),
        }

    def query(self, state: State) -> Images:
        """See `IterativeAttack.query`. The proposal, within threat and box by projection."""
        return state["query"]

    def advance(
        self, state: State, logits: Tensor, gradient: Tensor | None, generator: torch.Generator
    ) -> State:
        """See `IterativeAttack.advance`. A proposal that does not raise the margin is dropped."""
        margin = Margin().of(logits, state["y"], state["target"]).to(state["margin"])
        better = margin > state["margin"]  # never for NaN
        best = torch.where(better[:, None, None, None], state["query"], state["best"])
        share = self._share(state["proposals"])
        move = _MOVES[self.threat.norm]
        state = {
            **state,
            "best": best,
            "margin": torch.where(better, margin, state["margin"]),
            "proposals": state["proposals"] + 1,
        }
        stream = Stream(state["key"], state["proposals"])
        return state | {"query": move.propose(state, share, self.threat, stream)}

    def _keys(self, state: State, generator: torch.Generator) -> Tensor:
        """Return what the random numbers of each row follow from, (b,)."""
        x = state["x"]
        if self.seed is None:
            return torch.randint(1 << 62, (len(x),), generator=generator, device=x.device)
        return image_keys(x, self.seed) + state["restart"]

    def _share(self, proposals: Tensor) -> PerImage:
        """Return the share of the area that the next window of each row covers, (b,)."""
        reached = proposals * 10_000 // self.iterations
        steps = torch.tensor(_HALVINGS, device=proposals.device)
        halvings = (reached[:, None] > steps).sum(1)
        return self.p_init * torch.exp2(-halvings.float())


class _Move(Protocol):
    """How Square starts and moves in one norm."""

    def start(self, x: Images, threat: Threat, stream: Stream) -> Images:
        """Return the first query of each row."""
        ...

    def propose(self, state: State, share: PerImage, threat: Threat, stream: Stream) -> Images:
        """Return the next query of each row from its "best" image and its window's share."""
        ...


@final
@dataclass(frozen=True)
class _Stripes:
    """In linf: vertical stripes, then windows of one sign a channel, all at the ball's corners."""

    def start(self, x: Images, threat: Threat, stream: Stream) -> Images:
        """See `_Move.start`."""
        signs = stream.signs(x.shape[1], 1, x.shape[3], like=x)
        return threat.project(x + threat.radius * signs, x)

    def propose(self, state: State, share: PerImage, threat: Threat, stream: Stream) -> Images:
        """See `_Move.propose`. Twice the radius leads to the far side from anywhere in the ball."""
        x = state["x"]
        window = _Window.draw(x, _side(share, x), stream)
        signs = stream.signs(x.shape[1], 1, 1, like=x)
        return nearest(
            torch.addcmul(state["best"], 2 * threat.radius * signs, window.mask()), state, threat
        )


@final
@dataclass(frozen=True)
class _Pyramids:
    """In l2 and l1: windows of two pyramids of opposite sign, paid for by another window.

    Args:
        order: Of the norm, 1 or 2.
        decay: From ring k to ring k - 1 around its middle, a pyramid rises by 1 / k ** decay.
        excess: A window asks for channels ** excess times its budget. The projection then takes the
            surplus from every pixel alike, which empties the weakest (the published code in l1).
    """

    order: int
    decay: int
    excess: int

    def start(self, x: Images, threat: Threat, stream: Stream) -> Images:
        """See `_Move.start`. As many tiles as fit, each a fifth of the image wide."""
        c, h, w = x.shape[1:]
        side = max(1, min(h, w) // 5)
        tiles = (h // side, w // side)
        tile = self._pyramids(_Window.whole(x, side))
        turned = stream.signs(1, *tiles, like=x) > 0
        delta = torch.where(
            _magnified(turned, side), tile.mT.repeat(1, 1, *tiles), tile.repeat(1, 1, *tiles)
        )
        delta = delta * _magnified(stream.signs(c, *tiles, like=x), side)
        top, left = (h - delta.shape[2]) // 2, (w - delta.shape[3]) // 2
        whole = torch.zeros_like(x)
        whole[:, :, top : top + delta.shape[2], left : left + delta.shape[3]] = delta
        return threat.project(x + whole, x)

    def propose(self, state: State, share: PerImage, threat: Threat, stream: Stream) -> Images:
        """See `_Move.propose`.

        The window takes up what the other window and the ball have left, channel by channel.
        """
        x = state["x"]
        side = _side(share, x, least=3, odd=True)
        window, other = (_Window.draw(x, side, stream) for _ in range(2))
        inside = window.mask()
        emptied = torch.maximum(inside, other.mask())
        delta = state["best"] - x
        signs = stream.signs(x.shape[1], 1, 1, like=x)
        pattern = signs * self._pyramids(window.turned(stream))
        pattern = self._unit(pattern + self._unit(delta * inside))
        unused = (threat.radius**self.order - self._power(delta, dim=(1, 2, 3))).clamp(min=0)
        budget = (self._power(delta * emptied) + unused / x.shape[1]) ** (1 / self.order)
        budget = budget * x.shape[1] ** self.excess
        delta = delta * (1 - emptied) + pattern * budget
        return threat.project(x + delta, x)

    def _pyramids(self, window: _Window) -> Tensor:
        """Return the pattern of each window, (b, 1, h, w), of norm 1 and zero outside."""
        half = window.side // 2
        upper = window.rows < half
        height = torch.where(upper, half, window.side - half)
        row = torch.where(upper, window.rows, window.rows - half)
        ring = torch.maximum((row - height // 2).abs(), (window.columns - window.side // 2).abs())
        steps = torch.arange(1, max(ring.shape[2:]) + 2, device=ring.device)
        level = F.pad(steps.to(window.dtype).pow(-self.decay).cumsum(0), (1, 0))
        inside, upper = window.mask(), upper.to(window.dtype)
        rise = level[half + 1] - level[torch.minimum(ring, half + 1)]
        first, second = (self._unit(rise * inside * part) for part in (upper, 1 - upper))
        return self._unit(first - second)

    def _power(self, delta: Tensor, dim: tuple[int, ...] = (2, 3)) -> Tensor:
        """Return the norm of delta to the power of its order."""
        return delta.abs().pow(self.order).sum(dim, keepdim=True)

    def _unit(self, delta: Tensor) -> Tensor:
        """Return delta with norm 1 in every channel, or zero where it is zero."""
        norm = torch.linalg.vector_norm(delta, self.order, (2, 3), keepdim=True)
        return delta / torch.where(norm > 0, norm, 1)


_MOVES: dict[str, _Move] = {
    "linf": _Stripes(),
    "l2": _Pyramids(order=2, decay=2, excess=0),
    "l1": _Pyramids(order=1, decay=4, excess=1),
}
"""Norm of a threat to the moves published for it."""


@final
@dataclass(frozen=True)
class _Window:
    """A square of each row, as every pixel's row and column counted from the square's corner.

    Args:
        rows: (b, 1, h, 1), or (b, 1, h, w) if some squares are turned; negative above the square.
        columns: (b, 1, 1, w), or (b, 1, h, w).
        side: Length of an edge in pixels, (b, 1, 1, 1).
        dtype: Of masks and patterns.
    """

    rows: Tensor
    columns: Tensor
    side: Tensor
    dtype: torch.dtype

    @classmethod
    def draw(cls, x: Images, side: Tensor, stream: Stream) -> _Window:
        """Return a window of the given sides, (b,), at a uniform place of each image."""
        h, w = x.shape[2:]
        place = stream.uniform(2).T
        room = torch.stack((h - side, w - side))
        top, left = (place * (room + 1)).long().minimum(room)[:, :, None, None, None]
        rows = torch.arange(h, device=x.device)[:, None] - top
        columns = torch.arange(w, device=x.device) - left
        return cls(rows, columns, side[:, None, None, None], x.dtype)

    @classmethod
    def whole(cls, x: Images, side: int) -> _Window:
        """Return one window that is an image of its own, side by side pixels."""
        steps = torch.arange(side, device=x.device)
        size = torch.full((1, 1, 1, 1), side, device=x.device)
        return cls(steps[None, None, :, None], steps[None, None, None], size, x.dtype)

    def turned(self, stream: Stream) -> _Window:
        """Return the windows with rows and columns exchanged in half of them."""
        exchange = stream.signs(1, 1, 1, like=self.side) > 0
        rows = torch.where(exchange, self.columns, self.rows)
        columns = torch.where(exchange, self.rows, self.columns)
        return _Window(rows, columns, self.side, self.dtype)

    def mask(self) -> Tensor:
        """Return 1 inside the windows and 0 outside, (b, 1, h, w)."""
        row = (self.rows >= 0) & (self.rows < self.side)
        column = (self.columns >= 0) & (self.columns < self.side)
        return (row & column).to(self.dtype)


def _side(share: PerImage, x: Images, *, least: int = 1, odd: bool = False) -> Tensor:
    """Return the edge in pixels, (b,), of a square that covers a share of the image's area.

    It is at least `least`, made odd if asked, and never larger than the image.
    """
    h, w = x.shape[2:]
    side = (share * (h * w)).sqrt().round().long().clamp(min=least)
    side = side + (side + 1) % 2 if odd else side
    return side.clamp(max=min(h, w))


def _magnified(tiles: Tensor, side: int) -> Tensor:
    """Return every value of (b, c, m, n) repeated over side by side pixels."""
    return tiles.repeat_interleave(side, dim=2).repeat_interleave(side, dim=3)
