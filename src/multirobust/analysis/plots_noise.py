"""The drawing of generated noise: one image a row, the noise and what each threat leaves of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from multirobust.analysis.canvas import sheet
from multirobust.analysis.noise import GeneratedNoise, amplified
from multirobust.analysis.plots import LABELS, WIDTH, printable
from multirobust.errors import InputError

__all__ = ["noise_gallery"]


def noise_gallery(generated: GeneratedNoise, *, rows: int = 4, name: str = "") -> str:
    """Draw images, their noise, and for each threat the noise left and the augmented image.

    Noise is amplified and signed: gray is none. All noise within a threat has one factor, which
    stands over its column; so has the noise before projection.

    Args:
        generated: The noise.
        rows: At most so many images, the first.
        name: Of the defense, for the title.

    Returns:
        An SVG document; the images are inside, each pixel as it is.

    Raises:
        InputError: If rows is not positive.
    """
    if rows < 1:
        raise InputError(f"rows must be 1 or more, got {rows!r}.")
    rows = min(rows, len(generated.images))
    columns = _columns(generated)
    side = WIDTH / max(len(columns), 5)
    title = f"Generated noise of {printable(name)}" if name else "Generated noise"
    size = (side * len(columns), 0.95 + side * rows)
    with sheet(*size, title=title, description=_words(generated)) as page:
        grid = page.figure.subplots(rows, len(columns), squeeze=False)
        for c, (heading, shown) in enumerate(columns):
            grid[0, c].set_title(heading, fontsize=7.5)
            for r in range(rows):
                _show(grid[r, c], shown[r])
        page.figure.supxlabel(_caption(generated), fontsize=8)
    return page.svg


def _columns(generated: GeneratedNoise) -> list[tuple[str, np.ndarray]]:
    factor = _factor(generated.noise)
    noise = amplified(generated.noise, factor)
    columns = [("clean", generated.images), (f"noise\n× {factor:g}", noise)]
    for key, result in generated.augmented.items():
        left = result.images - generated.images
        factor, label = _factor(left), LABELS.get(key, printable(key))
        columns.append((f"{label} noise\n× {factor:g}", amplified(left, factor)))
        columns.append((f"{label} image", result.images))
    return columns


def _show(axes: Any, image: np.ndarray) -> None:
    stored = np.rint(255 * np.moveaxis(image, 0, -1)).astype(np.uint8)
    shown = np.repeat(stored, 3, axis=-1) if stored.shape[-1] == 1 else stored
    axes.imshow(shown, interpolation="none")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)


def _factor(noise: np.ndarray) -> float:
    """Return the factor, 1, 2 or 5 times a power of ten, that shows 98 % of the noise unclipped."""
    size = float(np.quantile(np.abs(noise), 0.98)) or float(np.abs(noise).max())
    if size == 0:
        return 1.0
    wanted = 0.5 / size
    power = 10.0 ** np.floor(np.log10(wanted))
    return float(power * max(step for step in (1, 2, 5) if step * power <= wanted * (1 + 1e-9)))


def _caption(generated: GeneratedNoise) -> str:
    said = [
        f"{LABELS.get(key, printable(key))}: {100 * result.used:.0f} % of the radius used, "
        f"{100 * result.live:.0f} % of gradients live"
        for key, result in generated.augmented.items()
    ]
    share = f"{100 * generated.dependence:.1f} % of the noise's variance is due to the image"
    return "\n".join([*said, share])


def _words(generated: GeneratedNoise) -> str:
    return f"{len(generated.images)} images. " + "; ".join(_caption(generated).split("\n")) + "."
