"""A finished run made of invented answers, for the tests of the report: every stage folder is there, no model ever ran."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from w2sr.artifacts import StageDir
from w2sr.config import PipelineConfig, dump_config
from w2sr.evaluation.contestants import contestants_of
from w2sr.records import Prompt, Trace, Verdict, Verification, seed_of, trace_id_of
from w2sr.run import Run
from w2sr.tables import write_table, write_text

SKILL = {"base": 0.2, "base-cot": 0.55, "teacher-small": 0.42, "all": 0.62, "correct": 0.72, "incorrect": 0.4, "gold": 0.8, "few-shot": 0.5}
HOSTILE = "<script>alert('x')</script> 3 + 4 = ? | `tick` & [link](http://evil.example)"


def config_of(folder: Path, **changes: Any) -> PipelineConfig:
    """Return a small configuration; `changes` replace keys of the sections, as train={"seeds": [0]}."""
    values: dict[str, Any] = {
        "run_dir": str(folder),
        "title": "Quickstart: weak teacher & strong student",
        "prompts": {"source": {"kind": "file", "path": "prompts.jsonl"}, "num_train": 30, "num_test": 120},
        "teachers": [{"name": "small", "model": "lab:teacher", "sampling": {"max_new_tokens": 64}}],
        "student": {"model": "lab:student", "reasoning_style": {"user": "{question}\nThink first."}},
        "train": {"max_steps": 40, "seeds": [0, 1, 2]},
        "evaluate": {"sampling": {"max_new_tokens": 64}, "bootstrap_samples": 400},
    }
    for section, change in changes.items():
        values[section] = {**values.get(section, {}), **change} if isinstance(change, dict) else change
    return PipelineConfig.model_validate(values)


def fake_run(
    folder: Path, skill: dict[str, float] | None = None, question: str = HOSTILE, parameters: int = 390_000, **changes: Any
) -> Run:
    """Write a whole run without its report. `skill` is the chance to solve a problem of middle difficulty, by label or arm."""
    config = config_of(folder, **changes)
    ray: Callable[[], AbstractContextManager[None]] = nullcontext
    run = Run(config=config, folder=folder, ray=ray)
    write_text(folder / "config.yaml", dump_config(config))
    prompts = [_prompt(number, question) for number in range(config.prompts.num_test)]
    finish_stage(run, "prompts", {"test.parquet": (prompts, Prompt)}, {"test": len(prompts)})
    for teacher in config.teachers:
        counts = {"prompts": 30, "samples": 60, "traces": 60, "failed": 0}
        finish_stage(run, f"generate/{teacher.name}", {}, counts, {"tokens": 2400, "device_seconds": 12.5})
        finish_stage(
            run, f"verify/{teacher.name}", {}, {"traces": 60, "correct": 25, "incorrect": 34, "unverifiable": 1, "reason_no_answer": 1}
        )
    _curate(run)
    for number, (name, _, _) in enumerate(run.student_names()):
        counts = {"rows": 20, "steps": 40, "exported_step": 40 - 10 * (number % 2), "supervised_tokens": 6000, "parameters": parameters}
        finish_stage(run, f"train/{name}", {}, counts, {"tokens": 9000, "device_seconds": 50.0})
        _metrics(run.stage("train", name) / "metrics.jsonl", number)
    for contestant in contestants_of(run):
        chance = (SKILL | (skill or {}))[contestant.arm or contestant.label]
        fake_label(run, "test", contestant.label, prompts, chance)
    return run


def fake_label(run: Run, split: str, label: str, prompts: list[Prompt], chance: float, samples: int | None = None) -> None:
    """Write the answers of one model: problem i has its own difficulty, the same for every model."""
    samples = samples or run.config.evaluate.samples_per_prompt
    rng = np.random.default_rng(sum(label.encode()))
    difficulty = np.random.default_rng(0).normal(size=len(prompts))
    traces, verdicts = [], []
    for number, (prompt, hard) in enumerate(zip(prompts, difficulty)):
        solved = 1 / (1 + np.exp(-(np.log(chance / (1 - chance)) * 1.2 - hard)))
        for sample in range(samples):
            trace_id = trace_id_of(prompt.prompt_id, label, sample)
            cut = rng.random() < 0.03
            verdict: Verdict = "incorrect" if cut or rng.random() > solved else "correct"
            answer = None if cut else "7" if verdict == "correct" else "5"
            position = number * samples + sample
            traces.append(_trace(prompt, label, sample, trace_id, cut, int(rng.integers(10, 60)), position))
            reason = "truncated" if cut else "match" if answer == "7" else "mismatch"
            verdicts.append(Verification(trace_id, prompt.prompt_id, verdict, reason, answer, answer, verdict, reason, position=position))
    counts = {"prompts": len(prompts), "samples": len(traces), "correct": sum(row.verdict == "correct" for row in verdicts)}
    tables: dict[str, tuple[list[Any], type[Any]]] = {"part-00000.parquet": (traces, Trace), "verdicts.parquet": (verdicts, Verification)}
    usage = {"tokens": float(sum(trace.num_tokens for trace in traces)), "device_seconds": 3.0}
    finish_stage(run, f"evaluate/{split}/{label}", tables, counts, usage, {"model": f"{label:0<64}"})


def finish_stage(
    run: Run,
    name: str,
    tables: dict[str, tuple[list[Any], type[Any]]],
    counts: dict[str, int],
    usage: dict[str, float] | None = None,
    inputs: dict[str, str] | None = None,
) -> None:
    """Write a finished stage folder with these tables."""
    stage = StageDir(run.folder / name, name, {"made": "up"}, inputs or {})
    stage.begin()
    for file, (rows, record_type) in tables.items():
        write_table(stage.folder / file, rows, record_type)
    stage.finish(counts, [stage.folder / file for file in tables], usage)


def _prompt(number: int, question: str) -> Prompt:
    return Prompt(f"p{number:04d}", "test", f"{question} #{number}", "7", None, "fake", "{}")


def _trace(prompt: Prompt, label: str, sample: int, trace_id: str, cut: bool, tokens: int, position: int) -> Trace:
    text = f"<think>\n3 plus 4 is 7, says {label} </script><b>bold</b>\n</think>\n7"
    finish = "length" if cut else "stop"
    seed = seed_of(0, trace_id)
    made = (9, tokens, seed, "0123456789abcdef", "d" * 64, "hf 5.23", None, position)
    return Trace(trace_id, prompt.prompt_id, label, sample, text, finish, *made)  # type: ignore[arg-type]


def _curate(run: Run) -> None:
    counts = {"candidates": 32, "kept": 20, "truncated": 8, "size_match": 4}
    stage = StageDir(run.stage("curate"), "curate", {"made": "up"}, {})
    stage.begin()
    write_text(stage.folder / "funnel.json", json.dumps({"traces": 60, "arms": dict.fromkeys(run.config.curate.arm_names, counts)}))
    stage.finish({"traces": 60}, [stage.folder / "funnel.json"])


def _metrics(path: Path, number: int) -> None:
    lines = [json.dumps({"step": step, "time": 0.0, "loss": 0.2 + 2.2 * 0.93**step + 0.01 * number}) for step in range(1, 41)]
    torn = '{"step": 41, "lo'
    path.write_text("\n".join([*lines[:25], torn, *lines[20:]]) + "\n", encoding="utf-8")
