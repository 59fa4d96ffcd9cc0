"""The parts of a report in the order in which they are read; HTML and Markdown go through the same list."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from w2sr.reporting import cost_tables, curation, view
from w2sr.reporting.report import Report
from w2sr.reporting.sections import Section
from w2sr.reporting.traces import Browser
from w2sr.reporting.trainings import trainings_table

# Parts that show more than text and tables: plots, sample answers, the browser, a list of terms, code.
ELSEWHERE, TRAINING, SAMPLES, TRACES = "elsewhere", "training", "samples", "traces"
MEANINGS, LIMITS, PROVENANCE = "rows", "limits", "provenance"

SAMPLES_NOTE = (
    "The first held-out problem of each kind among those that can be browsed, with each model's first sample: to read, not a random sample."
)
CURVES_NOTE = "Mean loss of a supervised token; one line for each student. Arms train on different texts, so their losses do not rank them."


@dataclass(frozen=True)
class Part:
    """A section and the id by which the table of contents finds it."""

    id: str
    section: Section


def parts(report: Report) -> list[Part]:
    """Return what follows the first screen."""
    return [
        Part("seeds", Section("Every training seed", [], [("", view.seeds_table(report.comparison))])),
        *([Part(ELSEWHERE, Section("The picture on other sets"))] if report.elsewhere else []),
        *_others(report.figures),
        Part("funnel", _funnel(report)),
        *([Part(TRAINING, Section("Training loss"))] if report.curves else []),
        *_others([*report.bans, *report.analyses]),
        *([Part(SAMPLES, Section("Sample answers", [SAMPLES_NOTE]))] if report.samples else []),
        *([Part(TRACES, Section("Browse the traces", carried(report.browser)))] if report.browser is not None else []),
        Part("costs", _costs(report)),
        *([Part("contamination", _contamination(report))] if report.contamination else []),
        *([Part("selection", _selection(report))] if report.other_split else []),
        Part(MEANINGS, Section("What the rows mean")),
        Part(LIMITS, Section("Limits", report.limits)),
        Part(PROVENANCE, _provenance(report)),
    ]


def _others(sections: Iterable[Section]) -> Iterator[Part]:
    """Give sections that others wrote ids made of their titles."""
    seen: set[str] = set()
    for section in sections:
        slug = "x-" + (re.sub(r"[^a-z0-9]+", "-", section.title.lower()).strip("-") or "part")
        while slug in seen:
            slug += "-"
        seen.add(slug)
        yield Part(slug, section)


def _funnel(report: Report) -> Section:
    tables = [("What the teachers wrote", view.teachers_table(report.teachers))]
    if report.audits:
        tables.append(("How their verdicts were made", view.audits_table(report.audits)))
    tables.append(("What the arms took", view.arms_table(report.arms)))
    if report.budget:
        tables.append(("What a limit on length would lose", curation.budget_table(report.budget)))
    return Section("From prompts to training rows", [], tables)


def _costs(report: Report) -> Section:
    tables = [("By stage", cost_tables.stages_table(report.costs))]
    if report.costs.students:
        tables.append(("By student, without and with its teachers", cost_tables.students_table(report.costs)))
    if report.trainings:
        tables.append(("How each student was trained", trainings_table(report.trainings)))
    return Section("Costs", [], tables)


def _contamination(report: Report) -> Section:
    found = report.contamination
    assert found is not None
    clean = [("", curation.clean_table(found))] if found.scores else []
    return Section("Contamination", [], [("", curation.contamination_table(found)), *clean])


def _selection(report: Report) -> Section:
    assert report.other_split is not None
    return Section("Selection prompts (not results)", [], [("", view.other_split_table(report.other_split))])


def _provenance(report: Report) -> Section:
    versions = ", ".join(f"{name} {version}" for name, version in report.versions.items())
    return Section(
        "Provenance",
        [f"Made again by: {report.command}", f"{versions}. All numbers are in report.json."],
        [
            ("Licences", view.licences_table(report.licences)),
            ("Models, templates and prompt styles", view.models_table(report.models)),
            ("Digests of the stages", view.digests_table(report.digests)),
        ],
    )


def carried(browser: Browser) -> list[str]:
    """Return what of each set can be browsed, in words."""
    everything = all(share.problems == share.shown_problems and share.traces == share.shown_traces for share in browser.sets)
    if everything:
        return [f"All {sum(share.traces for share in browser.sets):,} traces and answers of this run."]
    words = [
        f"{share.name}: {share.shown_traces:,} of {share.traces:,} traces, on {share.shown_problems:,} of {share.problems:,} problems"
        for share in browser.sets
    ]
    return [
        f"A sample. {'; '.join(words)}. Problems are drawn at random (seed {browser.seed}) so that every model is there with every verdict "
        "that it got; of more samples of one model on one problem some are left out, never the only one with its verdict. "
        "report.max_traces decides how many are carried; all of them are in the run folder."
    ]
