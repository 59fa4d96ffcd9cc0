"""The generate stage on a real Ray with a tiny model: resume, exactness, what is recorded and what is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ClusterSpec
from cluster.pool import Pool
from tests.tiny import make_tiny_model
from w2sr.artifacts import Manifest, StageDir, file_digest
from w2sr.config import PipelineConfig
from w2sr.errors import StoppedEarly, UserError
from w2sr.records import Prompt, Trace, seed_of, trace_id_of
from w2sr.run import Run
from w2sr.stages import generate
from w2sr.tables import read_table, write_table
from w2sr.teachers.sink import Sink

NUM_PROMPTS = 20
NO_GATE = {"gate": {"min_format_valid": 0, "max_loops": 1}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), std=0.05)


@pytest.fixture(scope="module")
def pool(ray_cluster: ClusterSpec) -> Iterator[Pool]:
    """One pool for all tests: a process that imports torch and transformers takes seconds to start."""
    assert ray_cluster.num_cpus == 2
    with Pool() as shared:
        yield shared


@pytest.fixture
def make_run(tmp_path: Path, model: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch, ray_cluster: ClusterSpec) -> Callable[..., Run]:
    monkeypatch.setattr(generate, "open_pool", lambda *_: contextlib.nullcontext(pool))

    def make(name: str = "run", questions: list[str] | None = None, teachers: list[dict[str, Any]] | None = None, **settings: Any) -> Run:
        standard = {
            "name": "tiny",
            "model": str(model),
            "engine": {"batch_size": 4},
            "sampling": {"temperature": 1.0, "max_new_tokens": 12},
            "samples_per_prompt": 2,
            "pool": {"cpus_per_replica": 0.5},
        }
        values = {
            "run_dir": str(tmp_path / name),
            "prompts": {"source": {"kind": "file", "path": "x.jsonl"}, "num_train": NUM_PROMPTS, "num_test": 1},
            "teachers": [standard | teacher for teacher in teachers or [{}]],
            "generate": NO_GATE,
            "student": {"model": str(model)},
            "verify": {"grader": "exact"},
            "train": {"max_steps": 1},
            "evaluate": {"sampling": {"max_new_tokens": 8}},
            "cluster": {"num_cpus": ray_cluster.num_cpus},
        }
        run = Run(PipelineConfig.model_validate(values | settings), tmp_path / name, contextlib.nullcontext)
        if not run.stage("prompts").exists():
            write_prompts(run, questions or [f"{number}+{number * 7}" for number in range(NUM_PROMPTS)])
        return run

    return make


def write_prompts(run: Run, questions: list[str]) -> None:
    stage = StageDir(run.stage("prompts"), "prompts", {}, {})
    stage.begin()
    prompts = [Prompt(f"p{number:03d}", "train", question, "7", None, "test", "{}") for number, question in enumerate(questions)]
    write_table(stage.folder / "train.parquet", prompts, Prompt)
    stage.finish({"train": len(prompts)}, [stage.folder / "train.parquet"])


def files(run: Run, teacher: str = "tiny") -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(run.stage("generate", teacher).glob("*.parquet"))}


def interrupt_after(num_tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    take, taken = Sink.take, []

    def counted(self: Sink, outcome: Any) -> Sequence[Trace]:
        if len(taken) == num_tasks:
            raise KeyboardInterrupt
        taken.append(outcome)
        return take(self, outcome)

    monkeypatch.setattr(Sink, "take", counted)


def test_every_sample_of_every_prompt_is_there_once_with_its_provenance(make_run: Callable[..., Run]) -> None:
    run = make_run()
    generate.run(run)
    folder = run.stage("generate", "tiny")
    traces = read_table(folder, Trace)
    expected = [(f"p{number:03d}", sample, 2 * number + sample) for number in range(NUM_PROMPTS) for sample in range(2)]
    assert [(trace.prompt_id, trace.sample_index, trace.position) for trace in traces] == expected
    for trace in traces:
        assert trace.trace_id == trace_id_of(trace.prompt_id, "tiny", trace.sample_index)
        assert trace.seed == seed_of(0, trace.trace_id)
        assert (trace.generator, trace.engine, trace.error) == ("tiny", "hf", None)
        assert trace.engine_version.startswith("transformers ")
        assert trace.model
        assert trace.token_ids is not None
        assert len(trace.token_ids) == trace.num_tokens
    manifest = Manifest.load(folder)
    assert manifest.counts == {"prompts": 20, "samples": 40, "traces": 40, "failed": 0}
    assert list(manifest.files) == ["part-00000.parquet"] == list(files(run))
    assert manifest.usage["tokens"] == sum(trace.num_tokens for trace in traces)
    assert manifest.usage["device_seconds"] > 0
    assert set(manifest.inputs) == {"prompts", "model"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["tokens"] for row in rows) == manifest.usage["tokens"]
    assert sum(row["traces"] for row in rows) == 40


def test_the_bytes_do_not_depend_on_replicas_or_on_an_interruption(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    calm = make_run("calm", teachers=[{"pool": {"cpus_per_replica": 0.5, "replicas": 1}}])
    generate.run(calm)
    killed = make_run("killed")
    with monkeypatch.context() as torn:
        interrupt_after(3, torn)
        with pytest.raises(KeyboardInterrupt):
            generate.run(killed)
    kept = read_table_of_shards(killed)
    assert len(kept) == 12, "what was finished is committed"
    generate.run(killed)
    assert files(killed) == files(calm)
    one, two = (Manifest.load(run.stage("generate", "tiny")) for run in (calm, killed))
    assert (one.digest, one.usage["tokens"]) == (two.digest, two.usage["tokens"])
    assert two.num_attempts == 2
    generate.run(killed)  # finished: nothing is done, no session is needed


def read_table_of_shards(run: Run) -> list[Trace]:
    return [trace for path in run.stage("generate", "tiny").glob("shard-*.parquet") for trace in read_table(path, Trace)]


def test_teachers_work_side_by_side_each_on_its_share(make_run: Callable[..., Run]) -> None:
    run = make_run(teachers=[{"name": "one", "share": 0.5}, {"name": "two", "share": 0.5, "samples_per_prompt": 1}])
    generate.run(run)
    one, two = (read_table(run.stage("generate", name), Trace) for name in ("one", "two"))
    assert (len(one), len(two)) == (20, 10)
    asked = [{trace.prompt_id for trace in traces} for traces in (one, two)]
    assert asked[0] | asked[1] == {f"p{number:03d}" for number in range(NUM_PROMPTS)}
    assert not asked[0] & asked[1]
    assert Manifest.load(run.stage("generate", "one")).counts == {"prompts": 10, "samples": 20, "traces": 20, "failed": 0}


def test_a_rescue_samples_until_right_and_survives_an_interruption(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    def judge_by(_grader: Any, _prompts: Any) -> Callable[[Sequence[Trace]], list[bool]]:
        return lambda traces: [len(trace.text) % 3 == 0 for trace in traces]

    monkeypatch.setattr(generate, "_judge_by", judge_by)
    teachers = [{"until_correct": True, "samples_per_prompt": 3}]
    calm = make_run("calm", teachers=teachers)
    generate.run(calm)
    traces = read_table(calm.stage("generate", "tiny"), Trace)
    by_prompt: dict[str, list[bool]] = {}
    for trace in traces:
        by_prompt.setdefault(trace.prompt_id, []).append(len(trace.text) % 3 == 0)
    assert len(by_prompt) == NUM_PROMPTS
    for verdicts in by_prompt.values():
        assert not any(verdicts[:-1])
        assert verdicts[-1] or len(verdicts) == 3
    assert NUM_PROMPTS < len(traces) < 3 * NUM_PROMPTS, "some prompts took more than one sample, some fewer than three"
    killed = make_run("killed", teachers=teachers)
    with monkeypatch.context() as torn:
        interrupt_after(6, torn)
        with pytest.raises(KeyboardInterrupt):
            generate.run(killed)
    generate.run(killed)
    assert files(killed) == files(calm)


def test_the_time_to_stop_drains_commits_and_says_how_far_it_came(make_run: Callable[..., Run]) -> None:
    past = (datetime.now(timezone.utc) - timedelta(seconds=1)).isoformat()
    run = make_run(generate={**NO_GATE, "stop_by": past})
    with pytest.raises(StoppedEarly, match=r"stopped before the work was done; committed: tiny \d+ of 40. Run the same command again"):
        generate.run(run)
    again = make_run()
    generate.run(again)  # the time to stop is no part of the result
    assert Manifest.load(again.stage("generate", "tiny")).counts["traces"] == 40


def test_a_teacher_that_writes_garbage_is_stopped_early_and_can_be_let_through(make_run: Callable[..., Run]) -> None:
    run = make_run(generate={"gate": {"after": 8}})
    with pytest.raises(UserError, match=r"teacher tiny: only 0 of \d+ .* requests ended by themselves with a final answer"):
        generate.run(run)
    kept = len(read_table_of_shards(run))
    assert 8 <= kept < 40, "it did not wait for all of them, and what was made is kept"
    generate.run(make_run())
    assert Manifest.load(run.stage("generate", "tiny")).counts["traces"] == 40


def test_requests_that_fail_are_kept_and_counted(make_run: Callable[..., Run]) -> None:
    run = make_run(questions=["1+1", "y" * 300, "2+2"])
    generate.run(run)
    assert Manifest.load(run.stage("generate", "tiny")).counts == {"prompts": 3, "samples": 6, "traces": 4, "failed": 2}
    failed = [trace for trace in read_table(run.stage("generate", "tiny"), Trace) if trace.finish_reason == "error"]
    assert {trace.prompt_id for trace in failed} == {"p001"}
    assert "no room for an answer" in str(failed[0].error)


def test_a_run_in_which_every_request_failed_is_an_error_with_the_reason(make_run: Callable[..., Run]) -> None:
    run = make_run(questions=["y" * 300])
    with pytest.raises(UserError, match=r"generator tiny: all 2 requests failed, the first because the prompt has 303 tokens"):
        generate.run(run)


@pytest.mark.parametrize("damage", ["torn", "foreign"])
def test_a_shard_that_is_not_this_runs_is_refused(make_run: Callable[..., Run], damage: str) -> None:
    run = make_run()
    folder = run.stage("generate", "tiny")
    folder.mkdir(parents=True)
    shard = folder / "shard-000001.parquet"
    row = ("foreign", "p000", "tiny", 0, "text", "stop", 3, 4, 5, "h", "m", "hf", None)
    write_table(shard, [Trace(*row)], Trace)  # type: ignore[arg-type]
    if damage == "torn":
        shard.write_bytes(shard.read_bytes()[:-30])
    expected = "is damaged" if damage == "torn" else "where this run asks for"
    with pytest.raises(UserError, match=rf"{shard.name} .*{expected}.*remove it and run"):
        generate.run(run)


def test_a_model_without_a_chat_template_stops_the_run_with_the_advice(make_run: Callable[..., Run], tmp_path: Path) -> None:
    bare = make_tiny_model(tmp_path / "bare", chat_template=None)
    with pytest.raises(UserError, match="has no chat template; set format: plain"):
        generate.run(make_run(teachers=[{"model": str(bare)}]))
