"""configs/gsm8k_recorded.yaml as far as it goes without a GPU: prompts, generate, verify, curate."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from w2sr.records import Example, Trace, Verification
from w2sr.tables import read_table

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"


def run(stage: str, run_dir: Path, *overrides: str) -> int:
    # The student is not looked at before training; this one needs no download.
    return main([stage, str(ROOT / "configs" / "gsm8k_recorded.yaml"), f"run_dir={run_dir}", "student.model=lab:student", *overrides])


def sources(train: Path, test: Path, traces: Path) -> list[str]:
    return [f"prompts.source.path={train}", f"prompts.source.test_path={test}", f"teachers.0.engine.path={traces}"]


def counts(run_dir: Path, stage: str) -> dict[str, int]:
    found: dict[str, int] = json.loads((run_dir / stage / "manifest.json").read_text())["counts"]
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_was_recorded_is_verified_and_curated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = ["apples", "books", "coins", "doors", "eggs", "forks", "gates", "hats", "inks", "jars"]
    questions = [f"Ann has {number} {name} and gets 2 more. How many {name} has she?" for number, name in enumerate(objects, start=3)]
    golds = [f"She has {number}+2={number + 2}.\n#### {number + 2}" for number in range(3, 13)]
    written = [f"She had {number} at first, so now she has {number + 2} of them.\n#### {number + 2}" for number in range(3, 13)]
    written[1] = "She has 4 and 2, which makes 7.\n#### 7"
    train = write(tmp_path / "train.jsonl", [{"question": q, "answer": gold} for q, gold in zip(questions, golds)])
    test = write(tmp_path / "test.jsonl", [{"question": "What is 1 + 1?", "answer": "#### 2"}])
    rows = [{"content": f"Question: {q}\nAnswer:", "output": text} for q, text in zip(questions[:8], written)]
    traces = write(tmp_path / "traces.json", [*rows, {"content": "Question: Who?\nAnswer:", "output": "#### 1"}])
    given = [*sources(train, test, traces), "prompts.num_train=10", "prompts.num_test=1", "generate.gate.min_format_valid=0"]
    given.append("generate.gate.max_loops=1")
    folder = tmp_path / "run"
    assert [run(stage, folder, *given) for stage in ("prompts", "generate", "verify", "curate")] == [0, 0, 0, 0]
    assert (
        "8 of 9 recorded rows are traces of this teacher's prompts, 1 match none of them"
        in (folder / "logs" / "attempt_2" / "w2sr.log").read_text()
    )
    assert counts(folder, "generate/gemma-2b") == {"prompts": 8, "samples": 8, "traces": 8, "failed": 0}
    found = {trace.trace_id: trace for trace in read_table(folder / "generate" / "gemma-2b", Trace)}
    assert {trace.text for trace in found.values()} == set(written[:8])
    assert {(trace.engine, trace.model) for trace in found.values()} == {
        ("recorded", "google/gemma-2b, by GAIR-NLP/weak-to-strong-reasoning")
    }
    verdicts = Counter(row.verdict for row in read_table(folder / "verify" / "gemma-2b", Verification))
    assert verdicts == {"correct": 7, "incorrect": 1}
    assert [row.text for row in read_table(folder / "curate" / "incorrect.parquet", Example)] == [written[1]]
    capsys.readouterr()
    assert run("generate", folder, *given) == 0  # done: nothing is made again
    traces.write_text(traces.read_text() + " ")
    assert run("generate", folder, *given) == 2
    assert "was made from other inputs: model changed since" in capsys.readouterr().err


def test_traces_of_other_questions_stop_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = write(tmp_path / "train.jsonl", [{"question": "What is 2 + 2?", "answer": "#### 4"}])
    test = write(tmp_path / "test.jsonl", [{"question": "What is 1 + 1?", "answer": "#### 2"}])
    traces = write(tmp_path / "traces.json", [{"content": "Question: Who?\nAnswer:", "output": "#### 1"}])
    given = [*sources(train, test, traces), "prompts.num_train=1", "prompts.num_test=1"]
    assert run("prompts", tmp_path / "run", *given) == 0
    assert run("generate", tmp_path / "run", *given) == 2
    message = capsys.readouterr().err
    assert "none of the 1 rows of" in message
    assert "One of the rows has 'Who?', the first prompt 'What is 2 + 2?'" in message
    missing = [f"teachers.0.engine.path={tmp_path / 'gone.json'}", *given[:2]]
    assert run("generate", tmp_path / "run", *missing) == 2
    assert "gone.json does not exist" in capsys.readouterr().err


@pytest.mark.skipif(not DATA.is_dir(), reason=f"real data not there: {DATA}")
def test_real_traces_of_a_weak_teacher_become_arms(tmp_path: Path) -> None:
    given = sources(DATA / "gsm8k" / "train.jsonl", DATA / "gsm8k" / "test.jsonl", DATA / "traces" / "gsm8k_gemma_2b_weak.json")
    given += ["prompts.num_train=1200", "prompts.num_test=50"]
    assert [run(stage, tmp_path, *given) for stage in ("prompts", "generate", "verify", "curate")] == [0, 0, 0, 0]
    made, judged = counts(tmp_path, "generate/gemma-2b"), counts(tmp_path, "verify/gemma-2b")
    assert 500 < made["traces"] < 700  # half of GSM8K's questions have one
    assert judged["correct"] + judged["incorrect"] + judged["unverifiable"] == made["traces"]
    assert 0.2 < judged["correct"] / made["traces"] < 0.31  # 25.7 % of all
