"""Stage `curate`: from judged traces to the training sets that are compared."""

from __future__ import annotations

import json
from collections.abc import Iterator

from w2sr.artifacts import StageDir
from w2sr.curation.arms import Arm, make_arms
from w2sr.curation.filters import Judged
from w2sr.progress import Progress
from w2sr.records import Example, Prompt, Reject, Trace, Verification
from w2sr.run import Run
from w2sr.stages.prompts import undone_by_user_error
from w2sr.tables import iter_table, read_table, write_table, write_text
from w2sr.teachers.models import model_folder, special_tokens_of


def run(run: Run) -> None:
    """Write curate/<arm>.parquet, rejects.parquet and funnel.json.

    Counts: "traces", and for each arm "<arm>" (rows kept) and "<arm>_rejected"; both sum to the traces (for gold: to the training prompts).
    """
    names = [teacher.name for teacher in run.config.teachers]
    inputs = {"prompts": run.digest("prompts")}
    for name in names:
        inputs |= {f"{stage}/{name}": run.digest(stage, name) for stage in ("generate", "verify")}
    special_tokens = special_tokens_of(model_folder(run.config.student.model))
    identity = {**run.config.curate.identity(), "run_seed": run.config.seed, "teachers": names, "special_tokens": special_tokens}
    stage = StageDir(run.stage("curate"), "curate", identity, inputs)
    if stage.is_done():
        return
    with undone_by_user_error(stage), Progress("curate", len(run.config.curate.arms), "arms") as progress:
        prompts = read_table(run.stage("prompts") / "train.parquet", Prompt)
        pool = [judged for name in names for judged in _judged(run, name)]
        arms = make_arms(pool, prompts, run.config.curate, run.config.seed, special_tokens)
        _write(stage, arms, len(pool), progress)


def _judged(run: Run, teacher: str) -> Iterator[Judged]:
    """Yield a teacher's traces with their verdicts: the rows of both stages are in the same order."""
    traces = iter_table(run.stage("generate", teacher), Trace)
    verdicts = iter_table(run.stage("verify", teacher), Verification)
    for trace, verdict in zip(traces, verdicts, strict=True):
        assert trace.trace_id == verdict.trace_id, f"the verdicts of teacher {teacher} do not belong to its traces"
        yield Judged(trace, verdict)


def _write(stage: StageDir, arms: list[Arm], num_traces: int, progress: Progress) -> None:
    outputs = [stage.folder / f"{arm.name}.parquet" for arm in arms]
    for arm, path in zip(arms, outputs, strict=True):
        write_table(path, arm.examples, Example)
        progress.advance(1)
    rejects, funnel = stage.folder / "rejects.parquet", stage.folder / "funnel.json"
    write_table(rejects, [reject for arm in arms for reject in arm.rejects], Reject)
    write_text(funnel, json.dumps({"traces": num_traces, "arms": {arm.name: arm.funnel() for arm in arms}}, indent=1) + "\n")
    counts = {"traces": num_traces}
    for arm in arms:
        counts |= {arm.name: len(arm.examples), f"{arm.name}_rejected": len(arm.rejects)}
    stage.finish(counts, [*outputs, rejects, funnel])
