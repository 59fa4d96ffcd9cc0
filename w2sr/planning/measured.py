"""What finished units of the run folder took: used in place of assumptions where the plan asks for the same again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from w2sr.artifacts import MANIFEST, Manifest
from w2sr.errors import UserError
from w2sr.evaluation.contestants import Contestant, contestants_of
from w2sr.planning.layout import Layout, layout_of
from w2sr.planning.shapes import ModelShape, config_folder
from w2sr.run import Run, open_folder
from w2sr.teachers.config import PoolConfig, TeacherConfig
from w2sr.training.spec import TrainResult, TrainSpec


@dataclass(frozen=True)
class Measured:
    """What a finished unit took: tokens of one answer or row, and tokens a second of one replica or rank.

    `tokens_per_s` is None where it was not measured, or of another model, engine, layout or device than the plan's.
    """

    tokens_each: float
    tokens_per_s: float | None


class Finished:
    """The finished units in the folder of `run`, and what they were configured to be, which need not be what `run` asks for."""

    def __init__(self, run: Run) -> None:
        self._run = run
        try:
            self._before: Run | None = open_folder(run.folder)
        except UserError:  # nothing ran there yet, or what did cannot be read any more
            self._before = None

    def traces(self, teacher: TeacherConfig) -> Measured | None:
        """Return what the traces of a teacher took, None when it is not done."""
        before = self._before.config.teachers if self._before is not None else []
        same = any(
            (each.name, each.model, each.engine, _device(each.pool)) == (teacher.name, teacher.model, teacher.engine, _device(teacher.pool))
            for each in before
        )
        return _measured(self._run.stage("generate", teacher.name), "traces", same)

    def answers(self, set_name: str, who: Contestant) -> Measured | None:
        """Return what the answers of a contestant to a set took, None when they are not done."""
        same, now = False, self._run.config
        if self._before is not None:
            then = self._before.config
            same = (then.student.model, _device(then.evaluate.pool)) == (now.student.model, _device(now.evaluate.pool)) and any(
                (each.label, each.model, each.engine) == (who.label, who.model, who.engine) for each in contestants_of(self._before)
            )
        return _measured(self._run.stage("evaluate", set_name, who.label), "samples", same)

    def training_rate(self, shape: ModelShape, layout: Layout) -> float | None:
        """Return the tokens a second of a rank of a student that was trained as `layout` says; None where there is none."""
        for name, _, _ in self._run.student_names():
            folder = self._run.stage("train", name)
            known = _measured(folder, "kept", same=True)
            if known is not None and self._was_trained_so(folder, shape, layout):
                return known.tokens_per_s
        return None

    def _was_trained_so(self, folder: Path, shape: ModelShape, layout: Layout) -> bool:
        train = self._run.config.train
        try:
            spec = TrainSpec.from_json((folder / "spec.json").read_text(encoding="utf-8"), str(folder))
            result = TrainResult.load(folder)
        except (OSError, ValueError):  # removed, or of a version with other keys: then nobody knows how it was trained
            return False
        same_model = Path(spec.model).resolve() == config_folder(self._run.config.student.model).resolve()
        same_ranks = result is not None and {ranks for _, ranks in result.sizes} == {layout.num_ranks}
        same_cpus = layout.on_gpu or spec.train.cpus_per_rank == train.cpus_per_rank
        return same_model and same_ranks and same_cpus and layout_of(spec.train, shape, layout.num_ranks) == layout


def _device(pool: PoolConfig) -> tuple[float, float]:
    return pool.gpus_per_replica, 0.0 if pool.gpus_per_replica else pool.cpus_per_replica


def _measured(folder: Path, unit: str, same: bool) -> Measured | None:
    """Return what the finished stage folder measured, None while there is nothing; `unit`: the count of what was made."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = Manifest.load(folder)
    made, tokens, seconds = manifest.counts.get(unit, 0), manifest.usage.get("tokens", 0.0), manifest.usage.get("device_seconds", 0.0)
    return Measured(tokens / made, tokens / seconds if seconds and same else None) if made and tokens else None
