"""Curate many traces: seconds and peak memory of the whole stage at several sizes.

    python benchmarks/curate_scale.py 100000 300000 1000000

Writes made-up but realistic traces (two teachers, four samples of each prompt, about 75 words, some loops, copies and test questions), with
their verdicts, into a run folder under --scratch; then each size is curated in a process of its own: every filter, near duplicates,
contamination against 1,400 questions, token counts with the student's tokenizer, six arms with matching and nested sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from w2sr.artifacts import StageDir
from w2sr.config import PipelineConfig
from w2sr.records import Prompt, Trace, Verification, trace_id_of
from w2sr.run import Run
from w2sr.tables import write_table

TEACHERS = ("small", "tiny")
SAMPLES = 4
PART_ROWS = 50_000
NAMES = "Ada Ben Chi Dan Eva Finn Gus Hana Ivo Jun Kim Leo Mia Noor Otto Pia Quinn Rosa Sam Tao".split()  # noqa: SIM905
THINGS = "apples books cards dolls eggs flowers games hats jars kites lamps maps nuts oranges pens rings stamps toys vases".split()  # noqa: SIM905
STEPS = (
    "First, {name} has {a} {thing}, and then gets {b} more, so there are {a} + {b} = {c} {thing}.",
    "Each box holds {b} {thing}; with {a} boxes that makes {a} * {b} = {c} {thing} in all.",
    "Wait, let me check this again: {a} and {b} give {c}, so {name} is left with {c} {thing}.",
    "After giving {b} of the {a} {thing} to a friend, {name} keeps {c} of them for the next day.",
    "Since {name} pays {a} dollars for {b} {thing}, the total cost comes to {c} dollars at the shop.",
)


def config_of(folder: Path, num_rows: int, light: bool) -> PipelineConfig:
    """Return the configuration of the benchmark; `light`: as configs/quickstart.yaml, without comparing texts."""
    nested = {"name": "small", "kind": "correct", "order": "balanced", "per_prompt": 1, "sizes": [100, 250, 500, 920]}
    heavy: dict[str, Any] = {
        "filters": {"duplicates": True, "near_duplicates": {"threshold": 0.85, "scope": "prompt"}, "max_tokens": 4096},
        "contamination": {"policy": "drop"},
        "arms": ["all", "correct", {"name": "incorrect", "causes": ["wrong", "no_answer"]}, "majority", "gold", nested],
    }
    return PipelineConfig.model_validate(
        {
            "run_dir": str(folder),
            "prompts": {"source": {"kind": "file", "path": "none.jsonl"}, "num_train": max(1, num_rows // 8), "num_test": 1000},
            "teachers": [{"name": name, "model": "none", "sampling": {"max_new_tokens": 512}} for name in TEACHERS],
            "student": {"model": "lab:student"},
            "curate": {} if light else heavy,
            "train": {"max_steps": 1},
            "evaluate": {"sampling": {"max_new_tokens": 512}},
        }
    )


def question_of(number: int) -> str:
    """Return a question of about 35 words."""
    rng = random.Random(number)
    name, thing, a, b = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, 99), rng.randint(2, 99)
    return (
        f"{name} collects {thing} and keeps them in boxes numbered {number}. On the first day {name} finds {a} {thing}, on the second "
        f"day {b} more than twice as many. How many {thing} does {name} have after both days?"
    )


def text_of(rng: random.Random, question: str, answer: int) -> str:
    """Return a trace of about 75 words; one in fifty is a loop without an answer, one in a thousand quotes its question."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    lines = [question] if rng.random() < 0.001 else []
    for _ in range(rng.randint(3, 6)):
        a, b = rng.randint(2, 999), rng.randint(2, 999)
        lines.append(rng.choice(STEPS).format(name=name, thing=thing, a=a, b=b, c=a + b))
    if rng.random() < 0.02:
        return "\n".join([*lines, *[lines[-1]] * 12])
    return "\n".join([*lines, f"#### {answer}"])


