"""How much there is to do: traces, answers, rows and tokens of every stage, from the configuration and from what the run folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from w2sr.artifacts import MANIFEST
from w2sr.config import PipelineConfig
from w2sr.evaluation.bans import bans_of
from w2sr.evaluation.contestants import Contestant
from w2sr.run import Run
from w2sr.teachers.config import TeacherConfig
from w2sr.training.batches import batch_plan
from w2sr.training.prepare import shares_of


@dataclass(frozen=True)
class Training:
    """One student: rows at most, tokens of one, steps, tokens of a step and of all steps. `known`: the rows are counted, not bounded."""

    rows: int
    row_tokens: float
    steps: int
    step_tokens: float
    tokens: float
    known: bool


def num_traces(config: PipelineConfig, teacher: TeacherConfig) -> int:
    """Return the traces of one teacher, at most."""
    return round(config.prompts.num_train * teacher.share) * teacher.samples_per_prompt


def num_answers(config: PipelineConfig) -> list[tuple[str, int, int]]:
    """Return (set, answers, most new tokens) of one model on every set whose size the configuration says."""
    evaluate = config.evaluate
    own = config.prompts.num_test if evaluate.split == "test" else config.prompts.num_selection
    found: list[tuple[str, int, int]] = [(evaluate.split, own * evaluate.samples_per_prompt, evaluate.sampling.max_new_tokens)]
    for each in evaluate.benchmarks if evaluate.split == "test" else []:
        number = min(size for size in (each.limit, each.num_problems, 1 << 60) if size is not None)
        samples = each.samples_per_prompt or evaluate.samples_per_prompt
        found.append((each.name, 0 if number == 1 << 60 else number * samples, each.max_new_tokens or evaluate.sampling.max_new_tokens))
    return found


def num_banned(run: Run, members: list[Contestant], name: str) -> int:
    """Return how many times some contestants answer the set `name` under a ban or its control, at most."""
    labels = {each.label for each in members}
    bans = (ban for ban in bans_of(run) if ban.asked.name == name and ban.contestant.label in labels)
    return sum(2 if ban.config.control else 1 for ban in bans)


def training_of(config: PipelineConfig, arm: str, folder: Path, mean_row: float) -> Training:
    """Return what one student of `arm`, or of a mixture, sees. Rows that are not curated yet are bounded by all traces there can be."""
    train = config.train
    # An epoch of a mixture has as many rows as its arms have together (training/order.py), whatever their shares.
    counted = {part: _rows_of(folder, part) for part in shares_of(train, arm)}
    rows = sum(_most_rows(config, part) if number is None else number for part, number in counted.items())
    known = None not in counted.values()
    mean = min(mean_row, float(train.max_length))
    batch = batch_plan(train, max(1, train.num_ranks // train.memory.sequence_parallel), mean)
    if train.max_steps is not None:
        steps = train.max_steps
    else:
        assert train.epochs is not None
        steps = max(1, -(-int(rows * mean * train.epochs) // int(batch.step_tokens)))
    return Training(rows, mean, steps, batch.step_tokens, steps * batch.step_tokens, known)


def _rows_of(folder: Path, arm: str) -> int | None:
    """Return the rows of a curated arm, None while there is none."""
    path = folder / "curate" / f"{arm}.parquet"
    if not (folder / "curate" / MANIFEST).is_file() or not path.is_file():
        return None
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _most_rows(config: PipelineConfig, name: str) -> int:
    """Return the rows of an arm that is not made yet, at most: all traces there can be, or the size that it is given."""
    arm = next(each for each in config.curate.arms if name in each.arm_names)
    rows = sum(num_traces(config, teacher) for teacher in config.teachers)
    if arm.family == "gold":
        rows = config.prompts.num_train
    if arm.per_prompt is not None:
        rows = min(rows, arm.per_prompt * config.prompts.num_train)
    sizes = {f"{arm.name}-{size}": size for size in arm.sizes}
    return min(rows, sizes.get(name, rows))
