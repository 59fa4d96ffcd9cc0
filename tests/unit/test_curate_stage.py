"""The curate stage on a run folder whose traces and verdicts are made by hand: counts and the files it leaves."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from w2sr.artifacts import Manifest, StageDir
from w2sr.config import PipelineConfig
from w2sr.errors import UserError
from w2sr.records import Example, FinishReason, Prompt, Reject, Trace, Verdict, Verification, trace_id_of
from w2sr.run import Run
from w2sr.stages import curate
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
    return Trace(trace_id, f"p{number}", teacher, sample, texts[sample], finish[sample], 1, 1, 0, "h", "d", "e", None, 5 * number + sample)


def verdict_of(trace: Trace) -> Verification:
    """The verdict that the grader `exact` gives on these traces."""
    found: tuple[Verdict, str] = [("correct", "match"), ("incorrect", "mismatch"), ("unverifiable", "no_answer"), ("correct", "match"),
                                  ("unverifiable", "error")][trace.sample_index]  # fmt: skip
    answer = trace.text.removeprefix("#### ").removesuffix(" and") if found[0] != "unverifiable" else None
    return Verification(trace.trace_id, trace.prompt_id, *found, answer, answer, position=trace.position)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that is verified: 2 teachers x 6 prompts x 5 samples, traces in parts of 10, verdicts in parts of 30."""
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
        stage = StageDir(run.stage("verify", teacher), "verify", {}, {})
        stage.begin()
        write_table(stage.folder / "part-00000.parquet", [verdict_of(trace) for trace in traces], Verification)
        stage.finish({}, [stage.folder / "part-00000.parquet"])
    return run


def test_curate_pools_all_teachers_and_leaves_arms_rejects_and_a_funnel(run: Run) -> None:
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
    curate.run(run)
    first = run.digest("curate")
    for path in run.stage("curate").iterdir():
        path.unlink()
    curate.run(run)
    assert run.digest("curate") == first


def test_an_arm_that_cannot_be_made_leaves_the_way_free_for_a_corrected_config(run: Run) -> None:
    hard = {"arms": ["all", "correct"], "filters": {"min_unique_word_ratio": 1.0}, "max_rows": 3}
    (run.stage("prompts") / "train.parquet").unlink()
    write_table(
        run.stage("prompts") / "train.parquet", [Prompt(**{**row, "reference_trace": None}) for row in map(_as_dict, PROMPTS)], Prompt
    )
    with pytest.raises(UserError, match=r"drop gold from curate.arms"):
        curate.run(run)
    curate.run(run_in(run.folder, curate=hard))
    assert Manifest.load(run.stage("curate")).counts["correct"] == 3


def test_listing_the_teachers_in_another_order_makes_the_same_files(run: Run, tmp_path: Path) -> None:
    curate.run(run)
    first = Manifest.load(run.stage("curate"))
    for path in run.stage("curate").iterdir():
        path.unlink()
    turned = run.config.model_copy(update={"teachers": run.config.teachers[::-1]})
    curate.run(Run(turned, tmp_path, contextlib.nullcontext))
    assert Manifest.load(run.stage("curate")).files == first.files


def test_the_budget_counts_every_trace_and_knows_hard_prompts(run: Run) -> None:
    curate.run(run_in(run.folder, curate={"arms": ["all"], "budget": {"limits": [1, 40, 1000], "hard_pass_rate": 0.5}}))
    budget = json.loads((run.stage("curate") / "budget.json").read_text())
    group = budget["groups"]["all"]
    assert (group["traces"], group["truncated"]) == (48, 12)  # without the failed requests
    assert (group["longer_than"]["1"], group["longer_than"]["1000"]) == (36, 0)
    assert budget["num_hard_prompts"] == budget["num_prompts"] == 6
    assert budget["groups"]["hard"] == group
    assert budget["groups"]["hard_correct"]["traces"] == 12


