"""Trains students while their traces are still being written, on processors and GPUs of their own (`overlap: true` with curate.waves).

Wave by wave, traces with their verdicts are copied as they are committed, curated and given to the ranks, which wait for the next wave
when they have used up those that are there. It decides nothing: what it does not get done the stages do in their turn, and they compare
what it used with what they make.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cluster.placement import place
from cluster.session import topology_of
from cluster.topology import Topology
from cluster.train_group import GroupError, GroupSpec, run_group
from w2sr.artifacts import MANIFEST, STARTED, model_digest
from w2sr.config import PipelineConfig
from w2sr.curation.arrivals import Arrivals
from w2sr.curation.pool import TeacherSource
from w2sr.errors import UserError
from w2sr.placement import STREAMED, most_ranks, phases_of, streams, why_not_streamed
from w2sr.prompts.waves import wave_bounds
from w2sr.records import Prompt, Trace, Verification
from w2sr.run import Run
from w2sr.stages.curate import curate_wave
from w2sr.stages.generate import plans_of
from w2sr.stages.train import StudentBar, check_steps, origin_of, watched_rows, write_spec
from w2sr.tables import read_table
from w2sr.teachers.draining import Drain
from w2sr.teachers.models import model_folder
from w2sr.training.data import write_waves
from w2sr.training.early import ROWS, Early, begin_early
from w2sr.training.loop import train_each
from w2sr.training.prepare import RowsMaker
from w2sr.training.signals import STOP_FILE
from w2sr.training.spec import TrainResult, TrainSpec

LOOK_EVERY_S = 2.0

log = logging.getLogger(__name__)


@contextmanager
def streaming(run: Run, stages: Sequence[str]) -> Iterator[Run]:
    """Train beside the body as many steps as its traces allow. At its end the student at work is trained to its end, and the others are
    saved, for the train stage to go on with; if the body fails, all are saved.

    Yields the run for the generate stage: with as many replicas of each teacher as leave room for the ranks. Raises GroupError at the end
    when ranks failed more often than train.max_failures allows.
    """
    reason = why_not_streamed(run.config)
    if not streams(run.config, stages):
        if reason is not None:
            log.info("   overlap: students begin when all traces are there: %s", reason)
        yield run
        return
    if all((run.stage("generate", teacher.name) / MANIFEST).exists() for teacher in run.config.teachers):
        yield run
        return
    with ExitStack() as stack:
        stack.enter_context(run.ray())
        topology = topology_of(run.config.cluster.spec())
        assert topology is not None, "the session is open"
        config, sizes = shared_out(run.config, topology, stages)
        stream = _Stream(run, sizes)
        thread = threading.Thread(target=stream.work, name="train-beside", daemon=True)
        thread.start()

        def settle() -> None:
            if thread.is_alive():
                log.info("   overlap: saving the students that train; a second Ctrl-C does without")
            stream.stop.set()
            thread.join()

        stack.callback(settle)
        log.info("   overlap: students train beside their teachers, on %d ranks, in %d waves", sizes[-1], run.config.curate.waves)
        yield dataclasses.replace(run, config=config)
        with Drain(run.config.generate.stop_by) as drain:
            stream.is_last.set()
            while thread.is_alive():
                thread.join(0.5)
                if drain.is_wanted():
                    stream.stop.set()
        if stream.error is not None:
            raise stream.error


def shared_out(config: PipelineConfig, topology: Topology, stages: Sequence[str]) -> tuple[PipelineConfig, tuple[int, ...]]:
    """Return the configuration with the replicas that teachers may have beside a training, and the numbers of ranks that it may have.

    Evaluation gets what the same plan leaves to it (overlap.beside_pool), or nothing where that is too little.
    """
    most = most_ranks(config, topology, STREAMED)
    plans = [
        (phase.demands, place(topology, phase.demands))
        for names in (stages, ["generate", "train"])
        for phase in phases_of(config, names, most)
        if phase.name.startswith(STREAMED)
    ]
    demands, placed = next((plan for plan in plans if not plan[1].missing), plans[-1])
    asked = {demand.name for demand in demands}
    teachers = []
    for teacher in config.teachers:
        name = f"teacher {teacher.name}"
        number = max(len(placed.of(name)), teacher.pool.min_replicas) if name in asked else teacher.pool.replicas
        teachers.append(teacher.model_copy(update={"pool": teacher.pool.model_copy(update={"replicas": number})}))
    return config.model_copy(update={"teachers": teachers}), tuple(size for size in config.train.group_sizes if size <= most)


@dataclass
class _Student:
    """A student that is begun early: `rows` are the rows files it was given, one for each wave."""

    arm: str
    spec: TrainSpec
    early: Early
    rows: list[Path] = field(default_factory=list)

    def give(self, rows: Path, digest: str, waves: int) -> None:
        """Give it the rows of the next wave. Raises UserError when it had others before this command was started again."""
        folder = Path(self.spec.output)
        early = self.early.given(len(self.rows), digest)
        if early is None:
            self.early.void()
            raise UserError(f"wave {len(self.rows) + 1} of {self.arm} is not what {folder.name} was trained on before")
        self.early = early
        self.rows.append(rows)
        write_waves(folder / ROWS, waves, self.rows)


class _Stream:
    """The work of the thread: first to wait for the first wave, then to train and to pass further waves on."""

    def __init__(self, run: Run, sizes: tuple[int, ...]) -> None:
        self.stop = threading.Event()
        self.is_last = threading.Event()  # the student at work, if there is one, is the last
        self.error: GroupError | None = None
        self._run = run
        self._sizes = sizes
        self._num_waves = run.config.curate.waves
        self._next = 0  # the wave that is waited for
        self._folder = run.stage("train", ".waves")
        self._look_at = 0.0
        self._arrivals: list[Arrivals[Trace] | Arrivals[Verification]] = []
        self._bar: StudentBar | None = None
        self._shown: _Student | None = None

    def work(self) -> None:
        """Train until `stop` is set or, once `is_last` is, the student at work is done.

        What goes wrong is logged; `error` is set if ranks failed.
        """
        try:
            with ExitStack() as stack:
                self._open(stack)
                if not self._students:
                    return
                while not self._next and not self.stop.wait(LOOK_EVERY_S) and not self.is_last.is_set():
                    self._look()
                if self._next and not self.stop.is_set():
                    self._train()
        except (UserError, OSError) as error:
            log.warning("overlap: %s; students are trained when all traces are there", error)
        except GroupError as error:
            log.warning("overlap: %s", error)
            self.error = error

    def _open(self, stack: ExitStack) -> None:
        run = self._run
        shutil.rmtree(self._folder, ignore_errors=True)  # of an attempt that was killed
        stack.callback(shutil.rmtree, self._folder, ignore_errors=True)
        prompts = read_table(run.stage("prompts") / "train.parquet", Prompt)
        bounds = wave_bounds(len(prompts), self._num_waves)
        plans = plans_of(run, prompts)
        for name, plan in plans.items():
            of_traces = Arrivals(run.stage("generate", name), Trace, plan, bounds, partial(self._copy, "generate", name))
            of_verdicts = Arrivals(run.stage("verify", name), Verification, plan, bounds, partial(self._copy, "verify", name))
            self._arrivals += [of_traces, of_verdicts]
            stack.callback(of_traces.close)
            stack.callback(of_verdicts.close)
        self._students = self._begin_students()

    def _begin_students(self) -> list[_Student]:
        run = self._run
        student = model_folder(run.config.student.model)
        digest = model_digest(student)
        self._maker = RowsMaker(run, student)
        watched = watched_rows(run, self._maker)
        max_steps = run.config.train.max_steps
        assert max_steps is not None, "streams() asks for it"
        check_steps(run.config.train, max_steps)
        found: list[_Student] = []
        for name, arm, seed in run.student_names():
            folder = run.stage("train", name)
            if not any((folder / file).exists() for file in (MANIFEST, STARTED)):
                early = begin_early(folder, origin_of(run, arm, seed, digest))
                (folder / STOP_FILE).unlink(missing_ok=True)
                spec = write_spec(run, folder, seed, (student, digest), folder / ROWS, watched)
                found.append(_Student(arm, spec, early))
        return found

    def _copy(self, stage: str, teacher: str, wave: int) -> Path:
        """Return the folder for the copy of a wave of a teacher's traces or verdicts."""
        return self._folder / str(wave) / stage / teacher

    def _look(self) -> None:
        """Copy what has come, and pass on the waves that are whole."""
        if self._next == self._num_waves:
            return
        for each in self._arrivals:
            each.poll()
        while self._next < self._num_waves and all(each.is_whole(self._next) for each in self._arrivals):
            self._pass_on(self._next)
            self._next += 1

    def _pass_on(self, wave: int) -> None:
        for each in self._arrivals:
            each.finish(wave)
        names = sorted(teacher.name for teacher in self._run.config.teachers)
        sources = [TeacherSource(name, self._copy("generate", name, wave), self._copy("verify", name, wave)) for name in names]
        tables = curate_wave(self._run, wave, sources, self._folder / str(wave) / "arms")
        rows = {arm: self._maker.of_wave(arm, tables[arm], wave) for arm in dict.fromkeys(student.arm for student in self._students)}
        for student in self._students:
            path, facts = rows[student.arm]
            student.give(path, facts.digest, self._num_waves)
        shutil.rmtree(self._folder / str(wave))
        counts = ", ".join(f"{arm} {facts.num_rows:,}" for arm, (_, facts) in rows.items())
        log.info("   overlap: wave %d of %d is there; rows: %s", wave + 1, self._num_waves, counts)

    def _train(self) -> None:
        train, run = self._run.config.train, self._run
        work_dir = run.stage("train", ".group")
        group = GroupSpec(self._sizes, train.cpus_per_rank, train.use_gpu, train.max_failures, work_dir, train.wait_for_ranks_s)
        specs = [student.spec.to_json() for student in self._students]
        try:
            run_group(train_each, specs, group, self._on_poll, lambda line: log.warning("train: %s", line), self.stop.is_set)
        finally:
            self._show(None)

    def _on_poll(self) -> None:
        current = next((each for each in self._students if TrainResult.load(Path(each.spec.output)) is None), None)
        if self.is_last.is_set() and (self._shown is None or current is not self._shown):
            self.stop.set()
        self._show(current)
        if self.stop.is_set():
            if current is not None:
                (Path(current.spec.output) / STOP_FILE).touch()
        elif time.monotonic() >= self._look_at:
            try:
                self._look()
            except (UserError, OSError) as error:
                # Not raised: that would leave the ranks where they are.
                log.warning("overlap: %s; the students go on when all traces are there", error)
                self.stop.set()
            self._look_at = time.monotonic() + LOOK_EVERY_S

    def _show(self, student: _Student | None) -> None:
        """Move the bar of the student at work, and leave that of one that is finished."""
        if self._shown is not None and self._bar is not None:
            result = TrainResult.load(Path(self._shown.spec.output))
            self._bar.show(result.steps if result else None, wave=f"{self._next}/{self._num_waves}")
        if student is not self._shown:
            if self._bar is not None:
                self._bar.close()
            self._shown, self._bar = student, None
            if student is not None and student.spec.train.max_steps is not None:
                self._bar = StudentBar(student.spec, student.spec.train.max_steps)