def write_run(folder: Path, num_rows: int) -> None:
    """Write the finished stages prompts, generate and verify."""
    num_prompts = max(1, num_rows // (SAMPLES * len(TEACHERS)))
    splits = {"train": num_prompts, "selection": 400, "test": 1000}
    stage = StageDir(folder / "prompts", "prompts", {}, {})
    stage.begin()
    for place, (split, number) in enumerate(splits.items()):
        prompts = [
            Prompt(
                f"{split}-{n}",
                split,
                question_of(n + 10_000_000 * place),
                str(n % 997),
                f"So it is {n % 997}.\n#### {n % 997}",
                "made",
                "{}",
            )  # type: ignore[arg-type]
            for n in range(number)
        ]
        write_table(stage.folder / f"{split}.parquet", prompts, Prompt)
    stage.finish(splits, [])
    for teacher in TEACHERS:
        _write_teacher(folder, teacher, num_prompts)


def _write_teacher(folder: Path, teacher: str, num_prompts: int) -> None:
    stages = [StageDir(folder / name / teacher, name, {}, {}) for name in ("generate", "verify")]
    for stage in stages:
        stage.begin()
    waiting: list[tuple[Trace, Verification]] = []
    part = 0
    for pair in _pairs(teacher, num_prompts):
        waiting.append(pair)
        if len(waiting) == PART_ROWS:
            part = _write_part(stages, waiting, part)
    if waiting:
        _write_part(stages, waiting, part)
    for stage in stages:
        stage.finish({}, [])


def _write_part(stages: list[StageDir], waiting: list[tuple[Trace, Verification]], part: int) -> int:
    for stage, rows, record in zip(stages, zip(*waiting), (Trace, Verification)):
        write_table(stage.folder / f"part-{part:05d}.parquet", rows, record)
    waiting.clear()
    return part + 1


def _pairs(teacher: str, num_prompts: int) -> Iterator[tuple[Trace, Verification]]:
    rng, text = random.Random(teacher), ""
    for number in range(num_prompts):
        quoted = question_of(20_000_000 + rng.randrange(1000)) if rng.random() < 0.5 else question_of(number)
        for sample in range(SAMPLES):
            prompt_id = f"train-{number}"
            trace_id = trace_id_of(prompt_id, teacher, sample)
            draw = rng.random()
            cut = draw < 0.05
            answer = number % 997 if draw < 0.5 else rng.randint(2, 999)
            copied = rng.random() if sample else 1.0
            if copied > 0.06:
                text = text_of(rng, quoted, answer)
            elif copied > 0.03:
                text = text.replace("box", "bag")
            trace = Trace(
                trace_id,
                prompt_id,
                teacher,
                sample,
                text,
                "length" if cut else "stop",
                60,
                120,
                0,
                "h",
                "d",
                "made",
                None,
                number * SAMPLES + sample,
            )
            verdict, reason = (
                ("unverifiable", "no_answer") if draw > 0.97 else ("correct", "match") if draw < 0.5 else ("incorrect", "mismatch")
            )
            given = None if verdict == "unverifiable" else text.rsplit(" ", 1)[1]
            yield trace, Verification(trace_id, prompt_id, verdict, reason, given, given)  # type: ignore[arg-type]


def measure(folder: Path, num_rows: int, light: bool) -> dict[str, Any]:
    """Curate `folder` in this process and say what it took."""
    from w2sr.stages import curate

    shutil.rmtree(folder / "curate", ignore_errors=True)
    run = Run(config_of(folder, num_rows, light), folder, contextlib.nullcontext)
    import transformers  # noqa: F401 - loading libraries is not what is measured

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.monotonic(), time.process_time()
    curate.run(run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    funnel = json.loads((folder / "curate" / "funnel.json").read_text())
    return {
        "rows": funnel["traces"],
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "rss_before_mib": before // 1024,
        "peak_rss_mib": peak // 1024,
        "defects": funnel["defects"],
        "kept": {arm: counts["kept"] for arm, counts in funnel["arms"].items()},
    }


def main() -> None:
    """Parse the command line and print one JSON line a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[100_000, 300_000], help="numbers of traces")
    parser.add_argument("--scratch", type=Path, help="where the run folders are written (default: a temporary folder)")
    parser.add_argument("--light", action="store_true", help="the default configuration: no comparison of texts")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.sizes[0], arguments.light)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.scratch or Path(scratch)
        for size in arguments.sizes:
            folder = root / str(size)
            if not (folder / "verify").exists():
                write_run(folder, size)
            command = [sys.executable, __file__, str(size), "--measure", str(folder), *(["--light"] if arguments.light else [])]
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
