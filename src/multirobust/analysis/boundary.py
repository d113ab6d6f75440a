"""Table 5: penultimate features of two classes in two dimensions, and the decision between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from multirobust.attacks import Attack, attacking
from multirobust.attacks.base import check_batch
from multirobust.errors import InputError
from multirobust.types import Images, Labels, Logits

__all__ = ["Boundary", "TwoClasses", "decision_boundary"]

NEIGHBORS = 5
"""The distance to this neighbor is the width of the kernel at a place of the plane."""


@final
@dataclass(frozen=True, eq=False)
class Boundary:
    """Images of two classes and their attacked versions, embedded in one plane.

    Args:
        classes: The two classes; 0 and 1 below stand for them.
        versions: "clean" and the names of the attacks, v of them.
        labels: True class of each image, 0 or 1, int64, shape (n,).
        points: Places in the plane, float64, shape (v, n, 2).
        decisions: What the model says of each version, 0 or 1, int64, shape (v, n).
        x: Horizontal positions of the grid, ascending, shape (r,).
        y: Vertical positions, shape (r,).
        field: Estimated tanh(margin / 2) on the grid, in [-1, 1], positive on the side of class 1,
            shape (r, r); rows are positions of y.
        fidelity: Share of all points that lie on the side of the field that the model decides for.
    """

    classes: tuple[int, int]
    versions: tuple[str, ...]
    labels: np.ndarray
    points: np.ndarray
    decisions: np.ndarray
    x: np.ndarray
    y: np.ndarray
    field: np.ndarray
    fidelity: float

    @property
    def errors(self) -> dict[str, float]:
        """Share of the images that the model gets wrong, by version. Exact, not from the plane."""
        wrong = self.decisions != self.labels
        return {name: float(row.mean()) for name, row in zip(self.versions, wrong, strict=True)}


@final
class TwoClasses(nn.Module):
    """A classifier between two classes: those two logits of a model of more.

    Args:
        model: Maps images to logits (b, k).
        classes: Two of its classes.
    """

    def __init__(self, model: nn.Module, classes: tuple[int, int]):
        super().__init__()
        self.model = model
        self.classes = classes

    def forward(self, x: Tensor) -> Logits:
        """Return two logits for each image, (b, 2)."""
        return self.model(x)[:, list(self.classes)]


def decision_boundary(
    model: nn.Module,
    images: Images,
    labels: Labels,
    attacks: Mapping[str, Attack],
    *,
    classes: tuple[int, int],
    generator: torch.Generator | None = None,
    seed: int = 0,
    perplexity: float = 30.0,
    resolution: int = 60,
    batch_size: int = 512,
) -> Boundary:
    """Embed the penultimate features of two classes, clean and attacked, and the decision there.

    The model is read as a classifier between the two classes, and attacked as such. t-SNE puts all
    versions of all images in one plane. As it maps no plane back to features, the decision between
    the points is estimated: the mean of tanh(margin / 2) over all points with Gaussian weights, as
    wide as the fifth neighbor is away. The margin is logit 1 minus logit 0, so that this is the
    probability of class 1 minus that of class 0.

    Args:
        model: A classifier with `features(x)` and a linear `head`, such as `models.Classifier`.
        images: Images (b, c, h, w) in [0, 1]; those of other classes are left out.
        labels: True classes (b,).
        attacks: By the name that heads their column.
        classes: Two different classes of the model.
        generator: Of the attacks; without one, each has a fresh one with seed 0.
        seed: Of t-SNE, which starts from the first two principal components.
        perplexity: Of t-SNE; cut to a third of the points.
        resolution: Positions of the grid in each direction, at least 2.
        batch_size: Images a pass.

    Raises:
        InputError: If an argument breaks these rules, a class has no image, or all features are
            equal.

    References: Madaan, Shin and Hwang, ICML 2021, Table 5; van der Maaten and Hinton, Visualizing
    data using t-SNE, JMLR 2008.
    """
    check_batch(images, labels)
    _check(model, classes, resolution, "clean" in attacks)
    x, y = _of_two(images, labels, classes)
    pair = TwoClasses(model, classes)
    with attacking(pair, "running"):
        shown = {"clean": x} | {
            name: attack.run(pair, x, y, batch_size=batch_size, generator=generator)
            for name, attack in attacks.items()
        }
        features, margin = _read(model, torch.cat(list(shown.values())), classes, batch_size)
    plane = _embedded(features, seed, perplexity)
    squashed, decisions = np.tanh(margin / 2), (margin > 0).astype(np.int64)
    low, high = plane.min(0), plane.max(0)
    border = 0.06 * (high - low)
    axes = [np.linspace(low[i] - border[i], high[i] + border[i], resolution) for i in (0, 1)]
    grid = np.stack(np.meshgrid(*axes), axis=-1)
    return Boundary(
        classes=classes,
        versions=tuple(shown),
        labels=y.cpu().numpy(),
        points=plane.reshape(len(shown), len(x), 2),
        decisions=decisions.reshape(len(shown), len(x)),
        x=axes[0],
        y=axes[1],
        field=_smooth(plane, squashed, grid.reshape(-1, 2)).reshape(resolution, resolution),
        fidelity=float(((_smooth(plane, squashed, plane) > 0) == (decisions == 1)).mean()),
    )


def _of_two(images: Tensor, labels: Tensor, classes: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the images of two classes, with the labels 0 and 1."""
    for label in classes:
        if not bool((labels == label).any()):
            raise InputError(f"images must show both classes {classes}, got none of {label}.")
    chosen = (labels == classes[0]) | (labels == classes[1])
    return images[chosen], (labels[chosen] == classes[1]).long()


