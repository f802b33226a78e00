"""Reports, comparisons and matrices as people read them: in the terminal, in a README, on a page."""

from __future__ import annotations

from edgeclip.bench.cells import Matrix
from edgeclip.bench.comparison import Comparison
from edgeclip.bench.render import html, html_compared, markdown, text
from edgeclip.bench.report import Report

Shown = Report | Comparison | Matrix


def to_text(found: Shown, width: int = 80) -> str:
    """A summary for the terminal, `width` columns wide."""
    if isinstance(found, Report):
        return text.of_report(found, width)
    return text.of_comparison(found, width) if isinstance(found, Comparison) else text.of_matrix(found, width)


def to_markdown(found: Shown) -> str:
    """Tables for a README."""
    if isinstance(found, Report):
        return markdown.of_report(found)
    return markdown.of_comparison(found) if isinstance(found, Comparison) else markdown.of_matrix(found)


def to_html(found: Shown, sides: tuple[Report, Report] | None = None) -> str:
    """One page that needs nothing beside it.

    Args:
        sides: of a comparison, the reports of A and B, for their histograms.
    """
    if isinstance(found, Report):
        return html.of_report(found)
    if isinstance(found, Comparison):
        return html_compared.of_comparison(found, sides)
    return html_compared.of_matrix(found)
