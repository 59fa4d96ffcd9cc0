"""The verify stage on a run folder whose traces are made by hand: rows, counts, resume, early verdicts, votes, judge and audit."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from w2sr.artifacts import Manifest, StageDir
from w2sr.config import PipelineConfig
from w2sr.errors import UserError
from w2sr.grading.audit import AUDIT
from w2sr.grading.follow import Following
from w2sr.grading.verdicts import EARLY
from w2sr.records import FinishReason, Prompt, Trace, Verification, trace_id_of
from w2sr.run import Run
from w2sr.stages import verify
from w2sr.tables import read_table, write_table
from w2sr.teachers.config import SamplingConfig
from w2sr.traces.recovery import remove_shards
from w2sr.traces.shards import shard_files
from w2sr.traces.store import TraceStore

NUM_PROMPTS, SAMPLES = 6, 5
TEACHERS = ("one", "two")
ENGINE = {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"}


def prompts(with_reference: bool = True) -> list[Prompt]:
    """Question n has the answer n + 1; without references, questions 0 to 2 have none."""
    return [
        Prompt(f"p{n}", "train", f"{n} + 1?", str(n + 1) if with_reference or n > 2 else None, f"gold {n}", "file", "{}")
        for n in range(NUM_PROMPTS)
    ]


def trace_of(teacher: str, number: int, sample: int) -> Trace:
    """Samples 0: right; 1: right, then wrong; 2: without an answer; 3: truncated behind a right answer; 4: failed."""
    texts = [f"#### {number + 1}", f"#### {number + 1}\n#### -1", "hm", f"#### {number + 1}\nand", ""]
    finish: list[FinishReason] = ["stop", "stop", "stop", "length", "error"]
    prompt_id = f"p{number}"
    trace_id = trace_id_of(prompt_id, teacher, sample)
    position = number * SAMPLES + sample
    return Trace(trace_id, prompt_id, teacher, sample, texts[sample], finish[sample], 1, 1, 0, "h", "d", "e", None, position)


def run_in(folder: Path, **verify_section: Any) -> Run:
    teachers = [{"name": name, "model": "none", "samples_per_prompt": SAMPLES, "sampling": {"max_new_tokens": 8}} for name in TEACHERS]
    values: dict[str, Any] = {
        "run_dir": str(folder),
        "prompts": {"source": {"kind": "file", "path": "data.jsonl"}, "num_train": 6, "num_test": 1},
        "teachers": teachers,
        "student": {"model": "lab:student"},
        "verify": {"grader": "exact", "audit": 0} | verify_section,
        "train": {"max_steps": 2, "global_batch_size": 4, "micro_batch_size": 2},
        "evaluate": {"sampling": {"max_new_tokens": 8}},
    }
    return Run(PipelineConfig.model_validate(values), folder, contextlib.nullcontext)


def begin_generate(run: Run, teacher: str) -> StageDir:
    stage = StageDir(run.stage("generate", teacher), "generate", {"teacher": teacher}, {})
    stage.begin()
    return stage


def generate(run: Run, rows: Sequence[Prompt] | None = None) -> Run:
    """Finish the prompts and generate stages, as the stages do."""
    stage = StageDir(run.stage("prompts"), "prompts", {}, {})
    stage.begin()
    write_table(stage.folder / "train.parquet", rows or prompts(), Prompt)
    stage.finish({"train": NUM_PROMPTS}, [stage.folder / "train.parquet"])
    for teacher in TEACHERS:
        stage = begin_generate(run, teacher)
        with TraceStore.open(stage.folder, Trace, NUM_PROMPTS * SAMPLES) as store:
            store.append([trace_of(teacher, number, sample) for number in range(NUM_PROMPTS) for sample in range(SAMPLES)])
            stage.finish({"traces": 24, "failed": 6}, store.finish())
        remove_shards(stage.folder)
    return run


def verdicts_of(run: Run, teacher: str) -> list[Verification]:
    return read_table(run.stage("verify", teacher), Verification)


def test_every_trace_gets_its_verdict_in_the_order_of_generate(tmp_path: Path) -> None:
    run = generate(run_in(tmp_path))
    verify.run(run)
    for teacher in TEACHERS:
        counts = Manifest.load(run.stage("verify", teacher)).counts
        expected = {"traces": 24, "correct": 12, "incorrect": 6, "unverifiable": 6, "failed": 6, "first_correct": 18, "overwritten": 6}
        assert {key: counts[key] for key in expected} == expected
        assert sum(number for key, number in counts.items() if key.startswith("reason_")) == 24
        traces = read_table(run.stage("generate", teacher), Trace)
        found = verdicts_of(run, teacher)
        assert [(trace.trace_id, trace.position) for trace in traces] == [(row.trace_id, row.position) for row in found]
        assert [row.reason for row in found[:5]] == ["match", "mismatch", "no_answer", "match", "error"]
        assert (found[1].first_verdict, found[1].first_reason) == ("correct", "match")
        assert not shard_files(run.stage("verify", teacher))


def test_a_killed_stage_goes_on_where_it_was_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm, killed = generate(run_in(tmp_path / "calm")), generate(run_in(tmp_path / "killed"))
    verify.run(calm)
    graded: list[int] = []

    def dying(*args: Any) -> Any:
        if graded:
            raise KeyboardInterrupt
        graded.append(1)
        return finish(*args)

    finish = verify._finish
    monkeypatch.setattr(verify, "_finish", dying)
    with pytest.raises(KeyboardInterrupt):
        verify.run(killed)
    monkeypatch.undo()
    monkeypatch.setattr("w2sr.grading.grade.Grader.grade", lambda *_: pytest.fail("graded twice"))
    verify.run(killed)
    for teacher in TEACHERS:
        first, second = (Manifest.load(run.stage("verify", teacher)) for run in (calm, killed))
        assert first.files == second.files
        assert first.counts == second.counts


def test_another_grader_is_refused_for_finished_work(tmp_path: Path) -> None:
    verify.run(generate(run_in(tmp_path)))
    with pytest.raises(UserError, match="grader: 'exact' -> 'math'"):
        verify.run(run_in(tmp_path, grader="math"))


def begin_early(run: Run) -> TraceStore[Trace]:
    """Finish the prompts stage and open teacher one's store of traces."""
    stage = StageDir(run.stage("prompts"), "prompts", {}, {})
    stage.begin()
    write_table(stage.folder / "train.parquet", prompts(), Prompt)
    stage.finish({"train": NUM_PROMPTS}, [stage.folder / "train.parquet"])
    return TraceStore.open(begin_generate(run, "one").folder, Trace, NUM_PROMPTS * SAMPLES, flush_interval_s=0.05)