@torch.no_grad()
def _read(
    model: Any, x: Tensor, classes: tuple[int, int], batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return features (m, d) and logit differences, class 1 minus class 0, (m,), float64."""
    features = torch.cat([model.features(part) for part in x.split(batch_size)])
    logits = model.head(features).double().cpu()
    found = features.double().cpu().numpy(), (logits[:, classes[1]] - logits[:, classes[0]]).numpy()
    if not all(np.isfinite(numbers).all() for numbers in found):
        raise InputError("model must have finite features and logits, got NaN or infinity.")
    return found


def _embedded(features: np.ndarray, seed: int, perplexity: float) -> np.ndarray:
    """Return t-SNE of features (m, d) as float64 (m, 2); the same on any number of cores."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if not np.ptp(features, axis=0).any():
        raise InputError("model must have features that differ, got the same for all images.")
    embedding = TSNE(
        n_components=2,
        init="pca",
        perplexity=min(perplexity, (len(features) - 1) / 3),
        random_state=seed,
        n_jobs=1,
    )
    with threadpool_limits(1):
        return embedding.fit_transform(features).astype(np.float64)


def _smooth(points: np.ndarray, values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the mean of values (m,) with Gaussian weights around each place (q, 2)."""
    squares = _squared_distances(places, points)
    neighbor = min(NEIGHBORS, len(points)) - 1
    width = np.partition(squares, neighbor, axis=1)[:, neighbor, None]
    weights = np.exp(-squares / np.where(width > 0, width, 1))
    return weights @ values / weights.sum(1)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T
    return np.maximum(squares, 0)


def _check(model: object, classes: tuple[int, int], resolution: int, taken: bool) -> None:
    if not callable(getattr(model, "features", None)) or not callable(getattr(model, "head", None)):
        raise InputError(
            "model must have features(x) and head(features), as models.Classifier has, got "
            f"{type(model).__name__}; the features cannot be found in any other model."
        )
    known = getattr(getattr(model, "head", None), "out_features", max(classes) + 1)
    if classes[0] == classes[1] or not all(0 <= label < known for label in classes):
        raise InputError(f"classes must be two different classes of {known}, got {classes!r}.")
    if resolution < 2:
        raise InputError(f"resolution must be 2 or more, got {resolution!r}.")
    if taken:
        raise InputError("attacks: 'clean' stands for the images as they are; use another name.")
