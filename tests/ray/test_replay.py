"""A trace of the hf engine is made again, bit for bit, on a real Ray."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest

from cluster.config import ClusterSpec
from cluster.pool import Pool
from tests.ray.test_generate import NO_GATE, write_prompts
from tests.tiny import make_tiny_model
from w2sr.config import PipelineConfig
from w2sr.diagnosis.lookup import find_trace
from w2sr.records import Trace
from w2sr.run import Run
from w2sr.stages import generate
from w2sr.tables import read_table
from w2sr.teachers import replay


def test_every_trace_of_a_batch_and_one_of_another_is_made_again_bit_for_bit(
    tmp_path: Path, ray_cluster: ClusterSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_tiny_model(tmp_path / "tiny", std=0.05)
    teacher = {
        "name": "tiny",
        "model": str(model),
        "engine": {"batch_size": 4},
        "sampling": {"temperature": 1.0, "max_new_tokens": 24},
        "samples_per_prompt": 2,
        "pool": {"cpus_per_replica": 0.5},
    }
    values = {
        "run_dir": str(tmp_path / "run"),
        "prompts": {"source": {"kind": "file", "path": "x.jsonl"}, "num_train": 20, "num_test": 1},
        "teachers": [teacher],
        "generate": NO_GATE,
        "student": {"model": str(model)},
        "verify": {"grader": "exact"},
        "train": {"max_steps": 1},
        "evaluate": {"sampling": {"max_new_tokens": 8}},
        "cluster": {"num_cpus": ray_cluster.num_cpus},
    }
    run = Run(PipelineConfig.model_validate(values), tmp_path / "run", contextlib.nullcontext)
    write_prompts(run, [f"{number}+{number * 7}" for number in range(20)])
    with Pool() as pool:
        for module in (generate, replay):
            monkeypatch.setattr(module, "open_pool", lambda *_: contextlib.nullcontext(pool))
        generate.run(run)
        traces = read_table(run.stage("generate", "tiny"), Trace)
        assert len({trace.text for trace in traces}) > 30
        original = replay.original_of(run, traces[5], "generate/tiny")
        together = {request.position for request in original.requests}
        assert len(together) == 4
        for position in sorted({*together, 33}):
            trace = find_trace(run.folder, traces[position].trace_id).trace
            again = replay.make_again(run, replay.original_of(run, trace, "generate/tiny"))
            assert again == trace
        other = dataclasses.replace(
            original, spec=dataclasses.replace(original.spec, model=str(make_tiny_model(tmp_path / "other", seed=1)))
        )
        assert replay.differences(traces[5], replay.make_again(run, other))
