"""The drawing of decision boundaries: defenses as rows, clean and attacked images as columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from multirobust.analysis.boundary import Boundary
from multirobust.analysis.canvas import sheet
from multirobust.analysis.plots import LABELS, WIDTH, printable
from multirobust.errors import InputError

__all__ = ["decision_boundaries"]

TINTS = ("#d3e7f5", "#fbe6c0")
EDGES = ("#00507d", "#8f5f00")
MARKERS = ("o", "^")


def decision_boundaries(
    boundaries: Mapping[str, Boundary], *, names: Sequence[str] | None = None
) -> str:
    """Draw the embedded points of every version over the side that the field predicts.

    The shape and color of a point are its true class; it is filled where the model errs. Over each
    panel stands the exact error, at the left the defense with the fidelity of its background.

    Args:
        boundaries: By defense, from top to bottom; all with the same versions.
        names: Of the classes of the data, for the legend; without, they are numbered.

    Returns:
        An SVG document.

    Raises:
        InputError: If there is nothing to draw, or versions or classes differ.
    """
    kinds = {(boundary.versions, boundary.classes) for boundary in boundaries.values()}
    if len(kinds) != 1:
        raise InputError(
            "boundaries: needs one defense or more, all with the same versions and classes, got "
            f"{sorted(kinds)}."
        )
    ((versions, classes),) = kinds
    called = [printable(names[label]) if names else str(label) for label in classes]
    side = min(2.2, (WIDTH - 0.4) / len(versions))
    title = f"Decision boundary between classes {called[0]} and {called[1]}"
    size = (0.5 + side * len(versions), 0.5 + (side + 0.12) * len(boundaries))
    with sheet(*size, title=title, description=_words(boundaries)) as page:
        grid = page.figure.subplots(len(boundaries), len(versions), squeeze=False)
        for axes, (name, boundary) in zip(grid, boundaries.items(), strict=True):
            for panel, version in zip(axes, range(len(versions)), strict=True):
                _draw_panel(panel, boundary, version)
            side_label = f"{printable(name)}\nfidelity {100 * boundary.fidelity:.0f} %"
            axes[0].set_ylabel(side_label, fontsize=8.5)
        page.figure.legend(
            handles=_legend(called), loc="outside lower center", ncols=4, frameon=False, fontsize=8
        )
    return page.svg


def _draw_panel(axes: Any, boundary: Boundary, version: int) -> None:
    name = boundary.versions[version]
    place = (boundary.x, boundary.y, boundary.field)
    axes.set_facecolor(TINTS[0] if boundary.field.min() < 0 else TINTS[1])
    if boundary.field.min() < 0 < boundary.field.max():
        axes.contourf(*place, levels=[0, 1.001], colors=[TINTS[1]])
        axes.contour(*place, levels=[0], colors="#444444", linewidths=0.9)
    points, wrong = boundary.points[version], boundary.decisions[version] != boundary.labels
    for label, (marker, edge) in enumerate(zip(MARKERS, EDGES, strict=True)):
        for errs in (False, True):
            chosen = points[(boundary.labels == label) & (wrong == errs)]
            axes.scatter(
                chosen[:, 0], chosen[:, 1], s=11, marker=marker, linewidths=0.6, edgecolors=edge,
                facecolors=edge if errs else "white", zorder=3 + errs,
            )  # fmt: skip
    error = boundary.errors[name]
    axes.set_title(f"{LABELS.get(name, printable(name))}: error {100 * error:.1f} %", fontsize=8.5)
    ends = {"xlim": boundary.x[[0, -1]], "ylim": boundary.y[[0, -1]]}
    axes.set(xticks=[], yticks=[], **ends)
    axes.set_box_aspect(1)


def _legend(called: Sequence[str]) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D(
            [], [], linestyle="", marker=marker, markersize=4.5, markeredgewidth=0.7,
            markeredgecolor=edge, markerfacecolor=edge if errs else "white",
            label=f"class {name}, {'wrong' if errs else 'right'}",
        )
        for errs in (False, True)
        for name, marker, edge in zip(called, MARKERS, EDGES, strict=True)
    ]  # fmt: skip
    sides = zip(called, TINTS, strict=True)
    return [*handles, *(Patch(color=tint, label=f"decided for {name}") for name, tint in sides)]


def _words(boundaries: Mapping[str, Boundary]) -> str:
    said = []
    for name, boundary in boundaries.items():
        errors = ", ".join(f"{key} {100 * share:.1f} %" for key, share in boundary.errors.items())
        said.append(f"{name}: errors {errors}; fidelity {100 * boundary.fidelity:.0f} %.")
    count = np.size(next(iter(boundaries.values())).labels)
    return f"t-SNE of the penultimate features of {count} images. " + " ".join(said)
