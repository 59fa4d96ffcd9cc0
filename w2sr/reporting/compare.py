"""The comparison: every model on the same held-out problems, with paired intervals. Reads finished `evaluate` folders only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from w2sr.artifacts import Manifest
from w2sr.evaluation.contestants import Contestant, contestants_of
from w2sr.evaluation.gap import GapRatio, gap_ratio
from w2sr.evaluation.intervals import Bootstrap, Estimate
from w2sr.evaluation.metrics import Floats, outcomes_of, pooled, values_of
from w2sr.records import Prompt, Trace, Verification
from w2sr.reporting.names import detail_name, short_name
from w2sr.run import Run
from w2sr.tables import iter_table, read_table


@dataclass(frozen=True)
class Row:
    """A model, or an arm: the mean of its students over training seeds. `versus` holds paired differences of avg@k."""

    key: str
    name: str
    detail: str
    kind: str
    arm: str | None
    labels: list[str]
    is_ceiling: bool
    figures: dict[str, Estimate]
    versus: dict[str, Estimate]  # by "base", "base-cot", "teacher"; a row has no difference to itself
    rgr_vs_student_base: GapRatio | None
    pgr_vs_teacher: GapRatio | None


@dataclass(frozen=True)
class SeedRow:
    """One trained student on its own."""

    label: str
    arm: str
    name: str
    seed: int
    avg: Estimate
    versus: dict[str, Estimate]


@dataclass(frozen=True)
class Comparison:
    """Everything measured on one split. `teacher` is the key of the teacher that others are compared with: the best scoring one.

    It is None when no teacher can be asked (recorded traces).
    """

    split: str
    num_problems: int
    samples_per_prompt: int
    pass_k: list[int]
    confidence: float
    bootstrap_samples: int
    teacher: str | None
    ceiling: str | None
    rows: list[Row]
    seeds: list[SeedRow]

    def row(self, key: str | None) -> Row | None:
        """Return the row under `key`, if there is one."""
        return next((row for row in self.rows if row.key == key), None)


@dataclass(frozen=True)
class Measured:
    """Figures by problem, in the order of `prompt_ids`: of each contestant, and of each row of the report (an arm's students together)."""

    prompt_ids: list[str]
    contestants: list[Contestant]
    values: dict[str, Mapping[str, Floats]]
    of_row: dict[str, dict[str, Floats]]


def measure(run: Run) -> Measured:
    """Read every contestant's answers and verdicts. Raises UserError naming the first label that is not evaluated."""
    evaluate = run.config.evaluate
    contestants = contestants_of(run)
    run.digest("prompts")  # raises when they are not there
    folder = run.stage("evaluate", evaluate.split)
    prompt_ids = [prompt.prompt_id for prompt in iter_table(run.stage("prompts") / f"{evaluate.split}.parquet", Prompt)]
    values = {
        contestant.label: _values(folder / contestant.label, prompt_ids, evaluate.samples_per_prompt, evaluate.pass_k)
        for contestant in contestants
    }
    of_row = {key: pooled([values[member.label] for member in group]) for key, group in _members(contestants).items()}
    return Measured(prompt_ids, contestants, values, of_row)


def compare(run: Run) -> Comparison:
    """Compare every contestant with every other one. Raises UserError naming the first label that is not evaluated."""
    evaluate = run.config.evaluate
    measured = measure(run)
    prompt_ids, contestants, values, of_row = measured.prompt_ids, measured.contestants, measured.values, measured.of_row
    members = _members(contestants)
    teachers = [key for key, group in members.items() if group[0].kind == "teacher"]
    ceiling = evaluate.ceiling if evaluate.ceiling in members else None
    columns = {f"{key}:{figure}": column for key, figures in of_row.items() for figure, column in figures.items()}
    columns |= {f"{label}:student": figures["avg"] for label, figures in values.items()}
    bootstrap = Bootstrap(columns, evaluate.bootstrap_samples, evaluate.confidence, run.config.seed)
    best_teacher = max(teachers, key=lambda key: bootstrap.value(f"{key}:avg"), default=None)
    compared = _Compared(bootstrap, best_teacher, ceiling, "base-cot" in members)
    return Comparison(
        split=evaluate.split,
        num_problems=len(prompt_ids),
        samples_per_prompt=evaluate.samples_per_prompt,
        pass_k=sorted(evaluate.pass_k),
        confidence=evaluate.confidence,
        bootstrap_samples=evaluate.bootstrap_samples,
        teacher=compared.teacher,
        ceiling=ceiling,
        rows=[compared.row(key, group, list(of_row[key])) for key, group in _ceiling_last(members, ceiling)],
        seeds=[compared.seed_row(contestant) for contestant in contestants if contestant.kind == "student"],
    )


@dataclass(frozen=True)
class _Compared:
    """Turns the bootstrap's columns into rows."""

    bootstrap: Bootstrap
    teacher: str | None
    ceiling: str | None
    has_cot: bool

    def row(self, key: str, group: list[Contestant], figures: list[str]) -> Row:
        first = group[0]
        is_ceiling = key == self.ceiling
        with_ratios = first.kind in ("student", "base-cot") and not is_ceiling
        return Row(
            key=key,
            name=short_name(first.kind, first.arm, first.label),
            detail=detail_name(first.kind, first.arm, is_ceiling),
            kind=first.kind,
            arm=first.arm,
            labels=[member.label for member in group],
            is_ceiling=is_ceiling,
            figures={figure: self.bootstrap.mean(f"{key}:{figure}") for figure in figures},
            versus=self._versus(f"{key}:avg", key),
            rgr_vs_student_base=self._ratio(key, "base") if with_ratios else None,
            pgr_vs_teacher=self._ratio(key, self.teacher) if with_ratios and self.teacher is not None else None,
        )

    def seed_row(self, student: Contestant) -> SeedRow:
        assert student.arm is not None
        assert student.seed is not None
        column = f"{student.label}:student"
        name = short_name(student.kind, student.arm, student.label)
        return SeedRow(student.label, student.arm, name, student.seed, self.bootstrap.mean(column), self._versus(column, None))

    def _versus(self, column: str, key: str | None) -> dict[str, Estimate]:
        others = {"base": "base", "teacher": self.teacher, "base-cot": "base-cot" if self.has_cot else None}
        return {
            role: self.bootstrap.difference(column, f"{other}:avg") for role, other in others.items() if other is not None and other != key
        }

    def _ratio(self, key: str, floor: str) -> GapRatio:
        if self.ceiling is None:
            return GapRatio(None, Estimate(0.0, 0.0, 0.0), "no student of the ceiling's arm (evaluate.ceiling) was trained")
        return gap_ratio(self.bootstrap, f"{key}:avg", f"{floor}:avg", f"{self.ceiling}:avg")


def _values(folder: Path, prompt_ids: list[str], samples_per_prompt: int, pass_k: list[int]) -> Mapping[str, Floats]:
    Manifest.load(folder)  # raises when the label is not evaluated
    verdicts = {verdict.trace_id: verdict for verdict in read_table(folder / "verdicts.parquet", Verification)}
    return values_of(outcomes_of(prompt_ids, iter_table(folder, Trace), verdicts, samples_per_prompt), pass_k)


def _members(contestants: list[Contestant]) -> dict[str, list[Contestant]]:
    """Group the students of an arm; everyone else stands alone."""
    members: dict[str, list[Contestant]] = {}
    for contestant in contestants:
        members.setdefault(contestant.arm or contestant.label, []).append(contestant)
    return members


def _ceiling_last(members: dict[str, list[Contestant]], ceiling: str | None) -> list[tuple[str, list[Contestant]]]:
    return sorted(members.items(), key=lambda item: item[0] == ceiling)
