"""Diagnoses the teachers of a run folder, finished or not. Reads files only; memory does not grow with the traces."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from pathlib import Path
from typing import Any

from w2sr.artifacts import MANIFEST
from w2sr.config import PipelineConfig
from w2sr.diagnosis.agreement import Comparison, Sample, answer_key
from w2sr.diagnosis.gate import gate
from w2sr.diagnosis.rates import CONFIDENCE, Rate
from w2sr.diagnosis.tally import Extract, Tally, TeacherDiagnosis, extractor
from w2sr.errors import UserError
from w2sr.records import Prompt, Trace, Verification
from w2sr.run import Run, open_folder
from w2sr.tables import iter_table, read_table, write_text
from w2sr.traces.follower import Follower
from w2sr.traces.positions import Positions

DIAGNOSIS = "diagnosis.json"
Row = tuple[int, int, Trace, Verification | None]  # (prompt's index, teacher's number, trace, verdict)


@dataclass(frozen=True)
class Diagnosis:
    """What `w2sr diagnose` knows of a run. `gate`: for each teacher why the gate would stop the run, empty where it would not.

    `comparison` is about the teachers that are complete. `notes` say what is not known, and why.
    """

    teachers: list[TeacherDiagnosis]
    comparison: Comparison
    gate: dict[str, list[str]]
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return plain data; docs/diagnose.md explains every key."""
        pairs = [
            {"first": first, "second": second, **{name: mean.to_json() for name, mean in vars(found).items()}}
            for (first, second), found in self.comparison.agreement.items()
        ]
        return {
            "confidence": CONFIDENCE,
            "teachers": [self._teacher(found) for found in self.teachers],
            "pairs": pairs,
            "solved_by_any": self.comparison.solved_by_any.to_json(),
            "notes": self.notes,
        }

    def _teacher(self, found: TeacherDiagnosis) -> dict[str, Any]:
        diversity = self.comparison.diversity.get(found.teacher)
        return {
            "teacher": found.teacher,
            "complete": found.complete,
            "requests": found.requests,
            "traces": found.traces,
            "accuracy": None if found.accuracy is None else found.accuracy.to_json(),
            "rates": {name: rate.to_json() for name, rate in found.rates.items()},
            "duplicates_exact": found.duplicates_exact,
            "failures": found.failures,
            "scripts": found.scripts,
            "lengths": dataclasses.asdict(found.lengths),
            "diversity": None if diversity is None else {name: mean.to_json() for name, mean in vars(diversity).items()},
            "examples": found.examples,
            "gate": self.gate[found.teacher],
        }


def diagnose(folder: Path) -> Diagnosis:
    """Diagnose every teacher of the run in `folder` that has traces. Raises UserError when none has."""
    run = open_folder(folder)
    prompts = {prompt.prompt_id: (number, prompt) for number, prompt in enumerate(_prompts(run))}
    extract, tallies, notes = extractor(run.config.verify.grader), dict[str, Tally](), list[str]()
    complete: list[str] = []
    for teacher in run.config.teachers:
        done = (run.stage("generate", teacher.name) / MANIFEST).exists()
        if done:
            complete.append(teacher.name)
        elif tally := _unfinished(run, teacher.name, prompts, extract):
            tallies[teacher.name] = tally
            notes.append(f"teacher {teacher.name} is not finished: its {tally.requests:,} traces so far are counted, and not compared")
        else:
            notes.append(f"teacher {teacher.name} has no traces yet")
    verified = [name for name in complete if (run.stage("verify", name) / MANIFEST).exists()]
    notes += [f"teacher {name} is not verified: run `w2sr verify {folder / 'config.yaml'}`" for name in complete if name not in verified]
    comparison, verdicts = Comparison(), dict.fromkeys(verified, (0, 0))
    tallies |= {name: Tally(name, extract) for name in complete}
    _read_complete(run, complete, prompts, tallies, comparison, verdicts)
    if not tallies:
        raise UserError(f"{folder} has no traces yet; run `w2sr generate {folder / 'config.yaml'}` first")
    found = []
    for teacher in run.config.teachers:
        if teacher.name in tallies:
            accuracy = Rate(*verdicts[teacher.name]) if teacher.name in verdicts else None
            figures = tallies[teacher.name].diagnosis()
            found.append(dataclasses.replace(figures, complete=teacher.name in complete, accuracy=accuracy))
    limits = run.config.generate.gate
    return Diagnosis(found, comparison, {one.teacher: gate(one, limits, str(folder)) for one in found}, notes)


