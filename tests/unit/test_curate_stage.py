"""The verify and curate stages on a run folder whose traces are made by hand: parts, resume, counts, and the files they leave."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from w2sr.artifacts import Manifest, StageDir
from w2sr.config import PipelineConfig
from w2sr.errors import UserError
from w2sr.records import Example, FinishReason, Prompt, Reject, Trace, Verification, trace_id_of
from w2sr.run import Run
from w2sr.stages import curate, verify
from w2sr.tables import read_table, write_table

PROMPTS = [Prompt(f"p{n}", "train", f"{n} + 1?", str(n + 1), f"gold {n}", "file", "{}") for n in range(6)]
TEACHERS = ("one", "two")


def run_in(folder: Path, **sections: Any) -> Run:
    values: dict[str, Any] = {
        "run_dir": str(folder),
        "prompts": {"source": {"kind": "file", "path": "data.jsonl"}, "num_train": 6, "num_test": 1},
        "teachers": [{"name": name, "model": "none", "sampling": {"max_new_tokens": 8}} for name in TEACHERS],
        "student": {"model": "lab:student"},
        "verify": {"grader": "exact"},
        "curate": {"arms": ["all", "correct", "incorrect", "gold"]},
        "train": {"max_steps": 2, "global_batch_size": 4, "micro_batch_size": 2},
        "evaluate": {"sampling": {"max_new_tokens": 8}},
    }
    return Run(PipelineConfig.model_validate(values | sections), folder, contextlib.nullcontext)


def trace_of(teacher: str, number: int, sample: int) -> Trace:
    """Samples 0: right; 1: wrong; 2: without an answer; 3: truncated behind a right answer; 4: failed."""
    texts = [f"#### {number + 1}", "#### -1", "hm", f"#### {number + 1} and", ""]
    finish: list[FinishReason] = ["stop", "stop", "stop", "length", "error"]
    trace_id = trace_id_of(f"p{number}", teacher, sample)
    return Trace(trace_id, f"p{number}", teacher, sample, texts[sample], finish[sample], 1, 1, 0, "h", "d", "e", None)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run whose prompts and generate stages are finished: 2 teachers x 6 prompts x 5 samples, in parts of 10."""
    run = run_in(tmp_path)
    stage = StageDir(run.stage("prompts"), "prompts", {}, {})
    stage.begin()
    write_table(stage.folder / "train.parquet", PROMPTS, Prompt)
    stage.finish({"train": 6}, [stage.folder / "train.parquet"])
    for teacher in TEACHERS:
        stage = StageDir(run.stage("generate", teacher), "generate", {"teacher": teacher}, {})
        stage.begin()
        traces = [trace_of(teacher, number, sample) for number in range(6) for sample in range(5)]
        parts = [stage.folder / f"part-{index:05d}.parquet" for index in range(3)]
        for index, part in enumerate(parts):
            write_table(part, traces[10 * index : 10 * index + 10], Trace)
        stage.finish({"traces": 24, "failed": 6}, parts)
    return run


def test_verify_judges_part_by_part_and_counts_every_trace(run: Run) -> None:
    verify.run(run)
    for teacher in TEACHERS:
        counts = Manifest.load(run.stage("verify", teacher)).counts
        assert {key: counts[key] for key in ("traces", "correct", "incorrect", "unverifiable", "failed")} == {
            "traces": 24,
            "correct": 6,
            "incorrect": 12,
            "unverifiable": 6,
            "failed": 6,
        }
        assert sum(number for key, number in counts.items() if key.startswith("reason_")) == 24
        for index in range(3):
            part = f"part-{index:05d}.parquet"
            traces = read_table(run.stage("generate", teacher) / part, Trace)
            verdicts = read_table(run.stage("verify", teacher) / part, Verification)
            assert [trace.trace_id for trace in traces] == [verdict.trace_id for verdict in verdicts]


def test_a_killed_verify_goes_on_with_the_missing_parts_and_ends_the_same(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    def dying(path: Path, rows: Any, record_type: type[Any]) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(path.name)
        write_table(path, rows, record_type)

    monkeypatch.setattr(verify, "write_table", dying)
    with pytest.raises(KeyboardInterrupt):
        verify.run(run)
    before = (run.stage("verify", "one") / "part-00000.parquet").stat().st_mtime_ns
    monkeypatch.undo()
    verify.run(run)
    assert (run.stage("verify", "one") / "part-00000.parquet").stat().st_mtime_ns == before
    resumed = run.digest("verify", "one")
    for path in run.stage("verify", "one").iterdir():
        path.unlink()
    verify.run(run)
    assert run.digest("verify", "one") == resumed
    assert Manifest.load(run.stage("verify", "two")).num_attempts == 1


def test_verify_refuses_another_grader_for_finished_work(run: Run) -> None:
    verify.run(run)
    with pytest.raises(UserError, match="grader: 'exact' -> 'math'"):
        verify.run(run_in(run.folder, verify={"grader": "math"}))


def test_curate_pools_all_teachers_and_leaves_arms_rejects_and_a_funnel(run: Run) -> None:
    verify.run(run)
    curate.run(run)
    folder = run.stage("curate")
    manifest = Manifest.load(folder)
    arms = {arm: read_table(folder / f"{arm}.parquet", Example) for arm in run.config.curate.arm_names}
    assert {len(rows) for rows in arms.values()} == {6}
    assert {row.origin for row in arms["correct"]} <= set(TEACHERS)
    assert {row.verdict for row in arms["incorrect"]} == {"incorrect"}
    rejects = read_table(folder / "rejects.parquet", Reject)
    funnel = json.loads((folder / "funnel.json").read_text())
    assert funnel["traces"] == manifest.counts["traces"] == 60
    for arm in arms:
        candidates = 6 if arm == "gold" else 60
        assert manifest.counts[arm] + manifest.counts[f"{arm}_rejected"] == candidates
        assert sum(reject.arm == arm for reject in rejects) == manifest.counts[f"{arm}_rejected"]
        assert sum(funnel["arms"][arm].values()) == 2 * candidates
    assert funnel["arms"]["correct"] == {
        "candidates": 60,
        "kept": 6,
        "error": 12,
        "no_answer": 12,
        "size_match": 6,
        "truncated": 12,
        "wrong_answer": 12,
    }
    curate.run(run)
    assert Manifest.load(folder) == manifest


def test_curated_files_are_the_same_bytes_every_time(run: Run) -> None:
    verify.run(run)
    curate.run(run)
    first = run.digest("curate")
    for path in run.stage("curate").iterdir():
        path.unlink()
    curate.run(run)
    assert run.digest("curate") == first


def test_an_arm_that_cannot_be_made_leaves_the_way_free_for_a_corrected_config(run: Run) -> None:
    verify.run(run)
    hard = {"arms": ["all", "correct"], "filters": {"min_unique_word_ratio": 1.0}, "max_rows": 3}
    (run.stage("prompts") / "train.parquet").unlink()
    write_table(
        run.stage("prompts") / "train.parquet", [Prompt(**{**row, "reference_trace": None}) for row in map(_as_dict, PROMPTS)], Prompt
    )
    with pytest.raises(UserError, match=r"drop gold from curate.arms"):
        curate.run(run)
    curate.run(run_in(run.folder, curate=hard))
    assert Manifest.load(run.stage("curate")).counts["correct"] == 3


def test_curate_needs_the_verdicts(run: Run) -> None:
    with pytest.raises(UserError, match="run that stage first"):
        curate.run(run)


def _as_dict(prompt: Prompt) -> dict[str, Any]:
    return {name: getattr(prompt, name) for name in Prompt.__dataclass_fields__}
