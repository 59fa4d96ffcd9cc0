"""How much there is to do: traces, answers, rows and tokens of every stage, from the configuration and from what the run folder holds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from w2sr.artifacts import MANIFEST, Manifest
from w2sr.config import PipelineConfig
from w2sr.planning.assumptions import Assumptions
from w2sr.teachers.config import TeacherConfig
from w2sr.training.batches import batch_plan


@dataclass(frozen=True)
class Measured:
    """What a finished unit took: tokens of one answer, and tokens a second of one device."""

    tokens_each: float
    tokens_per_s: float | None


@dataclass(frozen=True)
class Training:
    """One student: rows at most, steps, tokens of a step and of all steps. `known`: the rows are counted, not bounded."""

    rows: int
    steps: int
    step_tokens: float
    tokens: float
    known: bool


def measured(folder: Path, unit: str) -> Measured | None:
    """Return what the finished stage folder measured, None while there is nothing; `unit`: the count of what was made."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = Manifest.load(folder)
    made, tokens, seconds = manifest.counts.get(unit, 0), manifest.usage.get("tokens", 0.0), manifest.usage.get("device_seconds", 0.0)
    return Measured(tokens / made, tokens / seconds if seconds else None) if made and tokens else None


def answer_tokens(max_new_tokens: int, assumed: Assumptions) -> float:
    """Return the tokens of an answer that nobody has seen yet."""
    return assumed.answer_share * max_new_tokens


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


def training_of(config: PipelineConfig, arm: str, folder: Path, mean_row: float) -> Training:
    """Return what one student of `arm` sees. Rows that are not curated yet are bounded by all traces there can be."""
    train = config.train
    path = folder / "curate" / f"{arm}.parquet"
    known = (folder / "curate" / MANIFEST).is_file() and path.is_file()
    if known:
        import pyarrow.parquet as pq

        rows = int(pq.read_metadata(path).num_rows)
    else:
        rows = _most_rows(config, arm)
    mean = min(mean_row, float(train.max_length))
    batch = batch_plan(train, max(1, train.num_ranks // train.memory.sequence_parallel), mean)
    if train.max_steps is not None:
        steps = train.max_steps
    else:
        assert train.epochs is not None
        steps = max(1, -(-int(rows * mean * train.epochs) // int(batch.step_tokens)))
    return Training(rows, steps, batch.step_tokens, steps * batch.step_tokens, known)


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