def write_diagnosis(folder: Path, diagnosis: Diagnosis) -> Path:
    """Write `diagnosis.json` into the run folder and return its path."""
    path = folder / DIAGNOSIS
    write_text(path, json.dumps(diagnosis.to_json(), indent=1, ensure_ascii=False) + "\n")
    return path


def _prompts(run: Run) -> list[Prompt]:
    path = run.stage("prompts") / "train.parquet"
    if not path.exists():
        raise UserError(f"{run.folder} has no prompts yet; run `w2sr run {run.folder / 'config.yaml'}` first")
    return read_table(path, Prompt)


def _unfinished(run: Run, name: str, prompts: dict[str, tuple[int, Prompt]], extract: Extract) -> Tally | None:
    """Count the committed traces of a teacher that is still at work, or was stopped."""
    samples = _samples(run.config, name)
    tally = Tally(name, extract)
    for rows in Follower(run.stage("generate", name), Trace, Positions(len(prompts) * samples)).poll():
        for trace in rows:
            tally.add(trace, _prompt_of(run, trace, prompts)[1].question)
    return tally if tally.requests else None


def _samples(config: PipelineConfig, name: str) -> int:
    return next(teacher.samples_per_prompt for teacher in config.teachers if teacher.name == name)


def _read_complete(
    run: Run,
    names: list[str],
    prompts: dict[str, tuple[int, Prompt]],
    tallies: dict[str, Tally],
    comparison: Comparison,
    verdicts: dict[str, tuple[int, int]],
) -> None:
    """Read all complete teachers side by side, prompt by prompt: their parts are in the order of the prompts."""
    streams = [_rows(run, number, name, prompts, name in verdicts) for number, name in enumerate(names)]
    # Compared by prompt and teacher alone; the rest of a row has no order.
    for _, group in groupby(merge(*streams, key=_place), key=lambda row: row[0]):
        samples: dict[str, list[Sample]] = {}
        for _, number, trace, verdict in group:
            name = names[number]
            tallies[name].add(trace, _prompt_of(run, trace, prompts)[1].question)
            if trace.finish_reason == "error":
                continue
            if verdict is not None:
                correct, total = verdicts[name]
                verdicts[name] = correct + (verdict.verdict == "correct"), total + 1
            samples.setdefault(name, []).append(_sample(trace, verdict, tallies[name].extract))
        if samples:
            comparison.add(samples)


def _place(row: Row) -> tuple[int, int]:
    return row[0], row[1]


def _rows(run: Run, number: int, name: str, prompts: dict[str, tuple[int, Prompt]], verified: bool) -> Iterator[Row]:
    traces = iter_table(run.stage("generate", name), Trace)
    verdicts = iter_table(run.stage("verify", name), Verification) if verified else None
    for trace in traces:
        verdict = next(verdicts, None) if verdicts is not None else None
        if verdicts is not None and (verdict is None or verdict.trace_id != trace.trace_id):
            raise UserError(
                f"{run.stage('verify', name)} does not judge the traces of {run.stage('generate', name)} row by row (at trace "
                f"{trace.trace_id}); remove it and run `w2sr verify {run.folder / 'config.yaml'}`"
            )
        yield _prompt_of(run, trace, prompts)[0], number, trace, verdict


def _prompt_of(run: Run, trace: Trace, prompts: dict[str, tuple[int, Prompt]]) -> tuple[int, Prompt]:
    if trace.prompt_id not in prompts:
        raise UserError(
            f"trace {trace.trace_id} of {trace.generator} answers prompt {trace.prompt_id}, which {run.stage('prompts')} does not have; "
            "the prompts were changed after the traces: remove the folder of one of them"
        )
    return prompts[trace.prompt_id]


def _sample(trace: Trace, verdict: Verification | None, extract: Extract) -> Sample:
    answers = extract(trace.text)
    return Sample(
        trace.text, None if answers is None else answer_key(answers.last), None if verdict is None else verdict.verdict == "correct"
    )
