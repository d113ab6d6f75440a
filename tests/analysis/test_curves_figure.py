from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pytest

from multirobust.analysis.curves import CurveLine, CurvePanel, curves_figure
from multirobust.errors import InputError

SVG = "{http://www.w3.org/2000/svg}"


def line(name: str, top: float = 0.9) -> CurveLine:
    value = np.array([top, top / 2, 0.0])
    return CurveLine(
        name, np.array([0.0, 0.02, 0.05]), value, value * 0.9, value + 0.1 * (1 - value)
    )


def panel(norm: str = "linf", benchmark: float = 8 / 255, **options: float) -> CurvePanel:
    return CurvePanel(norm, benchmark, (line("weak", 0.5), line("strong", **options)))


def texts(svg: bytes) -> list[str | None]:
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_model_is_named_in_every_panel_with_its_accuracy_at_the_benchmark_best_first():
    shown = texts(curves_figure([panel(), panel("l2", 0.01)]))
    names = [text for text in shown if text and text.startswith(("weak", "strong"))]
    assert names == ["strong 45.0", "weak 25.0", "strong 90.0", "weak 50.0"]
    assert "Accuracy (%)" in shown


def test_a_linf_radius_of_whole_gray_levels_is_in_units_of_them():
    assert {"ℓ∞ radius (1/255)", "at 8/255"} <= {*texts(curves_figure([panel()]))}
    assert {"ℓ∞ radius", "at 0.03"} <= {*texts(curves_figure([panel("linf", 0.03)]))}
    assert {"ℓ₂ radius", "at 0.5"} <= {*texts(curves_figure([panel("l2", 0.5)]))}


def test_a_benchmark_beyond_the_last_radius_is_said_not_to_be_attacked():
    assert "strong not attacked" in texts(curves_figure([panel("l2", 0.5)]))


@pytest.mark.parametrize("form", ["svg", "png"])
def test_the_same_arrays_give_the_same_bytes(form):
    drawn = curves_figure([panel()], form=form)
    assert drawn == curves_figure([panel()], form=form)
    assert drawn.startswith({"svg": b"<?xml", "png": b"\x89PNG"}[form])


def test_what_cannot_be_drawn_is_an_input_error():
    one, two = np.array([0.5]), np.array([0.5, 0.4])
    for arrays in ((one, two, two, two), (one, one + 1, one, one), (-two[::-1] * 0,) + (two,) * 3):
        with pytest.raises(InputError, match="CurveLine 'm'"):
            CurveLine("m", *arrays)
    with pytest.raises(InputError, match="at least one line"):
        CurvePanel("l2", 0.5, ())
    with pytest.raises(InputError, match="benchmark radius above 0"):
        panel("l2", 0.0)
    with pytest.raises(InputError, match="at least one norm"):
        curves_figure([])
    with pytest.raises(InputError, match="form"):
        curves_figure([panel()], form="pdf")
