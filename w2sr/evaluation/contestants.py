"""Who is compared: the untuned student, its prompted self, the teachers and every trained student, under labels of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from w2sr.artifacts import MANIFEST
from w2sr.errors import UserError
from w2sr.prompting import PromptStyle
from w2sr.run import Run
from w2sr.teachers.config import EngineConfig

Kind = Literal["base", "base-cot", "teacher", "student"]


@dataclass(frozen=True)
class Contestant:
    """A model under evaluation. `label` is its folder and enters its trace ids; `arm` and `seed` belong to trained students only."""

    label: str
    kind: Kind
    model: str
    style: PromptStyle
    engine: EngineConfig
    arm: str | None = None
    seed: int | None = None


def contestants_of(run: Run) -> list[Contestant]:
    """Return everyone this run compares, in the order of the report. A trained student answers under exactly its training prefix.

    A teacher at an endpoint answers there; recorded traces are no model and cannot answer new questions.
    """
    student, engine = run.config.student, run.config.evaluate.engine
    found = [Contestant("base", "base", student.model, student.style, engine)]
    if student.reasoning_style is not None:
        found.append(Contestant("base-cot", "base-cot", student.model, student.reasoning_style, engine))
    for teacher in run.config.teachers:
        if teacher.model is not None:
            its_own = teacher.engine if teacher.engine.kind == "openai" else engine
            found.append(Contestant(f"teacher-{teacher.name}", "teacher", teacher.model, teacher.style, its_own))
    for name, arm, seed in run.student_names():
        found.append(Contestant(name, "student", str(run.stage("train", name) / "model"), student.style, engine, arm, seed))
    labels = [contestant.label for contestant in found]
    assert len(set(labels)) == len(labels), f"labels are not unique: {labels}"
    return found


def require_trained(run: Run) -> None:
    """Raise UserError naming the students that are not trained yet."""
    missing = [name for name, _, _ in run.student_names() if not (run.stage("train", name) / MANIFEST).exists()]
    if missing:
        raise UserError(
            f"cannot evaluate {', '.join(missing)}: not trained yet (no {MANIFEST} in {run.stage('train', missing[0])}); "
            "run `w2sr train CONFIG` first, or leave them out by train.arms and train.seeds"
        )
