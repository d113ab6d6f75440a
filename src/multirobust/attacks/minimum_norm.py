"""Attacks that look for the closest adversarial image, and the model as they see it."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from multirobust.attacks.base import Attack, attacking, check_batch
from multirobust.attacks.objectives import at_least_float32
from multirobust.errors import InputError, lookup_error
from multirobust.threats import Threat
from multirobust.threats.projection import work_dtype
from multirobust.types import Images, Labels

__all__ = ["Finished", "MinimumNorm", "Queries", "no_gradient"]


class Finished(Exception):
    """No image is left to ask about: a search may end. Never leaves this package."""


class Queries(nn.Module):
    """A model that remembers, for each image, the closest adversarial image it was asked about.

    It answers for all images of a batch, but asks the model only about those that are open: an
    image is closed once an adversarial image within the radius is known, or one that no other can
    beat. So an attack that knows nothing of this spends nothing on an image that it has broken.

    Args:
        model: The classifier.
        x: Clean images (n, c, h, w), at least float32.
        y: True labels (n,).
        threat: Its distance says what is closest.
        radius: A distance at which to stop; 0 looks for the least.
    """

    def __init__(self, model: nn.Module, x: Images, y: Labels, threat: Threat, radius: float):
        super().__init__()
        self.model, self.x, self.y, self.threat, self.radius = model, x, y, threat, radius
        self.training = False
        """Of this module alone: foolbox warns of models in training mode."""
        self.best = x
        self.distance = torch.full((len(x),), torch.inf, dtype=torch.float64, device=x.device)
        self.failed = torch.zeros(len(x), dtype=torch.bool, device=x.device)

    @property
    def open(self) -> Tensor:
        """The images that are still asked about, their indices."""
        return ((self.distance > self.radius) & ~self.failed).nonzero().squeeze(1)

    def forward(self, points: Images) -> Tensor:
        """Return the logits of one point for each image of the batch, 0 for closed images.

        Raises:
            Finished: If no image is open.
        """
        rows = self.open
        if not len(rows):
            raise Finished
        logits = self.ask(points.index_select(0, rows), rows)
        return logits.new_zeros((len(points), logits.shape[1])).index_copy(0, rows, logits)

    def ask(self, points: Images, rows: Tensor) -> Tensor:
        """Return the logits of points for the images of these indices, at least float32.

        The logits are finite, and so is the gradient that they send back to the points, whatever
        the model does: 0 stands for NaN. An image whose logits were NaN has failed.

        Raises:
            InputError: If the points ask for a gradient and none leads from the logits to them.
        """
        if points.requires_grad:
            points = points.view_as(points)
            points.register_hook(lambda g: g.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        logits = at_least_float32(self.model(points))
        if points.requires_grad and not logits.requires_grad:
            raise no_gradient()
        self._remember(points.detach(), logits.detach(), rows)
        return logits.nan_to_num(nan=0.0, posinf=_HUGE, neginf=-_HUGE)

    def _remember(self, points: Tensor, logits: Tensor, rows: Tensor) -> None:
        distance = self.threat.distance(points.double(), self.x[rows].double())
        boxed = (points >= 0).flatten(1).all(1) & (points <= 1).flatten(1).all(1)
        fooled = (logits.argmax(1) != self.y[rows]) & boxed
        broken = logits.isnan().any(1)
        closer = fooled & ~broken & (distance < self.distance[rows])
        self.failed = self.failed.index_fill(0, rows[broken], True)
        self.best = self.best.index_copy(0, rows[closer], points[closer])
        self.distance = self.distance.index_copy(0, rows[closer], distance[closer])

    def fail(self, rows: Tensor) -> None:
        """Record that the attack cannot attack the images of these indices."""
        self.failed = self.failed.index_fill(0, rows, True)

    def result(self) -> Images:
        """Return the closest adversarial images: x where none is known, NaN for a failed image.

        An adversarial image within the radius that was found before the failure counts.
        """
        lost = self.failed & (self.distance > self.radius)
        return torch.where(lost[:, None, None, None], torch.nan, self.best)


@dataclass(frozen=True, kw_only=True)
class MinimumNorm(Attack, abc.ABC):
    """An attack that looks for the adversarial image of least distance, within the pixel box.

    Called, it stops for each image at the first adversarial image within the radius; where it finds
    none it returns the clean image. `search` goes on to the least distance that it can find.

    An image on which the attack fails comes back with NaN pixels: neither robust nor broken. That
    is one whose logits became NaN, and one for which an attack that needs an adversarial image to
    start from found none.

    Args:
        threat: Its norm is that of the distance, its radius that of the ball.
    """

    norms: ClassVar[tuple[str, ...]]
    """Of the threats that the attack can have."""

    threat: Threat

    def __post_init__(self) -> None:
        if self.threat.norm not in self.norms:
            raise lookup_error(f"norm of {type(self).__name__}", self.threat.norm, self.norms)

    @property
    def threats(self) -> tuple[Threat, ...]:
        """Its one threat."""
        return (self.threat,)

    @abc.abstractmethod
    def pursue(self, queries: Queries, generator: torch.Generator) -> None:
        """Ask about images until no more can be found, or `Finished` is raised.

        Args:
            queries: Knows the images and labels, and remembers what was found.
            generator: For every random choice.
        """

    def __call__(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """See `Attack.__call__`. Returns at least float32."""
        queries = self._run(model, x, y, self.threat.radius, generator)
        outside = (queries.distance > self.threat.radius) & ~queries.failed
        return torch.where(outside[:, None, None, None], queries.x, queries.result())

    def search(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        *,
        generator: torch.Generator | None = None,
    ) -> Images:
        """Return the closest adversarial images found, whatever their distance.

        The clean image where none was found, or where it is misclassified itself.

        Args:
            model: See `Attack.__call__`.
            x: See `Attack.__call__`.
            y: See `Attack.__call__`.
            generator: See `Attack.__call__`.
        """
        return self._run(model, x, y, 0.0, generator).result()

    def _run(
        self,
        model: nn.Module,
        x: Images,
        y: Labels,
        radius: float,
        generator: torch.Generator | None,
    ) -> Queries:
        check_batch(x, y)
        x = x.detach().to(work_dtype(x))
        generator = generator or torch.Generator(x.device).manual_seed(0)
        queries = Queries(model, x, y, self.threat, radius)
        with attacking(model), torch.no_grad():
            try:
                queries(x)
                self.pursue(queries, generator)
            except Finished:
                pass
        return queries


def no_gradient() -> InputError:
    """Word the error of a model through which no gradient passes: it would look robust."""
    return InputError(
        "model: its logits must depend differentiably on x, and no gradient leads back to the "
        "images; remove what detaches, rounds or disables gradients inside the model."
    )


_HUGE = 1e30
"""What stands for an infinite logit, so that differences of logits stay finite."""
