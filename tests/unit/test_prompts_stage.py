"""The prompts stage: files, counts, skipping, and a mistake that leaves nothing in the way of its correction."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest

from w2sr.artifacts import Manifest
from w2sr.config import PipelineConfig
from w2sr.errors import UserError
from w2sr.records import Prompt
from w2sr.run import Run
from w2sr.stages import prompts
from w2sr.tables import read_table


def run_in(folder: Path, **changes: Any) -> Run:
    settings = {"source": {"kind": "file", "path": str(folder / "data.jsonl")}, "num_train": 4, "num_selection": 1, "num_test": 2}
    values = {
        "run_dir": str(folder / "run"),
        "prompts": settings | changes,
        "teachers": [{"name": "weak", "model": "none", "sampling": {"max_new_tokens": 8}}],
        "student": {"model": "none"},
        "train": {"max_steps": 2, "global_batch_size": 4, "micro_batch_size": 2},
        "evaluate": {"sampling": {"max_new_tokens": 8}},
    }
    return Run(PipelineConfig.model_validate(values), folder / "run", contextlib.nullcontext)


def write_questions(folder: Path, count: int) -> None:
    (folder / "data.jsonl").write_text("".join(json.dumps({"question": f"{n}?", "answer": n}) + "\n" for n in range(count)))


def test_the_stage_writes_three_tables_and_is_skipped_afterwards(tmp_path: Path) -> None:
    write_questions(tmp_path, 9)
    prompts.run(run_in(tmp_path))
    manifest = Manifest.load(tmp_path / "run" / "prompts")
    tables = {split: read_table(tmp_path / "run" / "prompts" / f"{split}.parquet", Prompt) for split in ("train", "selection", "test")}
    assert {split: len(rows) for split, rows in tables.items()} == {"train": 4, "selection": 1, "test": 2}
    assert manifest.counts["read"] == 9 == sum(manifest.counts[key] for key in ("train", "selection", "test", "unused"))
    prompts.run(run_in(tmp_path))
    assert Manifest.load(tmp_path / "run" / "prompts") == manifest


def test_a_changed_file_or_setting_is_refused(tmp_path: Path) -> None:
    write_questions(tmp_path, 9)
    prompts.run(run_in(tmp_path))
    with pytest.raises(UserError, match="num_test: 2 -> 3"):
        prompts.run(run_in(tmp_path, num_test=3))
    write_questions(tmp_path, 10)
    with pytest.raises(UserError, match=r"made from other inputs: file .*data.jsonl changed"):
        prompts.run(run_in(tmp_path))


def test_a_mistake_can_be_corrected_in_the_same_run_folder(tmp_path: Path) -> None:
    write_questions(tmp_path, 9)
    with pytest.raises(UserError, match="lower the numbers"):
        prompts.run(run_in(tmp_path, num_train=40))
    prompts.run(run_in(tmp_path))
    assert Manifest.load(tmp_path / "run" / "prompts").counts["train"] == 4
