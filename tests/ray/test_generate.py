"""The generate stage on a real Ray with a tiny model: resume, exactness, what is recorded and what is refused."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.actor_pool import ActorPool
from cluster.config import ClusterSpec
from cluster.errors import ClusterError
from tests.tiny import make_tiny_model
from w2sr.artifacts import Manifest, StageDir, file_digest
from w2sr.config import PipelineConfig
from w2sr.errors import UserError
from w2sr.records import Prompt, Trace, seed_of, trace_id_of
from w2sr.run import Run
from w2sr.stages import generate
from w2sr.tables import read_table, write_table
from w2sr.teachers import generation
from w2sr.teachers.generation import GeneratorPool, open_pool
from w2sr.teachers.replica import HFWorkerFactory

NUM_PROMPTS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), std=0.05)


@pytest.fixture(scope="module")
def pool(ray_cluster: ClusterSpec) -> Iterator[GeneratorPool]:
    """Two replicas for all tests: a process that imports torch and transformers takes seconds to start."""
    assert ray_cluster.num_cpus == 2
    shared: GeneratorPool
    with ActorPool(HFWorkerFactory(1, "cpu"), 2, cpus=0.5) as shared:
        yield shared


@pytest.fixture
def make_run(tmp_path: Path, model: Path, pool: GeneratorPool, monkeypatch: pytest.MonkeyPatch, ray_cluster: ClusterSpec) -> Any:
    monkeypatch.setattr(generate, "open_pool", lambda *_: contextlib.nullcontext(pool))

    def make(name: str = "run", questions: list[str] | None = None, cluster: dict[str, Any] | None = None, **pool: Any) -> Run:
        teacher = {
            "name": "tiny",
            "model": str(model),
            "sampling": {"temperature": 1.0, "max_new_tokens": 12},
            "samples_per_prompt": 2,
            "pool": {"cpus_per_replica": 0.5, "unit_size": 9, "batch_size": 4} | pool,
        }
        values = {
            "run_dir": str(tmp_path / name),
            "prompts": {"source": {"kind": "file", "path": "x.jsonl"}, "num_train": NUM_PROMPTS, "num_test": 1},
            "teachers": [teacher],
            "student": {"model": str(model)},
            "train": {"max_steps": 1},
            "evaluate": {"sampling": {"max_new_tokens": 8}},
            "cluster": cluster or {"num_cpus": ray_cluster.num_cpus},
        }
        run = Run(PipelineConfig.model_validate(values), tmp_path / name, contextlib.nullcontext)
        if not run.stage("prompts").exists():
            write_prompts(run, questions or [f"{number}+{number * 7}" for number in range(NUM_PROMPTS)])
        return run

    return make


def write_prompts(run: Run, questions: list[str]) -> None:
    stage = StageDir(run.stage("prompts"), "prompts", {}, {})
    stage.begin()
    prompts = [Prompt(f"p{number:03d}", "train", question, None, None, "test", "{}") for number, question in enumerate(questions)]
    write_table(stage.folder / "train.parquet", prompts, Prompt)
    stage.finish({"train": len(prompts)}, [stage.folder / "train.parquet"])


def parts(run: Run) -> dict[str, str]:
    return {path.name: file_digest(path) for path in sorted(run.stage("generate", "tiny").glob("part-*"))}


def test_every_sample_of_every_prompt_is_there_once_with_its_provenance(make_run: Any) -> None:
    run = make_run()
    generate.run(run)
    folder = run.stage("generate", "tiny")
    traces = read_table(folder, Trace)
    expected = [(f"p{number:03d}", sample) for number in range(NUM_PROMPTS) for sample in range(2)]
    assert [(trace.prompt_id, trace.sample_index) for trace in traces] == expected
    for trace in traces:
        assert trace.trace_id == trace_id_of(trace.prompt_id, "tiny", trace.sample_index)
        assert trace.seed == seed_of(0, trace.trace_id)
        assert (trace.generator, trace.engine, trace.error) == ("tiny", "hf", None)
    manifest = Manifest.load(folder)
    assert manifest.counts == {"prompts": 20, "samples": 40, "traces": 40, "failed": 0}
    assert list(manifest.files) == [f"part-{index:05d}.parquet" for index in range(5)]
    assert manifest.usage["tokens"] == sum(trace.num_tokens for trace in traces)
    assert manifest.usage["device_seconds"] > 0
    assert set(manifest.inputs) == {"prompts", "model"}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert sum(row["tokens"] for row in rows) == manifest.usage["tokens"]


def test_the_bytes_do_not_depend_on_replicas_or_on_a_kill(make_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calm = make_run("calm", replicas=1)
    with monkeypatch.context() as real:
        real.setattr(generate, "open_pool", open_pool)
        generate.run(calm)
    killed = make_run("killed", replicas=2)
    written: list[Path] = []

    def write_two(path: Path, *rest: Any) -> None:
        if len(written) == 2:
            path.with_name(f".{path.name}.1.aside").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(path)
        write_table(path, *rest)

    with monkeypatch.context() as torn:
        torn.setattr(generation, "write_table", write_two)
        with pytest.raises(KeyboardInterrupt):
            generate.run(killed)
    assert len(parts(killed)) == 2
    before = {path: path.stat().st_mtime_ns for path in written}
    generate.run(killed)
    assert {path: path.stat().st_mtime_ns for path in written} == before, "what was there is not made again"
    assert parts(killed) == parts(calm)
    one, two = (Manifest.load(run.stage("generate", "tiny")) for run in (calm, killed))
    assert (one.digest, one.usage["tokens"]) == (two.digest, two.usage["tokens"])
    assert two.num_attempts == 2
    assert not list(killed.stage("generate", "tiny").glob(".part*"))
    generate.run(killed)  # finished: nothing is done, no session is needed


def test_requests_that_fail_are_kept_and_counted(make_run: Any) -> None:
    run = make_run(questions=["1+1", "y" * 300, "2+2"])
    generate.run(run)
    assert Manifest.load(run.stage("generate", "tiny")).counts == {"prompts": 3, "samples": 6, "traces": 4, "failed": 2}
    failed = [trace for trace in read_table(run.stage("generate", "tiny"), Trace) if trace.finish_reason == "error"]
    assert {trace.prompt_id for trace in failed} == {"p001"}
    assert "no room for an answer" in str(failed[0].error)


def test_a_run_in_which_every_request_failed_is_an_error_with_the_reason(make_run: Any) -> None:
    run = make_run(questions=["y" * 300])
    with pytest.raises(UserError, match=r"generator tiny: all 2 requests failed, the first because the prompt has 303 tokens"):
        generate.run(run)


@pytest.mark.parametrize("damage", ["torn", "foreign", "too many"])
def test_a_part_that_is_not_this_runs_is_refused(make_run: Any, damage: str) -> None:
    run = make_run()
    folder = run.stage("generate", "tiny")
    folder.mkdir(parents=True)
    part = folder / ("part-00009.parquet" if damage == "too many" else "part-00001.parquet")
    write_table(part, [], Trace)
    if damage == "torn":
        part.write_bytes(part.read_bytes()[:-30])
    expected = "is not a readable Parquet file" if damage == "torn" else "holds other traces than this run asks for"
    with pytest.raises(UserError, match=rf"{part.name} {expected}.*remove it and run"):
        generate.run(run)


def test_a_model_without_a_chat_template_stops_the_run_with_the_advice(make_run: Any, tmp_path: Path) -> None:
    run = make_run()
    bare = make_tiny_model(tmp_path / "bare", chat_template=None)
    teacher = run.config.teachers[0].model_copy(update={"model": str(bare)})
    run = Run(run.config.model_copy(update={"teachers": [teacher]}), run.folder, run.ray)
    with pytest.raises(UserError, match="has no chat template; set format: plain"):
        generate.run(run)


def test_more_replicas_than_processors_are_refused(make_run: Any) -> None:
    run = make_run(replicas=5, cpus_per_replica=1)
    asked = r"teachers\.0\.pool: replicas=5 with cpus_per_replica=1 and gpus_per_replica=0 needs 5 CPUs; this machine has 2 CPUs"
    with pytest.raises(ClusterError, match=asked), open_pool(run, run.config.teachers[0].pool, "teachers.0.pool"):
        pass
