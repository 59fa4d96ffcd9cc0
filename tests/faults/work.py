"""The work that is done under faults: its configuration and its input. Does not import Ray."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.faults.schedules import NUM_PROMPTS, SAMPLES
from w2sr.artifacts import StageDir
from w2sr.config import PipelineConfig
from w2sr.records import Prompt
from w2sr.tables import write_table

# A driver's exit code when the stage raised an error with a message for its user.
REFUSED = 3


def config_of(folder: Path, address: str) -> PipelineConfig:
    """Return the plan's teachers: "batch" decodes batches of four, "single" has six requests in flight; two replicas each."""
    model = str(folder / "model")
    plan = json.loads((folder / "plan.json").read_text())
    pool = {"replicas": 2, "cpus_per_replica": 1, "start_timeout_s": 120, "task_timeout_s": plan["task_timeout_s"]}
    common = {"model": model, "sampling": {"max_new_tokens": 8}, "samples_per_prompt": SAMPLES, "pool": pool}
    engines = {"batch": {"kind": "hf", "batch_size": 4}, "single": {"kind": "vllm", "max_in_flight": 6}}
    values: dict[str, Any] = {
        "run_dir": str(folder / "run"),
        "prompts": {"source": {"kind": "file", "path": "x.jsonl"}, "num_train": NUM_PROMPTS, "num_test": 1},
        "teachers": [{"name": name, "engine": engines[name], **common} for name in plan["teachers"]],
        "generate": {"flush_interval_s": 0.1, "drain_timeout_s": 5, "gate": {"min_format_valid": 0, "max_loops": 1}},
        "student": {"model": model},
        "verify": {"grader": "exact"},
        "train": {"max_steps": 1},
        "evaluate": {"sampling": {"max_new_tokens": 8}},
        "cluster": {"address": address},
    }
    return PipelineConfig.model_validate(values)


def prepare(folder: Path) -> None:
    """Write what the generate stage finds: a model's folder and prompts."""
    (folder / "model").mkdir(parents=True, exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"")
    stage = StageDir(folder / "run" / "prompts", "prompts", {}, {})
    if not stage.is_done():
        stage.begin()
        prompts = [Prompt(f"p{n:03d}", "train", f"{n} + {n * n}?", "7", None, "test", "{}") for n in range(NUM_PROMPTS)]
        write_table(stage.folder / "train.parquet", prompts, Prompt)
        stage.finish({"train": NUM_PROMPTS}, [stage.folder / "train.parquet"])
