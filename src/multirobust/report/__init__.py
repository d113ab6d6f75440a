"""Views of finished runs for people: comparison tables and the HTML report."""

from multirobust.report.breakdown import attack_table, breakdown
from multirobust.report.figures import (
    Figure,
    Section,
    bar_arrays,
    cost_arrays,
    number_table,
    standard_figures,
)
from multirobust.report.gallery import GalleryCell, GalleryRow, amplified
from multirobust.report.headline import findings
from multirobust.report.html import render_page, write_report
from multirobust.report.record import read_record, write_record
from multirobust.report.rendering import latex, markdown, text
from multirobust.report.tables import Cell, Column, Row, RunResult, Table, comparison, duration

__all__ = [
    "Cell",
    "Column",
    "Figure",
    "GalleryCell",
    "GalleryRow",
    "Row",
    "RunResult",
    "Section",
    "Table",
    "amplified",
    "attack_table",
    "bar_arrays",
    "breakdown",
    "comparison",
    "cost_arrays",
    "duration",
    "findings",
    "latex",
    "markdown",
    "number_table",
    "read_record",
    "render_page",
    "standard_figures",
    "text",
    "write_record",
    "write_report",
]
