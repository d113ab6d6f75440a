"""Views of finished runs for people: comparison tables and the HTML report."""

from multirobust.report.rendering import latex, markdown, text
from multirobust.report.tables import RunResult, Table, comparison

__all__ = ["RunResult", "Table", "comparison", "latex", "markdown", "text"]
