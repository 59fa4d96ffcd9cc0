"""Teachers write traces: all of them side by side, on one pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from w2sr.artifacts import StageDir
from w2sr.diagnosis.gate import gate
from w2sr.diagnosis.tally import Tally, extractor
from w2sr.errors import UserError
from w2sr.grading.follow import Following
from w2sr.grading.grade import Grader
from w2sr.records import Prompt, Trace
from w2sr.run import Run
from w2sr.stages.verify import subject_of
from w2sr.tables import read_table
from w2sr.teachers.config import TeacherConfig
from w2sr.teachers.engine import GeneratorSpec
from w2sr.teachers.generation import Job, generate, open_pool
from w2sr.teachers.models import teacher_spec
from w2sr.teachers.recorded import RecordedPlan, RecordedTraces
from w2sr.teachers.requests import Arc, RequestPlan, arcs
from w2sr.traces.recovery import remove_shards


@dataclass(frozen=True)
class _Open:
    """A teacher that is not done."""

    teacher: TeacherConfig
    spec: GeneratorSpec
    arc: Arc
    stage: StageDir


def run(run: Run) -> None:
    """Let every teacher complete its share of the training prompts, into `generate/<teacher>/`.

    Raises UserError when a teacher fails the gate (generate.gate), after the first traces already if they are bad enough.
    """
    todo = _open_teachers(run)
    if not todo:
        return
    prompts = read_table(run.stage("prompts") / "train.parquet", Prompt)
    with ExitStack() as stack:
        rescue = any(item.teacher.until_correct for item in todo)
        grader = stack.enter_context(Grader(run.config.verify)) if rescue else None
        pool = stack.enter_context(open_pool(run, [item.spec for item in todo]))
        watches = [_Gate(run, item.teacher.name, prompts) for item in todo]
        jobs = [_job(run, item, prompts, grader, watch) for item, watch in zip(todo, watches, strict=True)]
        for item in todo:
            item.stage.begin()
        with _following(run, todo, prompts):
            done = generate(pool, run.config, jobs)
        for item, watch, totals in zip(todo, watches, done, strict=True):
            watch.judge()
            item.stage.finish(totals.counts(), totals.parts, totals.usage())
            remove_shards(item.stage.folder)


def _open_teachers(run: Run) -> list[_Open]:
    found = []
    teachers = run.config.teachers
    for teacher, arc in zip(teachers, arcs([teacher.share for teacher in teachers]), strict=True):
        spec = teacher_spec(teacher)
        identity = {"teacher": teacher.identity(), "seed": run.config.seed, "arc": [arc.start, arc.share]}
        inputs = {"prompts": run.digest("prompts"), "model": spec.model_digest}
        if teacher.until_correct:
            identity["verify"] = run.config.verify.identity()
        stage = StageDir(run.stage("generate", teacher.name), "generate", identity, inputs)
        if stage.is_done():
            remove_shards(stage.folder)  # a kill between the manifest and their removal
        else:
            found.append(_Open(teacher, spec, arc, stage))
    return found


def plans_of(run: Run, prompts: Sequence[Prompt]) -> dict[str, RequestPlan]:
    """Return what every teacher is asked for, by name."""
    teachers = run.config.teachers
    shares = arcs([teacher.share for teacher in teachers])
    return {teacher.name: _plan(run, teacher, arc, prompts) for teacher, arc in zip(teachers, shares, strict=True)}


def _plan(run: Run, teacher: TeacherConfig, arc: Arc, prompts: Sequence[Prompt]) -> RequestPlan:
    asked = (teacher.name, prompts, teacher.samples_per_prompt, run.config.seed, arc)
    return RecordedPlan(*asked, RecordedTraces.read(teacher.engine)) if teacher.engine.kind == "recorded" else RequestPlan(*asked)


def _job(run: Run, item: _Open, prompts: list[Prompt], grader: Grader | None, watch: _Gate) -> Job:
    teacher = item.teacher
    judge = None
    if teacher.until_correct:
        assert grader is not None
        judge = _judge_by(grader, prompts)
    return Job(item.spec, _plan(run, teacher, item.arc, prompts), item.stage.folder, teacher.pool, f"generate {teacher.name}", judge, watch)


def _following(run: Run, todo: list[_Open], prompts: list[Prompt]) -> Following:
    """Return what judges early traces while later ones are made; the verify stage goes on from its verdicts."""
    subjects = [subject_of(run, item.teacher.name, len(prompts)) for item in todo]
    return Following(subjects, prompts, run.digest("prompts"), run.config.verify, run.config.generate.flush_interval_s)


def _judge_by(grader: Grader, prompts: list[Prompt]) -> Callable[[Sequence[Trace]], list[bool]]:
    by_id = {prompt.prompt_id: prompt for prompt in prompts}
    return lambda traces: [verification.verdict == "correct" for verification in grader.grade(traces, by_id)]


class _Gate:
    """Watches the traces of one teacher as they come, and stops the run when they are too bad to be worth their price."""

    def __init__(self, run: Run, teacher: str, prompts: Sequence[Prompt]) -> None:
        self._config = run.config.generate.gate
        self._run_dir = str(run.folder)
        self._questions = {prompt.prompt_id: prompt.question for prompt in prompts}
        self._tally = Tally(teacher, extractor(run.config.verify.grader))
        self._judged = False

    def __call__(self, rows: Sequence[Trace]) -> None:
        for row in rows:
            self._tally.add(row, self._questions[row.prompt_id])
        if not self._judged and self._tally.requests >= self._config.after:
            self._judged = True
            self.judge()

    def judge(self) -> None:
        """Raise UserError when the traces so far fail the gate."""
        reasons = gate(self._tally.diagnosis(), self._config, self._run_dir)
        if reasons:
            raise UserError("; ".join(reasons))
