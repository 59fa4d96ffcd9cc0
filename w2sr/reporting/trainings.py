"""How each student was trained: size, steps, tokens, and what `w2sr plan` had predicted of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from w2sr.artifacts import Manifest
from w2sr.planning.actual import FILE
from w2sr.reporting import numbers
from w2sr.reporting.view import Cell, Table
from w2sr.run import Run

_GIB = 2.0**30


@dataclass(frozen=True)
class Training:
    """One student. `memory`, `seconds`: (actual, predicted), bytes of the fullest rank and wall clock; None where it is not known."""

    label: str
    parameters: int
    steps: int
    exported_step: int
    supervised_tokens: int
    tokens_per_device_s: float
    memory: tuple[float | None, float | None]
    seconds: tuple[float | None, float | None]


def trainings(run: Run) -> list[Training]:
    """Return the trainings of a finished run, in its order."""
    return [_training(run, name) for name, _, _ in run.student_names()]


def _training(run: Run, name: str) -> Training:
    folder = run.stage("train", name)
    manifest = Manifest.load(folder)
    counts, usage = manifest.counts, manifest.usage
    path = folder / FILE
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    actual, predicted = found.get("actual") or {}, found.get("predicted") or {}
    return Training(
        name,
        counts["parameters"],
        counts["steps"],
        counts["exported_step"],
        counts["supervised_tokens"],
        usage["tokens"] / usage["device_seconds"] if usage["device_seconds"] else 0.0,
        (actual.get("memory_bytes"), predicted.get("memory_bytes")),
        (actual.get("seconds"), predicted.get("seconds")),
    )


def trainings_table(found: list[Training]) -> Table:
    """Return one row a student."""
    rows = [
        [
            Cell(one.label, f"{numbers.size(one.parameters)} parameters"),
            Cell(f"{one.steps:,}", f"weights of step {one.exported_step:,}" if one.exported_step != one.steps else ""),
            Cell(f"{one.supervised_tokens:,}"),
            Cell(f"{one.tokens_per_device_s:,.0f}"),
            _beside(one.memory, lambda value: f"{value / _GIB:.2f} GiB"),
            _beside(one.seconds, numbers.seconds),
        ]
        for one in found
    ]
    headings = ["Student", "Steps", "Supervised tokens", "Tokens / device-s", "Memory of a rank", "Time"]
    note = "Memory and time: actual, and below it what `w2sr plan` predicts of the same number of tokens; its speeds are assumptions."
    return Table(headings, rows, [note])


def _beside(pair: tuple[float | None, float | None], shown: Callable[[float], str]) -> Cell:
    actual, predicted = pair
    return Cell("–" if actual is None else shown(actual), "" if predicted is None else f"predicted {shown(predicted)}")
