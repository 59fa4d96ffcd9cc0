"""report.html: one file, no script, nothing loaded from anywhere. Text from data goes through Jinja2's autoescape."""

from __future__ import annotations

from importlib import resources

from w2sr.reporting import curation, numbers, plots, view
from w2sr.reporting.names import ARM_NAMES
from w2sr.reporting.report import Report


def render_html(report: Report) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    files = resources.files("w2sr.reporting")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.from_string((files / "report.html").read_text(encoding="utf-8"))
    comparison = report.comparison
    arms = list(dict.fromkeys(curve.arm for curve in report.curves))
    # The plots escape their own texts; the style sheet is ours.
    gap = [plots.gap_plot(comparison.rows, comparison.seeds, width) for width in (plots.WIDE, plots.NARROW)]
    curve = [plots.curve_plot(report.curves, width) for width in (plots.WIDE, plots.NARROW)] if report.curves else []
    return page.render(
        report=report,
        comparison=comparison,
        css=Markup((files / "report.css").read_text(encoding="utf-8")),
        gap_plots=Markup("".join(gap)),
        curve_plots=Markup("".join(curve)),
        curve_legend=[(plots.arm_class(arm), ARM_NAMES.get(arm, (arm, ""))[0]) for arm in arms],
        results=view.results_table(comparison),
        seeds=view.seeds_table(comparison),
        teachers=view.teachers_table(report.teachers),
        audits=view.audits_table(report.audits) if report.audits else None,
        arms=view.arms_table(report.arms),
        contamination=curation.contamination_table(report.contamination) if report.contamination else None,
        clean=curation.clean_table(report.contamination) if report.contamination and report.contamination.scores else None,
        budget=curation.budget_table(report.budget) if report.budget else None,
        costs=view.costs_table(report.costs),
        models=view.models_table(report.models),
        other_split=view.other_split_table(report.other_split) if report.other_split else None,
        confidence=f"{100 * comparison.confidence:g} %",
        mark_words={numbers.ABOVE: "above", numbers.BELOW: "below", numbers.UNCLEAR: "unclear"},
    )
