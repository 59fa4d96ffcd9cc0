"""Stage `verify`: a verdict on every trace. Part i of verify judges part i of generate, so that a killed stage goes on where it was."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from w2sr.artifacts import StageDir
from w2sr.grading.grade import Grader
from w2sr.progress import Progress
from w2sr.records import Prompt, Trace, Verification
from w2sr.run import Run
from w2sr.tables import iter_table, part_files, read_table, write_table

_PROGRESS_ROWS = 512  # traces graded between two movements of the progress bar


def run(run: Run) -> None:
    """Write verify/<teacher>/part-*.parquet for every teacher.

    Counts: traces = correct + incorrect + unverifiable, and the same traces once more by reason ("reason_match", "reason_no_answer", ...).
    Requests on which the engine failed are no traces: they are `failed` here as in the generate stage (their rows say "error").
    """
    with Grader(run.config.verify) as grader:
        for teacher in run.config.teachers:
            _verify_teacher(run, teacher.name, grader)


def _verify_teacher(run: Run, name: str, grader: Grader) -> None:
    inputs = {"prompts": run.digest("prompts"), f"generate/{name}": run.digest("generate", name)}
    stage = StageDir(run.stage("verify", name), "verify", run.config.verify.identity(), inputs)
    if stage.is_done():
        return
    stage.begin()
    prompts = {prompt.prompt_id: prompt for prompt in read_table(run.stage("prompts") / "train.parquet", Prompt)}
    sources = part_files(run.stage("generate", name))
    parts = [stage.folder / source.name for source in sources]
    rows = [_num_rows(source) for source in sources]
    done = sum(count for part, count in zip(parts, rows, strict=True) if part.exists())
    with Progress(f"verify {name}", sum(rows), "traces", done) as progress:
        for source, part in zip(sources, parts, strict=True):
            if not part.exists():
                write_table(part, _grade(read_table(source, Trace), prompts, grader, progress), Verification)
    stage.finish(_counts(parts), parts)


def _grade(traces: list[Trace], prompts: dict[str, Prompt], grader: Grader, progress: Progress) -> list[Verification]:
    verifications = []
    for start in range(0, len(traces), _PROGRESS_ROWS):
        some = traces[start : start + _PROGRESS_ROWS]
        verifications.extend(grader.grade(some, prompts))
        progress.advance(len(some))
    return verifications


def _num_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.read_metadata(path).num_rows)


def _counts(parts: list[Path]) -> dict[str, int]:
    verdicts: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    num_failed = 0
    for part in parts:
        for row in iter_table(part, Verification):
            if row.reason == "error":
                num_failed += 1
                continue
            verdicts[row.verdict] += 1
            reasons[f"reason_{row.reason}"] += 1
    counts = {"traces": verdicts.total(), **{verdict: verdicts[verdict] for verdict in ("correct", "incorrect", "unverifiable")}}
    assert counts["traces"] == reasons.total()
    return {**counts, "failed": num_failed, **dict(sorted(reasons.items()))}
