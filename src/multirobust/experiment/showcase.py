"""The report of runs: what it shows of each, and where that comes from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from multirobust.analysis import plots
from multirobust.data import Data
from multirobust.errors import InputError
from multirobust.experiment.gallery import gallery_of
from multirobust.experiment.histories import training_section
from multirobust.experiment.landscapes import landscape_sections
from multirobust.experiment.results import result_of
from multirobust.experiment.robustness import robustness_section
from multirobust.experiment.runs import Run
from multirobust.report import standard_figures, write_report

__all__ = ["report_runs"]


def report_runs(
    runs: Sequence[Run],
    path: Path,
    *,
    data: Data | None = None,
    images: int = 3,
    suite: str | None = None,
    analyses: bool = False,
    notes: Sequence[str] = (),
) -> None:
    """Write the report of evaluated runs.

    What the runs keep beside the evaluation is shown where it is there: robustness curves, and
    the metrics of the training.

    Args:
        runs: Trained on the same data and evaluated with the same suite.
        path: The HTML file.
        data: The data of the runs, for the gallery and the analyses; None leaves both out.
        images: How many test images the gallery shows for each defense; 0 leaves it out.
        suite: Which evaluation, as in `result_of`.
        analyses: Whether to compute loss surfaces and decision boundaries, of the first seed of
            each defense.
        notes: Sentences under the headline.

    Raises:
        InputError: If the runs do not share one data set.
        RunError: If a run has no such evaluation, or the file cannot be written.
    """
    names = sorted({run.recipe.data.name for run in runs})
    if data is not None and len(names) > 1:
        raise InputError(
            f"runs: the images of a report need one data set, these have {', '.join(names)}; "
            "report each alone, or use --images 0."
        )
    results = [result_of(run, suite) for run in runs]
    figures = standard_figures(results, plots.per_norm_bars, plots.union_against_cost)
    first = {run.defense: run for run in reversed(runs)}
    shown = [first[name] for name in dict.fromkeys(run.defense for run in runs)]
    parts = [robustness_section(runs), training_section(shown)]
    gallery = None
    if data is not None and images:
        gallery = {run.defense: gallery_of(run, data, images) for run in shown}
    if data is not None and analyses:
        parts += landscape_sections(shown, data)
    sections = [part for part in parts if part is not None]
    write_report(results, path, figures=figures, sections=sections, gallery=gallery, notes=notes)