def judge_early(run: Run, store: TraceStore[Trace]) -> None:
    """Let twenty traces be committed and judged while the store is written; then end generation."""
    subject = verify.subject_of(run, "one", NUM_PROMPTS)
    with Following([subject], prompts(), run.digest("prompts"), run.config.verify, interval_s=0.05) as following:
        for number in range(4):
            store.append([trace_of("one", number, sample) for sample in range(SAMPLES)])
            time.sleep(0.05)
        deadline = time.monotonic() + 30
        while following.num_judged < 4 * SAMPLES and time.monotonic() < deadline:
            time.sleep(0.02)
    assert following.num_judged == 4 * SAMPLES
    store.append([trace_of("one", number, sample) for number in (4, 5) for sample in range(SAMPLES)])
    stage = StageDir(run.stage("generate", "one"), "generate", {"teacher": "one"}, {})
    stage.finish({"traces": 24, "failed": 6}, store.finish())
    store.close()
    remove_shards(stage.folder)


def only_teacher_one(run: Run) -> Run:
    return dataclasses.replace(run, config=run.config.model_copy(update={"teachers": run.config.teachers[:1]}))


def test_early_verdicts_are_kept_and_the_result_is_the_same_as_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calm, early = generate(run_in(tmp_path / "calm")), only_teacher_one(run_in(tmp_path / "early"))
    verify.run(calm)
    judge_early(early, begin_early(early))
    assert (early.stage("verify", "one") / EARLY).exists()
    graded: list[int] = []
    grade = verify.Grader.grade

    def counted(self: Any, traces: Sequence[Trace], *rest: Any) -> list[Verification]:
        graded.append(len(traces))
        return grade(self, traces, *rest)

    monkeypatch.setattr("w2sr.grading.grade.Grader.grade", counted)
    verify.run(early)
    assert sum(graded) == 2 * SAMPLES
    assert Manifest.load(early.stage("verify", "one")).files == Manifest.load(calm.stage("verify", "one")).files
    assert not (early.stage("verify", "one") / EARLY).exists()


def test_early_verdicts_of_another_grader_are_thrown_away(tmp_path: Path) -> None:
    run = only_teacher_one(run_in(tmp_path))
    judge_early(run, begin_early(run))
    changed = only_teacher_one(run_in(tmp_path, grader="math"))
    early = shard_files(run.stage("verify", "one"))
    verify.subject_of(changed, "one", NUM_PROMPTS).discard_unless("another")
    assert early
    assert not shard_files(run.stage("verify", "one"))
    verify.run(changed)
    assert Manifest.load(run.stage("verify", "one")).counts["traces"] == 24


