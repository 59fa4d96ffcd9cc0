"""Everything a report says, as data: what report.json holds and what the HTML and Markdown show."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from w2sr.artifacts import plain
from w2sr.config import dump_config
from w2sr.reporting import analyses, bans, benchmarks, costs, curation, ledger, provenance, sentences
from w2sr.reporting.compare import Comparison, comparisons
from w2sr.reporting.costs import Costs
from w2sr.reporting.curation import Contamination
from w2sr.reporting.ledger import ArmFunnel, Curve, TeacherFunnel
from w2sr.reporting.names import MEANINGS
from w2sr.reporting.samples import SampleProblem, sample_problems
from w2sr.reporting.sections import Section
from w2sr.reporting.traces import Browser, browse
from w2sr.reporting.trainings import Training, trainings
from w2sr.run import Run

LIMITS = [
    "An interval covers another draw of problems and of samples. It does not cover another training seed (each seed is shown by itself), "
    "other prompts, samplers or benchmarks.",
    "The ceiling is what this run calls so (the picture names it), not the best that the model could reach; with another ceiling the gap "
    "ratios change.",
    "Many pairs of models are compared at once. Intervals and marks are not corrected for that: of twenty comparisons of equal models "
    "about one would look real. The paired tests are.",
    "Where there are several teachers, students are compared with the one that scores best here.",
    "Small models on a made-up task show that the machinery works and which way the effect goes; they do not predict its size for large "
    "models.",
]


@dataclass(frozen=True)
class Report:
    """A finished run in numbers and sentences. Only `costs`, `trainings`, `versions` and `digests` depend on when and where it ran.

    `comparison` is on the run's own split, `elsewhere` on the benchmarks.
    """

    title: str
    headline: str
    findings: list[str]
    comparison: Comparison
    elsewhere: list[Comparison]
    meanings: dict[str, str]
    figures: list[Section]
    teachers: list[TeacherFunnel]
    audits: dict[str, dict[str, Any]]
    arms: list[ArmFunnel]
    contamination: Contamination | None
    budget: dict[str, Any] | None
    curves: list[Curve]
    bans: list[Section]
    analyses: list[Section]
    samples: list[SampleProblem]
    browser: Browser | None
    other_split: dict[str, Any] | None
    limits: list[str]
    models: list[dict[str, str]]
    licences: list[dict[str, str]]
    costs: Costs
    trainings: list[Training]
    versions: dict[str, str]
    digests: dict[str, str]
    command: str
    config: str

    def results(self) -> dict[str, Any]:
        """Return what two runs that computed the same thing have in common, as plain data. Of the traces only which were drawn."""
        apart = ("costs", "trainings", "versions", "digests", "command", "config", "browser")
        found = {field.name: plain(getattr(self, field.name)) for field in dataclasses.fields(self) if field.name not in apart}
        shares = None if self.browser is None else {"seed": self.browser.seed, "sets": plain(self.browser.sets)}
        return {**found, "browser": shares}

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data; what depends on time and place is under "costs", "trainings" and "provenance"."""
        provenance = {"versions": self.versions, "digests": self.digests, "command": self.command, "config": self.config}
        return {**self.results(), "costs": plain(self.costs), "trainings": plain(self.trainings), "provenance": provenance}


def collect(run: Run) -> Report:
    """Read a finished run. Raises UserError naming the first stage that is missing."""
    comparison, *elsewhere = every = comparisons(run)
    leader = sentences.leading_student(comparison)
    browser = browse(run, comparison)
    return Report(
        title=run.config.title,
        headline=sentences.headline(comparison),
        findings=sentences.findings(comparison, elsewhere),
        comparison=comparison,
        elsewhere=elsewhere,
        meanings={
            row.name: MEANINGS.get(row.arm or row.kind, row.detail) + (" The ceiling here." if row.is_ceiling else "")
            for row in comparison.rows
        },
        figures=benchmarks.sections(run, every),
        teachers=ledger.teacher_funnels(run),
        audits=ledger.audits(run),
        arms=ledger.arm_funnels(run),
        contamination=curation.contamination(run, comparison),
        budget=curation.budget(run),
        curves=ledger.curves(run),
        bans=bans.sections(run),
        analyses=analyses.sections(run),
        samples=sample_problems(browser, comparison, leader.key if leader else None),
        browser=browser,
        other_split=provenance.other_split(run),
        limits=LIMITS,
        models=provenance.models(run),
        licences=provenance.licences(run),
        costs=costs.costs(run, comparison),
        trainings=trainings(run),
        versions=provenance.versions(),
        digests=ledger.digests(run),
        command=provenance.command(run),
        config=dump_config(run.config),
    )
