"""Stage `train`: one student for each arm (or mixture of arms) and seed, in `train/<arm>-seed<N>/`.

All students that are still to do are trained one after another by one group of ranks: starting a group costs more than a small training.
Each is committed (manifest) as soon as it is done, so a kill costs at most the work since the last checkpoint of one student.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.session import require
from cluster.train_group import GroupSpec, run_group
from w2sr.artifacts import STARTED, StageDir, digest_of, model_digest
from w2sr.planning.actual import record
from w2sr.progress import Progress
from w2sr.run import Run
from w2sr.tables import write_text
from w2sr.teachers.draining import Drain
from w2sr.teachers.models import model_folder
from w2sr.training import checkpoint
from w2sr.training.config import TrainConfig
from w2sr.training.data import RowFacts, load_rows
from w2sr.training.early import settle_early
from w2sr.training.export_plan import num_parameters
from w2sr.training.loop import remove_checkpoints, train_each
from w2sr.training.order import Course
from w2sr.training.prepare import RowsMaker, remove_own_rows, shares_of
from w2sr.training.profiling import check_profile
from w2sr.training.schedule import check_schedule
from w2sr.training.selection import check_rows
from w2sr.training.signals import STOP_FILE
from w2sr.training.spec import TrainResult, TrainSpec
from w2sr.training.update_ratios import WARNED
from w2sr.training.watch import METRICS
from w2sr.training.watchdog import SAID, STALLS

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Student:
    """One student to train: its folder, its spec, its steps, and the facts of the rows files of its arm or of the parts of its mixture."""

    stage: StageDir
    spec: TrainSpec
    num_steps: int
    facts: tuple[RowFacts, ...]

    def commit(self, result: TrainResult) -> None:
        """Write the manifest of a finished student."""
        folder = self.stage.folder
        remove_checkpoints(self.spec)  # a kill may have come before the ranks had
        dropped, of_reason = folder / "dropped.json", dict[str, list[str]]()
        for reason in ("too_long", "unwritable"):
            of_reason[reason] = [name for facts in self.facts for name in getattr(facts, reason)]
        write_text(dropped, json.dumps(of_reason, indent=1) + "\n")
        record(self.spec, result)
        num_kept = sum(facts.num_rows for facts in self.facts)
        num_dropped = {reason: len(names) for reason, names in of_reason.items()}
        self.stage.finish(
            {
                "rows": num_kept + sum(num_dropped.values()),
                "kept": num_kept,
                **num_dropped,
                "steps": result.steps,
                "exported_step": result.exported_step,
                "supervised_tokens": result.supervised_tokens,
                "parameters": num_parameters(folder / "model"),
            },
            [dropped, *(path for path in (folder / "model").rglob("*") if path.is_file())],
            {"tokens": result.tokens, "device_seconds": result.rank_seconds},
            least_s=result.seconds,
        )


def run(run: Run) -> None:
    """Train every student of the run that is not done. Raises UserError before any training when a row or the arithmetic does not fit."""
    train = run.config.train
    folder = model_folder(run.config.student.model)
    digest = model_digest(folder)
    stages = [(arm, seed, _stage_dir(run, name, arm, seed, digest)) for name, arm, seed in run.student_names()]
    students = _prepare(run, folder, digest, [(arm, seed, stage) for arm, seed, stage in stages if not stage.is_done()])
    if not students:
        remove_own_rows(run)
        return
    sizes, work_dir = train.group_sizes, run.stage("train", ".group")
    group = GroupSpec(sizes, train.cpus_per_rank, train.use_gpu, train.max_failures, work_dir, train.wait_for_ranks_s)
    what = f"train.{'min' if len(sizes) > 1 else 'num'}_ranks={sizes[0]} with train.cpus_per_rank={train.cpus_per_rank:g}"
    require(what, sizes[0] * train.cpus_per_rank, sizes[0] * train.use_gpu, run.config.cluster.spec())
    with Drain(run.config.generate.stop_by) as drain, _Board(students, drain) as board:
        board.poll()  # commits students that an earlier attempt finished
        if not board.is_done and not drain.is_wanted():
            with run.ray():
                specs = [student.spec.to_json() for student in students]
                run_group(train_each, specs, group, board.poll, lambda line: _log.warning("train: %s", line), drain.is_wanted)
        if not board.is_done:
            # The ranks stop by themselves in time; the driver's clock may not be there yet.
            drain.pass_on(f"train: stopped with {board.num_left} of {len(students)} students to do; run the same command again to go on")
    if board.is_done:
        remove_own_rows(run)


def _stage_dir(run: Run, name: str, arm: str, seed: int, digest: str) -> StageDir:
    return StageDir(run.stage("train", name), "train", identity_of(run, arm, seed), {"curate": run.digest("curate"), "model": digest})


def identity_of(run: Run, arm: str, seed: int) -> dict[str, Any]:
    """Return what of the configuration decides a student, given its rows and the model it begins as."""
    config = {"train": run.config.train.identity(), "style": run.config.student.style.identity(), "arm": arm, "seed": seed}
    parts = shares_of(run.config.train, arm)
    return config | ({"mixture": parts} if len(parts) > 1 else {})


def _prepare(run: Run, folder: Path, digest: str, todo: list[tuple[str, int, StageDir]]) -> list[_Student]:
    """Tokenise and check all rows here, before any rank exists: ranks that wait for rank 0 to tokenise run into timeouts."""
    if not todo:
        return []
    train = run.config.train
    maker = RowsMaker(run, folder)
    watched = watched_rows(run, maker)
    found = {arm: maker.of_arm(arm) for arm in dict.fromkeys(arm for arm, _, _ in todo)}
    students: list[_Student] = []
    for arm, seed, stage in todo:
        rows, facts = found[arm]
        store = load_rows(rows)
        steps = Course(store.lengths, store.parts, train, seed, store.waves).num_steps
        check_steps(train, steps)
        settle_early(stage.folder, origin_of(run, arm, seed, digest), [each.digest for each in facts])
        students.append(_Student(stage, write_spec(run, stage.folder, seed, (folder, digest), rows, watched), steps, facts))
    return students


def watched_rows(run: Run, maker: RowsMaker) -> Path | None:
    """Return the rows of the selection split, if there are any. Raises UserError when the configuration needs them and there are none."""
    watched = maker.of_selection()
    check_rows(run.config.train.selection, watched is not None)
    return watched


def check_steps(train: TrainConfig, steps: int) -> None:
    """Raise UserError when the configuration asks for something that does not go with so many steps."""
    check_schedule(train, steps)
    check_profile(train.watch.profile, steps)


def origin_of(run: Run, arm: str, seed: int, digest: str) -> str:
    """Return a digest of what decides a student before it has any rows; `digest` is that of the model it begins as."""
    return digest_of([identity_of(run, arm, seed), digest, run.digest("prompts"), run.config.curate.identity()])


def write_spec(run: Run, output: Path, seed: int, model: tuple[Path, str], rows: Path, watched: Path | None) -> TrainSpec:
    """Write and return the spec of the student in `output` that begins as `model` (its folder and digest)."""
    stop_by, selection = run.config.generate.stop_by, None if watched is None else str(watched.resolve())
    until = None if stop_by is None else stop_by.isoformat()
    folder, digest = model
    spec = TrainSpec(output.name, seed, run.config.train, str(folder), digest, str(rows.resolve()), str(output.resolve()), selection, until)
    write_text(output / "spec.json", spec.to_json())
    return spec


class StudentBar:
    """Shows how the ranks come along with one student, from the files they write: a bar of its steps, and what they have to say."""

    def __init__(self, spec: TrainSpec, num_steps: int) -> None:
        self._spec = spec
        self._folder = Path(spec.output)
        self._bar = Progress(f"train {spec.name}", num_steps, "steps")
        self._step = 0
        self._num_said: dict[str, int] = {}

    def show(self, end: int | None = None, **values: str) -> None:
        """Look at the files once. `end`: the steps of a student that is finished; `values` are shown behind the bar."""
        self._show_said()
        row = last_row(self._folder / METRICS)
        step = end if end is not None else int(row.get("step", 0))
        if checkpoint.is_converting(self._folder / "checkpoints"):
            values["checkpoint"] = "being converted for another number of ranks"
        shapes = {"loss": "{:.3f}", "tokens_per_s": "{:.0f}", "mfu": "{:.1%}"}
        if step > self._step:  # after a restart the steps since the checkpoint come again; the bar waits for them
            values |= {name: shape.format(row[name]) for name, shape in shapes.items() if name in row}
            self._bar.advance(step - self._step, **values)
            self._step = step
        else:
            self._bar.show(**values)

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.__exit__(None, None, None)

    def _show_said(self) -> None:
        """Log what the ranks have said since the last look: their watchdogs, and of a learning rate that is not sane."""
        for name in (f"{STALLS}/{SAID}", WARNED):
            path = self._folder / name
            lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
            for line in lines[self._num_said.get(name, 0) :]:
                _log.warning("train %s: %s", self._spec.name, line)
            self._num_said[name] = len(lines)


class _Board:
    """Follows the group through the files it writes: shows the student at work and commits each that is done."""

    def __init__(self, students: Iterable[_Student], drain: Drain) -> None:
        self._waiting = list(students)
        self._drain = drain
        self._current: _Student | None = None
        self._bar: StudentBar | None = None

    def __enter__(self) -> _Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._current is not None and isinstance(error, ValueError):
            folder = self._current.stage.folder
            if not (folder / "checkpoints").is_dir():  # nothing was begun that a corrected configuration could not begin again
                (folder / STARTED).unlink(missing_ok=True)

    @property
    def is_done(self) -> bool:
        """Whether every student is committed."""
        return self.num_left == 0

    @property
    def num_left(self) -> int:
        """Number of students that are not committed."""
        return len(self._waiting) + (self._current is not None)

    def poll(self) -> None:
        """Look at the files once."""
        while not self.is_done:
            if self._current is None:
                self._begin(self._waiting.pop(0))
            assert self._current is not None
            assert self._bar is not None
            result = TrainResult.load(self._current.stage.folder)
            self._bar.show(result.steps if result else None)
            if result is None:
                if self._drain.is_wanted():
                    (self._current.stage.folder / STOP_FILE).touch()
                return
            self._current.commit(result)
            self._bar.close()
            self._current = self._bar = None

    def _begin(self, student: _Student) -> None:
        self._current = student
        student.stage.begin()
        (student.stage.folder / STOP_FILE).unlink(missing_ok=True)  # of an attempt that was killed while it stopped
        self._bar = StudentBar(student.spec, student.num_steps)


def last_row(path: Path) -> dict[str, float]:
    """Return the last whole row of a metrics.jsonl; an empty one while there is none. A writer may be at work on it."""
    if not path.is_file():
        return {}
    with open(path, "rb") as file:
        start = max(0, path.stat().st_size - 4096)
        file.seek(start)
        lines = file.read().split(b"\n")[:-1]  # what follows the last newline is half a row
    rows = [json.loads(line) for line in lines[1 if start else 0 :] if b'"loss"' in line]
    return dict(rows[-1]) if rows else {}