def test_finished_verdicts_are_not_touched_when_traces_are_made_again(tmp_path: Path) -> None:
    run = only_teacher_one(generate(run_in(tmp_path)))
    verify.run(run)
    before = sorted(path.name for path in run.stage("verify", "one").iterdir())
    for path in run.stage("generate", "one").iterdir():
        path.unlink()
    stage = begin_generate(run, "one")
    subject = verify.subject_of(run, "one", NUM_PROMPTS)
    with (
        TraceStore.open(stage.folder, Trace, NUM_PROMPTS * SAMPLES, flush_interval_s=0.01) as store,
        Following([subject], prompts(), run.digest("prompts"), run.config.verify, interval_s=0.01) as following,
    ):
        store.append([trace_of("one", 0, 0)])
        time.sleep(0.3)
        stage.finish({"traces": 1, "failed": 0}, store.finish())
    assert following.num_judged == 0
    assert sorted(path.name for path in run.stage("verify", "one").iterdir()) == before
    with pytest.raises(UserError, match="generate/one changed since"):
        verify.run(run)


def test_a_fault_of_the_follower_is_left_to_the_stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = only_teacher_one(run_in(tmp_path, grader="reasoning_gym"))
    store = begin_early(run)
    subject = verify.subject_of(run, "one", NUM_PROMPTS)
    with store, Following([subject], prompts(), run.digest("prompts"), run.config.verify, interval_s=0.01) as following:
        store.append([trace_of("one", 0, 0)])
        store.flush()
        following._thread.join(timeout=30)
        assert not following._thread.is_alive()
    assert "use verify.grader: math or exact" in caplog.text


def test_without_references_the_majority_of_all_teachers_decides(tmp_path: Path) -> None:
    run = generate(run_in(tmp_path, without_reference="majority"), prompts(with_reference=False))
    verify.run(run)
    for teacher in TEACHERS:
        rows = verdicts_of(run, teacher)
        # Each teacher votes twice for n + 1 and once for -1.
        assert [(row.verdict, row.reason, row.method) for row in rows[:5]] == [
            ("correct", "majority", "majority"),
            ("incorrect", "minority", "majority"),
            ("unverifiable", "no_answer", "reference"),
            ("correct", "majority", "majority"),
            ("unverifiable", "error", "reference"),
        ]
        assert rows[0].agreement == pytest.approx(4 / 6)
        assert rows[1].first_verdict == "correct"
        assert {row.method for row in rows[3 * SAMPLES :]} == {"reference"}
    assert Manifest.load(run.stage("verify", "one")).inputs.keys() == {"prompts", "generate/one", "generate/two"}


class FakeClient:
    """Calls n + 1 right for question n, and everything it is unsure of so."""

    def __init__(self, *_: Any) -> None:
        self.closed = False

    async def chat_patiently(self, messages: Sequence[Mapping[str, str]], sampling: SamplingConfig, seed: int) -> Any:
        assert sampling.temperature == 0
        answer = messages[-1]["content"].rsplit("Its final answer: ", 1)[1]
        verdict = {"1": "VERDICT: CORRECT", "2": "VERDICT: UNSURE", "3": "hm"}.get(answer, "VERDICT: INCORRECT")
        return type("Reply", (), {"content": f"Let me see. {seed}\n{verdict}"})()

    def close(self) -> None:
        self.closed = True


def test_without_references_a_judge_may_decide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("w2sr.teachers.openai_client.OpenAIClient", FakeClient)
    section = {"without_reference": "judge", "judge": {"model": "big", "engine": ENGINE}}
    run = generate(run_in(tmp_path, **section), prompts(with_reference=False))
    verify.run(run)
    rows = verdicts_of(run, "one")
    firsts = [rows[number * SAMPLES] for number in range(4)]
    assert [(row.verdict, row.reason, row.method) for row in firsts] == [
        ("correct", "judge_correct", "judge"),
        ("unverifiable", "judge_unsure", "judge"),
        ("unverifiable", "judge_unclear", "judge"),
        ("correct", "match", "reference"),
    ]
    assert rows[1].reason == "judge_incorrect"
    assert rows[1].first_verdict is None


def test_the_audit_is_stored_and_counted(tmp_path: Path) -> None:
    run = generate(run_in(tmp_path, grader="math", audit=9))
    verify.run(run)
    manifest = Manifest.load(run.stage("verify", "one"))
    report = json.loads((run.stage("verify", "one") / AUDIT).read_text())
    assert AUDIT in manifest.files
    assert manifest.counts["audited"] == sum(estimate["checked"] for estimate in report["estimates"].values()) == 9
    assert manifest.counts["audit_disagreements"] == 0
    assert report["estimates"]["false_positive"]["population"] == 12
    assert report["estimates"]["false_positive"]["low"] == 0
    assert 0.5 < report["estimates"]["false_positive"]["high"] < 0.8  # three checked: at most 71 %
