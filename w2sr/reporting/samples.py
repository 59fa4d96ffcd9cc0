"""A few problems followed from the question to each model's answer, for people to read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from w2sr.records import Prompt, Trace, Verification
from w2sr.reporting.compare import Comparison
from w2sr.run import Run
from w2sr.tables import iter_table, read_table

MAX_CHARACTERS = 2000


@dataclass(frozen=True)
class Answer:
    """A model's first sample on a problem."""

    name: str
    verdict: str
    reason: str
    text: str


@dataclass(frozen=True)
class SampleProblem:
    """A problem and what the models wrote. `case` says why it was chosen."""

    prompt_id: str
    case: str
    question: str
    reference: str | None
    answers: list[Answer]


def sample_problems(run: Run, comparison: Comparison, student: str | None) -> list[SampleProblem]:
    """Return up to three problems, chosen by rule and not at random: the first of each case in the order of the prompts.

    `student` is the row key of the trained student to show; its first seed answers.
    """
    row = comparison.row(student)
    if row is None:
        return []
    teacher = {comparison.teacher: comparison.teacher} if comparison.teacher is not None else {}
    shown = {"base": "base", **teacher, row.labels[0]: row.key}
    folder = run.stage("evaluate", comparison.split)
    verdicts = {label: _first_verdicts(folder / label) for label in shown}
    prompts = read_table(run.stage("prompts") / f"{comparison.split}.parquet", Prompt)
    chosen = _choose(prompts, verdicts, comparison.teacher, row.labels[0])
    texts = {label: _first_texts(folder / label, {prompt.prompt_id for _, prompt in chosen}) for label in shown}
    return [
        SampleProblem(
            prompt.prompt_id,
            case,
            _cut(prompt.question),
            prompt.answer,
            [
                _answer(_name(comparison, key, label), texts[label].get(prompt.prompt_id), verdicts[label].get(prompt.prompt_id))
                for label, key in shown.items()
            ],
        )
        for case, prompt in chosen
    ]


def _choose(
    prompts: list[Prompt], verdicts: dict[str, dict[str, Verification]], teacher: str | None, student: str
) -> list[tuple[str, Prompt]]:
    def solved(label: str, prompt: Prompt) -> bool:
        verdict = verdicts[label].get(prompt.prompt_id)
        return verdict is not None and verdict.verdict == "correct"

    cases: dict[str, tuple[bool, bool | None]] = {
        "the student is right where its teacher is wrong": (True, False),
        "both are right": (True, True),
        "the student is wrong": (False, None),
    }
    if teacher is None:
        cases = {"the student is right": (True, None), "the student is wrong": (False, None)}
    found = []
    for case, (student_right, teacher_right) in cases.items():
        for prompt in prompts:
            agrees = teacher is None or teacher_right in (None, solved(teacher, prompt))
            if solved(student, prompt) == student_right and agrees:
                found.append((case, prompt))
                break
    return found


def _first_verdicts(folder: Path) -> dict[str, Verification]:
    """Return the verdict of each problem's sample 0, by prompt id."""
    firsts = {trace.trace_id for trace in iter_table(folder, Trace) if trace.sample_index == 0}
    return {row.prompt_id: row for row in iter_table(folder / "verdicts.parquet", Verification) if row.trace_id in firsts}


def _first_texts(folder: Path, prompt_ids: set[str]) -> dict[str, Trace]:
    return {trace.prompt_id: trace for trace in iter_table(folder, Trace) if trace.sample_index == 0 and trace.prompt_id in prompt_ids}


def _answer(name: str, trace: Trace | None, verdict: Verification | None) -> Answer:
    if trace is None or verdict is None:
        return Answer(name, "failed", (trace.error if trace else None) or "no completion", "")
    return Answer(name, verdict.verdict, verdict.reason, _cut(trace.text))


def _name(comparison: Comparison, key: str, label: str) -> str:
    row = comparison.row(key)
    assert row is not None
    return row.name if row.kind != "student" else f"{row.name} ({label})"


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]} … ({len(text) - MAX_CHARACTERS:,} characters more)"