def test_people_and_other_evaluation_sets_come_from_files(run: Run, tmp_path: Path) -> None:
    who = {"editor": "ada", "edited_at": "2026-11-22T10:00:00+01:00"}
    trace = trace_of("one", 2, 1)
    people = tmp_path / "people.jsonl"
    decisions = [
        {"decision": "edit", "trace_id": trace.trace_id, "text": "It is 2 + 1, so #### 3", **who},
        {"decision": "write", "prompt_id": "p4", "text": "I do not know", **who},
        {"decision": "write", "prompt_id": "p5", "text": "#### 7", "verdict": "correct", **who},
    ]
    people.write_text("".join(json.dumps(decision) + "\n" for decision in decisions))
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(json.dumps({"problem": "It is 2 + 1, so #### 3 and this is all of a question"}) + "\n")
    settings = {
        "arms": ["all", "human"],
        "match": "none",
        "human": str(people),
        "contamination": {"files": [{"path": str(benchmark), "question": "problem"}], "rules": ["ngram"]},
    }
    curate.run(run_in(run.folder, curate=settings))
    human = {row.text: row for row in read_table(run.stage("curate") / "human.parquet", Example)}
    assert {text: (row.origin, row.verdict, row.edited_from) for text, row in human.items()} == {
        "It is 2 + 1, so #### 3": ("human", "correct", trace.trace_id),  # judged by the run's grader
        "I do not know": ("human", "unverifiable", None),
        "#### 7": ("human", "correct", None),
    }
    rejects = read_table(run.stage("curate") / "rejects.parquet", Reject)
    assert Reject("all", trace.trace_id, "p2", "edited") in rejects
    assert json.loads((run.stage("curate") / "contamination.json").read_text())["sets"]["benchmark"]["questions"] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"human": "nobody.jsonl"}, "curate.human: there is no file nobody.jsonl"),
        ({"contamination": {"files": [{"path": "none.jsonl"}]}}, "curate.contamination.files.0.path: there is no file none.jsonl"),
        ({"contamination": {"files": [{"path": "{folder}/set.jsonl"}]}}, "no text in column 'question'; columns there: problem"),
        ({"contamination": {"files": [{"path": "{folder}/test.jsonl", "question": "problem"}]}}, "two evaluation sets are called 'test'"),
        ({"human": "{folder}/people.jsonl"}, "'p99' is no training prompt of this run"),
    ],
)
def test_files_that_are_missing_or_do_not_fit_are_refused(run: Run, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    for name in ("set", "test"):
        (tmp_path / f"{name}.jsonl").write_text('{"problem": "1 + 1?"}\n')
    line = {"decision": "write", "prompt_id": "p99", "text": "x", "editor": "ada", "edited_at": "2026-11-22T10:00:00Z"}
    (tmp_path / "people.jsonl").write_text(json.dumps(line) + "\n")
    settings = json.loads(json.dumps(settings).replace("{folder}", str(tmp_path)))
    with pytest.raises(UserError, match=words):
        curate.run(run_in(run.folder, curate={"arms": ["all"]} | settings))


@pytest.mark.parametrize("stage", ["generate", "verify"])
@pytest.mark.parametrize("place", [6, -40])
def test_a_damaged_part_is_named(run: Run, stage: str, place: int) -> None:
    part = run.stage(stage, "one") / "part-00000.parquet"
    content = bytearray(part.read_bytes())
    content[place] ^= 0xFF
    part.write_bytes(content)
    with pytest.raises(UserError, match=rf"{stage}/one/part-00000.parquet is not a readable Parquet file .* to make it again"):
        curate.run(run)
    assert not (run.stage("curate") / "stage.json").exists()


def test_curate_needs_the_verdicts(run: Run) -> None:
    (run.stage("verify", "two") / "manifest.json").unlink()
    with pytest.raises(UserError, match="run that stage first"):
        curate.run(run)


def _as_dict(prompt: Prompt) -> dict[str, Any]:
    return {name: getattr(prompt, name) for name in Prompt.__dataclass_fields__}
